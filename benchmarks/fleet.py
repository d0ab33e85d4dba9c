"""Claim: a second worker process makes more of a machine that has a core to spare."""

from __future__ import annotations

from functools import partial

from benchmarks import machine
from benchmarks.drain import PLAIN, filled_and_drained, state
from benchmarks.harness import Bench
from benchmarks.report import Figure, Report, interleave

BAR = 1.3
SIZES = (1, 2, 4)


def measure(bench: Bench) -> Report:
    count = bench.sized(200_000, 40_000)
    bench.announce("fleet", 1.5)
    report = Report(
        "fleet",
        f"Drains, as in `drain`, of {count:,} no-op jobs by 1, 2 and 4 worker processes, on {machine.cores()} cores"
        " that they share with the server.",
    )
    ways = {size: f"{size} process{'es' * (size > 1)}" for size in SIZES}
    runs = interleave(
        bench.rounds,
        {way: partial(filled_and_drained, bench, count, workers=(PLAIN,) * size) for size, way in ways.items()},
    )
    rates = state(report, runs)
    for way, samples in runs.items():
        cores = [each.rate * (each.client_us + each.server_us) / 1e6 for each in samples]
        report.figures[f"{way}: cores taken, with the server"] = Figure(cores, digits=2)
    two = rates[ways[2]].over(rates[ways[1]])
    if machine.cores() > 2:
        report.at_least("Two worker processes complete {} of what one does", two, BAR)
    else:
        report.tell("Two worker processes complete {} of what one does, but there is no core to spare", two)
    report.tell("Four complete {} of what one does", rates[ways[4]].over(rates[ways[1]]))
    return report
