// pg-boss: finished jobs stay in its table for seven days.
"use strict";

const { PgBoss } = require("pg-boss");
const { QUEUE, TARGET, SETTINGS, main, produce, stamp } = require("./protocol.cjs");

async function started(options) {
  const boss = new PgBoss({ connectionString: TARGET, ...options });
  boss.on("error", (error) => console.error(error));
  await boss.start();
  return boss;
}

async function install() {
  const boss = await started({});
  await boss.createQueue(QUEUE, SETTINGS.queue || {});
  await boss.stop();
}

async function worker() {
  const boss = await started(SETTINGS.boss || {});
  await boss.work(QUEUE, SETTINGS.work || {}, async (jobs) => {
    for (const job of jobs) stamp(job.data.number);
  });
}

async function producer() {
  const boss = await started({});
  await produce({
    one: (args) => boss.send(QUEUE, args),
    many: (rows) => boss.insert(QUEUE, rows.map((data) => ({ data }))),
  });
}

main({ install, worker, produce: producer });
