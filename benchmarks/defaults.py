"""Claim: a worker of which nothing is tuned is nearly as fast as one whose number of jobs at once was chosen."""

from __future__ import annotations

from functools import partial

from benchmarks.drain import filled_and_drained, state
from benchmarks.harness import Bench
from benchmarks.report import Report, interleave

BAR = 0.8
DEFAULTS = "default"
TUNED = ("default=20", "default=100", "default=500")


def measure(bench: Bench) -> Report:
    count = bench.sized(100_000, 20_000)
    bench.announce("defaults", 1.5)
    report = Report(
        "defaults",
        f"Drains, as in `drain`, of {count:,} no-op jobs by one worker process: of `-q default`, which runs 10 jobs at"
        " once as q.worker('default') does, and of more at once. Nothing else can be tuned.",
    )
    runs = interleave(
        bench.rounds,
        {way: partial(filled_and_drained, bench, count, workers=(way,)) for way in (DEFAULTS, *TUNED)},
    )
    rates = state(report, runs)
    best = max(TUNED, key=lambda way: rates[way].median)
    report.at_least(f"With defaults it completes {{}} of the best, {best}", rates[DEFAULTS].over(rates[best]), BAR)
    return report
