"""Claim: a task that returns something is nearly as fast; and how fast the executors are."""

from __future__ import annotations

from functools import partial

from benchmarks.app import noop, noop_in_process, noop_in_thread, returning
from benchmarks.drain import filled_and_drained, state
from benchmarks.harness import Bench
from benchmarks.report import Report, interleave

BAR = 0.6
RETURNING = "async with a result"
TASKS = {"async": noop, RETURNING: returning, "thread": noop_in_thread, "process": noop_in_process}


def measure(bench: Bench) -> Report:
    counts = {"async": bench.sized(100_000, 20_000), "thread": bench.sized(100_000, 20_000)}
    counts[RETURNING] = counts["async"]
    counts["process"] = bench.sized(20_000, 4_000)
    report = Report(
        "executors",
        "Drains, as in `drain`, by one worker that runs 20 at once: "
        + ", ".join(f"{count:,} jobs {name}" for name, count in counts.items())
        + ". The processes are started, and import the application, within that time.",
    )
    runs = interleave(
        bench.rounds,
        {name: partial(filled_and_drained, bench, counts[name], task) for name, task in TASKS.items()},
    )
    rates = state(report, runs)
    for name, rate in rates.items():
        report.tell(f"Executor {name} completes {{}}", rate)
    ratio = rates[RETURNING].over(rates["async"])
    report.at_least("Coroutines that return something are completed at {} of the rate of others", ratio, BAR)
    return report
