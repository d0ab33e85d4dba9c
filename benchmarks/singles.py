"""Claim: jobs that were enqueued one by one are drained nearly as fast as those of one enqueue_many."""

from __future__ import annotations

from functools import partial

import psycopg

from benchmarks.app import noop
from benchmarks.drain import Drain, drained, filled_and_drained, state
from benchmarks.harness import Bench
from benchmarks.report import Report, interleave

BAR = 0.65
BLOCK = 1_000
BULK, SINGLE = "enqueued 10,000 at once", "enqueued one by one"


def measure(bench: Bench) -> Report:
    count = bench.sized(100_000, 20_000)
    bench.announce("singles", 1.5)
    report = Report(
        "singles",
        f"Drains, as in `drain`, of {count:,} jobs that stand in chunks of 100, and of as many that stand alone because"
        f" each was enqueued by a call of its own ({BLOCK:,} calls to a transaction, to have them soon).",
    )
    runs = interleave(
        bench.rounds,
        {BULK: partial(filled_and_drained, bench, count), SINGLE: partial(_one_by_one, bench, count)},
    )
    rates = state(report, runs)
    report.at_least(
        "Jobs enqueued one by one are drained at {} of the others' rate", rates[SINGLE].over(rates[BULK]), BAR
    )
    return report


def _one_by_one(bench: Bench, count: int) -> Drain:
    with bench.database() as dsn:
        with psycopg.connect(dsn) as conn:
            for number in range(count):
                noop.using(conn).enqueue(number, "send_email", 1)
                if number % BLOCK == BLOCK - 1:
                    conn.commit()
            conn.commit()
            conn.execute("analyze")
            conn.commit()
        return drained(bench, dsn, count)
