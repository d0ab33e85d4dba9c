"""Claim: a worker that was there before there were any jobs is as fast as one that was started later.

What it has prepared was planned while the tables were empty, and nobody has analyzed them since.
"""

from __future__ import annotations

import time
from functools import partial

import psycopg

from benchmarks.app import noop
from benchmarks.drain import PLAIN, WITHIN, filled_and_drained
from benchmarks.harness import FILL_BATCH, Bench, wait_until_completed
from benchmarks.processes import worker
from benchmarks.report import Figure, Report, interleave

BAR = 0.8
FEW = 30  # single jobs, so that every statement has been planned for good
FIRST, LATER = "worker first, jobs later", "jobs first, analyzed, worker later"


def measure(bench: Bench) -> Report:
    count = bench.sized(50_000, 10_000)
    report = Report(
        "fresh",
        f"A migrated database, nothing analyzed: a worker that has run {FEW} jobs meets {count:,} more, enqueued within"
        f" one transaction, from its commit until all are completed; beside a drain of as many, as in `drain`."
        " Autovacuum is on, and would put an end to it within a minute.",
    )
    runs = interleave(
        bench.rounds,
        {FIRST: partial(_met, bench, count), LATER: partial(_plain, bench, count)},
    )
    rates = {name: Figure(samples, "jobs/s") for name, samples in runs.items()}
    report.figures |= rates
    ratio = rates[FIRST].over(rates[LATER])
    report.at_least("A worker that was there first completes {} of what one started later does", ratio, BAR)
    return report


def _plain(bench: Bench, count: int) -> float:
    return filled_and_drained(bench, count, workers=(PLAIN,)).rate


def _met(bench: Bench, count: int) -> float:
    with bench.database() as dsn, worker(dsn), psycopg.connect(dsn) as conn:
        for number in range(FEW):
            noop.using(conn).enqueue(number, "send_email", 1)
            conn.commit()
            time.sleep(0.02)
        wait_until_completed(dsn, FEW, within=30)
        for first in range(0, count, FILL_BATCH):
            noop.using(conn).enqueue_many([(number, "send_email", 1) for number in range(first, first + FILL_BATCH)])
        conn.commit()
        started = time.monotonic()
        return count / (wait_until_completed(dsn, FEW + count, within=WITHIN) - started)
