"""`python -m benchmarks.peers.markdown FILE`: the table of a measurement (its --json) for the README.

Never: shows a figure that is not in the file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.interface import LATENCY
from benchmarks.peers.runner import FEW
from benchmarks.peers.table import COLUMNS, OURS, WORKLOAD_OF, without_figure
from benchmarks.report import Figure

HEAD = ("", "jobs/s", "enqueued one by one, /s", "1,000 at once, jobs/s", "enqueued to started, p50, ms", "p99, ms")


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """One row per peer and configuration, as measured."""
    yield _row(HEAD)
    yield _row(["---"] * len(HEAD))
    for result in document["results"]:
        yield _row([_label(result), *(_cell(result, name) for name in COLUMNS)])


def _label(result: Mapping[str, Any]) -> str:
    if result["peer"] == OURS:
        return f"**{result['title']}**"
    name, comma, storage = result["title"].partition(",")
    return f"{name} {next(iter(result['versions'].values()))}{comma}{storage}, {result['configuration']}"


def _cell(result: Mapping[str, Any], name: str) -> str:
    if figure := result["figures"].get(name):
        digits = 2 if WORKLOAD_OF[name] == LATENCY else int(figure["median"] < FEW)
        shown = Figure(figure["samples"], digits=digits)
        return f"{shown.show(shown.median)} ({shown.show(min(shown.samples))} to {shown.show(max(shown.samples))})"
    return without_figure(WORKLOAD_OF[name], result["too_slow"], result["failures"])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(lines(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
