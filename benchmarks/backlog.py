"""Claim: a million waiting jobs do not slow down those whose turn it is."""

from __future__ import annotations

from functools import partial

import psycopg

from benchmarks.drain import Drain, drained, filled_and_drained, state
from benchmarks.harness import Bench, fill
from benchmarks.report import Report, interleave

BAR = 0.95
PLAIN_RUN, BEHIND = "nothing else waits", "a million wait behind them"


def measure(bench: Bench) -> Report:
    waiting, count = bench.sized(1_000_000, 100_000), bench.sized(200_000, 20_000)
    report = Report(
        "backlog",
        f"Drains, as in `drain`, of {count:,} no-op jobs: of as many as there are, and of the next of a queue in which"
        f" {waiting:,} or more wait when they are done.",
    )
    bench.announce("backlog", 2)
    with bench.database() as dsn:
        fill(dsn, waiting + bench.rounds * count)
        drains = interleave(
            bench.rounds,
            {PLAIN_RUN: partial(filled_and_drained, bench, count), BEHIND: partial(_behind, bench, dsn, count)},
        )
    rates = state(report, drains)
    report.at_least(
        "With a million waiting behind them jobs are completed at {}", rates[BEHIND].over(rates[PLAIN_RUN]), BAR
    )
    return report


def _behind(bench: Bench, dsn: str, count: int) -> Drain:
    drain = drained(bench, dsn, count)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("vacuum analyze")  # as the other was, which is new
    return drain
