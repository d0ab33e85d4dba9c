"""Take every sample: each peer in each configuration once per round, in turning order.

Guarantees: a peer that can't be had or fails is in the result with its reason, and the others are measured all the
same.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psycopg

from benchmarks.harness import Bench
from benchmarks.peers.interface import Configuration, Environment, Peer, Unavailable
from benchmarks.peers.processes import ProgramFailed
from benchmarks.peers.workloads import Sample, TooSlow, measure
from benchmarks.report import Figure, interleave

FAILURES = (Unavailable, ProgramFailed, OSError, subprocess.SubprocessError, psycopg.Error)
FEW = 10  # below this a figure is shown with a digit after the point
UNITS = {"drain": ("jobs/s", 0), "enqueue": ("jobs/s", 0), "latency": ("ms", 2)}


@dataclass(slots=True)
class Result:
    """What was found about one configuration of one peer.

    figures   by name: drain, enqueue one, enqueue many, latency p50, latency p99
    too_slow  by workload: what it did not manage in time, which is a finding
    failures  by workload: what went wrong
    """

    peer: Peer
    way: Configuration
    figures: dict[str, Figure] = field(default_factory=dict)
    too_slow: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As in the table."""
        return f"{self.peer.title}, {self.way.name}"


@dataclass(slots=True)
class Outcome:
    """All of it.

    environments  of the peers that were measured
    skipped       title of a peer -> why it was not
    """

    results: list[Result]
    environments: dict[str, Environment]
    skipped: dict[str, str]


def run(bench: Bench, peers: Sequence[Peer], workloads: Collection[str], *, rounds: int, cache: Path) -> Outcome:
    """Install what is needed, then measure it `rounds` times."""
    outcome = Outcome([], {}, {})
    for peer in peers:
        try:
            outcome.environments[peer.name] = peer.install(cache)
        except Unavailable as reason:
            outcome.skipped[peer.title] = str(reason)
    present = [peer for peer in peers if peer.name in outcome.environments]
    outcome.results = [Result(peer, way) for peer in present for way in peer.configurations]
    measurements: dict[tuple[int, str], Callable[[], Sample | None]] = {
        (place, workload): partial(_sample, bench, result, workload, outcome.environments[result.peer.name])
        for workload in workloads
        for place, result in enumerate(outcome.results)
        if workload in result.way.workloads
    }
    for (place, _), samples in interleave(rounds, measurements).items():
        _add(outcome.results[place], [sample for sample in samples if sample is not None])
    return outcome


def _sample(bench: Bench, result: Result, workload: str, environment: Environment) -> Sample | None:
    """One sample; None if it fails, and afterwards: what failed once isn't tried again."""
    if workload in result.failures or workload in result.too_slow:
        return None
    try:
        sample = measure(workload, bench, result.peer, result.way, environment)
    except TooSlow as finding:
        result.too_slow[workload] = str(finding)
        _tell(f"{result.label}: {workload}: too slow: {finding}")
        return None
    except FAILURES as error:
        result.failures[workload] = f"{type(error).__name__}: {error}"
        _tell(f"{result.label}: {workload}: {result.failures[workload]}")
        return None
    _tell(f"{result.label}: " + ", ".join(f"{name} {value:,.2f}" for name, value in sample.items()))
    return sample


def _add(result: Result, samples: Sequence[Sample]) -> None:
    for name in samples[0] if samples else ():
        values = [sample[name] for sample in samples]
        unit, digits = UNITS[name.partition(" ")[0]]
        result.figures[name] = Figure(values, unit, max(digits, 1) if max(values) < FEW else digits)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
