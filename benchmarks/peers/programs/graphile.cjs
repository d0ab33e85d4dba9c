// Graphile Worker, as a library: its runner, and its worker utils for adding jobs. It deletes finished jobs.
"use strict";

const { Logger, makeWorkerUtils, run } = require("graphile-worker");
const { QUEUE, TARGET, SETTINGS, main, produce, stamp } = require("./protocol.cjs");

const logger = new Logger(() => (level, text) => {
  if (level === "error") console.error(text);
});

async function install() {
  const utils = await makeWorkerUtils({ connectionString: TARGET, logger });
  await utils.migrate();
  await utils.release();
}

async function worker() {
  const taskList = { [QUEUE]: async (payload) => stamp(payload.number) };
  const { preset, ...options } = SETTINGS;
  const runner = await run({ connectionString: TARGET, logger, taskList, ...options, preset: { worker: preset || {} } });
  await runner.promise;
}

async function producer() {
  const utils = await makeWorkerUtils({ connectionString: TARGET, logger });
  await produce({
    one: (args) => utils.addJob(QUEUE, args),
    many: (rows) => utils.addJobs(rows.map((payload) => ({ identifier: QUEUE, payload }))),
  });
}

main({ install, worker, produce: producer });
