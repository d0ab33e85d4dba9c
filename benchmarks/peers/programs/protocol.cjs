// What the node programs share; the same as protocol.py. process.hrtime is the clock of Python's time.monotonic.
"use strict";

const fs = require("node:fs");
const readline = require("node:readline");
const { setTimeout: sleep } = require("node:timers/promises");

const QUEUE = "bench";
const TARGET = process.env.BENCH_TARGET;
const SETTINGS = JSON.parse(process.env.BENCH_SETTINGS || "{}");
const STRIDE = Number(process.env.BENCH_STRIDE || "1");
const file = process.env.BENCH_STAMPS ? fs.openSync(process.env.BENCH_STAMPS, "a") : -1;

const seconds = () => Number(process.hrtime.bigint()) / 1e9;

function argsOf(number) {
  return { number, action: "send_welcome_email", address: "ada@example.com", lang: "en", attempt: 1 };
}

// The task's whole work: jobs whose number is a multiple of the stride write down when they were entered.
function stamp(number) {
  if (number % STRIDE === 0) {
    const record = Buffer.alloc(16);
    record.writeBigInt64LE(BigInt(number), 0);
    record.writeBigInt64LE(process.hrtime.bigint(), 8);
    fs.writeSync(file, record);
  }
}

const ORDERS = {
  async one(producer, { first, count }) {
    const started = seconds();
    for (let number = first; number < first + count; number++) await producer.one(argsOf(number));
    return seconds() - started;
  },
  async many(producer, { first, count, batch }) {
    const started = seconds();
    for (let start = first; start < first + count; start += batch) {
      const length = Math.min(batch, first + count - start);
      await producer.many(Array.from({ length }, (_, place) => argsOf(start + place)));
    }
    return seconds() - started;
  },
  async paced(producer, { first, count, pace }) {
    const acknowledged = [];
    const started = seconds();
    for (let place = 0; place < count; place++) {
      await sleep(Math.max(0, (started + place / pace - seconds()) * 1000));
      await producer.one(argsOf(first + place));
      acknowledged.push(seconds());
    }
    return acknowledged;
  },
};

async function produce(producer) {
  fs.writeSync(1, "ready\n");
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const order = JSON.parse(line);
    fs.writeSync(1, JSON.stringify(await ORDERS[order.do](producer, order)) + "\n");
  }
  process.exit(0);
}

function main(roles) {
  roles[process.argv[2]]().catch((error) => {
    console.error(error);
    process.exit(1);
  });
}

module.exports = { QUEUE, TARGET, SETTINGS, main, produce, stamp };
