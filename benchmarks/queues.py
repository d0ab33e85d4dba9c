"""Claim: many queues and priorities cost a worker little."""

from __future__ import annotations

from functools import partial

import psycopg

from benchmarks.app import noop
from benchmarks.drain import PLAIN, Drain, drained, filled_and_drained, state
from benchmarks.harness import Bench
from benchmarks.report import Report, interleave

BAR = 0.85
QUEUES = tuple(f"queue-{number}" for number in range(8))
PRIORITIES = (0, 5, 10, 100)
BATCH = 1_000
ONE, MANY = "one queue", "8 queues with 4 priorities"


def measure(bench: Bench) -> Report:
    count = bench.sized(160_000, 32_000)
    report = Report(
        "queues",
        f"Drains, as in `drain`, of {count:,} no-op jobs by one worker process: all in one queue with one priority,"
        f" and over {len(QUEUES)} queues with the priorities {', '.join(map(str, PRIORITIES))}, {BATCH:,} of each at a"
        " time; 20 at once of each queue.",
    )
    runs = interleave(
        bench.rounds, {ONE: partial(filled_and_drained, bench, count), MANY: partial(_many, bench, count)}
    )
    rates = state(report, runs)
    report.at_least(f"{MANY} are drained at {{}} of the rate of one", rates[MANY].over(rates[ONE]), BAR)
    return report


def _many(bench: Bench, count: int) -> Drain:
    places = [(queue, priority) for priority in PRIORITIES for queue in QUEUES]
    with bench.database() as dsn:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("checkpoint")
            for place, first in enumerate(range(0, count, BATCH)):
                queue, priority = places[place % len(places)]
                rows = [(number, "send_email", 1) for number in range(first, first + BATCH)]
                noop.using(conn, queue=queue, priority=priority).enqueue_many(rows)
            conn.execute("analyze")
        queues = ",".join(queue + PLAIN.removeprefix("default") for queue in QUEUES)
        return drained(bench, dsn, count, workers=(queues,))
