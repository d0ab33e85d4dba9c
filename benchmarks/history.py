"""Claim: five million finished jobs in the table slow nothing down."""

from __future__ import annotations

from functools import partial

import psycopg

from benchmarks import past
from benchmarks.drain import Drain, drained, filled_and_drained, state
from benchmarks.harness import Bench, fill
from benchmarks.report import Report, interleave

BAR = 0.95
EMPTY, FULL = "without history", "with history"


def measure(bench: Bench) -> Report:
    jobs, count = bench.sized(5_000_000, 200_000), bench.sized(200_000, 20_000)
    report = Report(
        "history",
        f"Drains, as in `drain`, of {count:,} no-op jobs: in a new database, and in one with {jobs:,} finished jobs of"
        f" {past.DAYS} days (inserted by SQL: past.py), vacuumed before.",
    )
    bench.announce("history", 4)
    dsn = bench.shared("past", partial(past.make, jobs=jobs))
    runs = interleave(
        bench.rounds,
        {EMPTY: partial(filled_and_drained, bench, count), FULL: partial(_beside, bench, dsn, count)},
    )
    rates = state(report, runs)
    report.at_least("With history jobs are completed at {} of the rate without", rates[FULL].over(rates[EMPTY]), BAR)
    return report


def _beside(bench: Bench, dsn: str, count: int) -> Drain:
    fill(dsn, count)
    drain = drained(bench, dsn, count)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("vacuum analyze pgqueue.ready, pgqueue.lease, pgqueue.tally")
    return drain
