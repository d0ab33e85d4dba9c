"""The result as a table, as ratios and as JSON.

Never: measures anything.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

from benchmarks.peers.interface import ENQUEUE, LATENCY
from benchmarks.peers.runner import Outcome, Result
from benchmarks.report import Figure

COLUMNS = {
    "drain": "drain, jobs/s",
    "enqueue one": "enqueue one by one, jobs/s",
    "enqueue many": "in batches of 1,000, jobs/s",
    "latency p50": "latency p50, ms",
    "latency p99": "p99, ms",
}
WORKLOAD_OF = {name: name.partition(" ")[0] for name in COLUMNS}
LESS_IS_BETTER = LATENCY
OURS = "pgqueue"


def lines(outcome: Outcome, machine: Mapping[str, object], *, quick: bool) -> Iterator[str]:
    """For a terminal."""
    yield "median (smallest-largest) of the runs" + ("; quick: not figures to quote" if quick else "")
    yield "machine: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in machine.items())
    yield ""
    rows = [["", *COLUMNS.values()], *([_label(result), *_cells(result)] for result in outcome.results)]
    yield from _aligned(rows)
    if ratios := list(_ratios(outcome.results)):
        yield ""
        yield "how many times as good pgqueue's is (its default, its best median; for latency the other way round)"
        yield from _aligned([["", *COLUMNS.values()], *ratios])
    yield ""
    for result in outcome.results:
        yield f"{_label(result)}: {result.way.says}; left of a finished job: {result.peer.history}"
    for name, environment in outcome.environments.items():
        said = ", ".join(f"{package} {version}" for package, version in environment.versions.items())
        yield f"{name}: {said}"
    for title, reason in outcome.skipped.items():
        yield f"SKIPPED {title}: {reason}"
    for result in outcome.results:
        for workload, reason in result.too_slow.items():
            yield f"TOO SLOW {_label(result)}, {workload}: {reason}"
        for workload, reason in result.failures.items():
            yield f"FAILED {_label(result)}, {workload}: {reason}"


def as_json(outcome: Outcome, conditions: Mapping[str, object], *, quick: bool) -> dict[str, object]:
    """Everything, with every sample."""
    return {
        "conditions": dict(conditions),
        "quick": quick,
        "results": [_result(result, outcome) for result in outcome.results],
        "skipped": outcome.skipped,
    }


def _result(result: Result, outcome: Outcome) -> dict[str, object]:
    return {
        "peer": result.peer.name,
        "title": result.peer.title,
        "configuration": result.way.name,
        "says": result.way.says,
        "settings": dict(result.way.settings),
        "drain_jobs": result.way.jobs,
        "history": result.peer.history,
        "versions": dict(outcome.environments[result.peer.name].versions),
        "installed": dict(outcome.environments[result.peer.name].everything),
        "figures": {
            name: {"unit": figure.unit, "median": figure.median, "samples": list(figure.samples)}
            for name, figure in result.figures.items()
        },
        "too_slow": result.too_slow,
        "failures": result.failures,
    }


def _label(result: Result) -> str:
    """Its name, and which configuration where there are several."""
    return result.label if len(result.peer.configurations) > 1 else result.peer.title


def _cells(result: Result) -> Iterator[str]:
    for name, workload in WORKLOAD_OF.items():
        if name in result.figures:
            figure = result.figures[name]
            yield str(Figure(figure.samples, "", figure.digits))
        else:
            trouble = workload in result.too_slow or workload in result.failures
            yield without_figure(workload, result.too_slow, result.failures) + ", see below" * trouble


def without_figure(workload: str, too_slow: Container[str], failures: Container[str]) -> str:
    """What stands where a figure would."""
    if workload in too_slow:
        return "too slow"
    if workload in failures:
        return "failed"
    return "as default" if workload == ENQUEUE else "-"


def _ratios(results: Sequence[Result]) -> Iterator[list[str]]:
    """One row per configuration of the others."""
    ours = [result for result in results if result.peer.name == OURS]
    if not ours:
        return
    for result in results:
        if result.peer.name != OURS:
            yield [_label(result), *(_ratio(ours, result, name) for name in COLUMNS)]


def _ratio(ours: Sequence[Result], theirs: Result, name: str) -> str:
    best = [each.figures[name].median for each in ours if name in each.figures]
    if not best or name not in theirs.figures:
        return "-"
    other = theirs.figures[name].median
    ratio = other / min(best) if WORKLOAD_OF[name] == LESS_IS_BETTER else max(best) / other
    return f"{ratio:,.2f}"


def _aligned(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
