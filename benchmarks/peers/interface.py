"""What a peer is to the harness, and nothing about any of them.

A peer is a file of this package that makes a `Peer`, and a line in peers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.harness import Bench

DRAIN, ENQUEUE, LATENCY = "drain", "enqueue", "latency"
WORKLOADS = (DRAIN, ENQUEUE, LATENCY)


class Unavailable(Exception):
    """The peer can't be measured here; says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a peer's programs run.

    command      starts its program; "install", "produce" or "worker" follows
    versions     of what its file names
    variables    of the environment, beyond the harness's own
    worker       starts its worker, where that isn't `command` and "worker"
    everything   what was installed with it, and the versions
    """

    command: tuple[str, ...]
    versions: Mapping[str, str]
    variables: Mapping[str, str] = field(default_factory=dict)
    worker: tuple[str, ...] | None = None
    everything: Mapping[str, str] = field(default_factory=dict)


class Store(Protocol):
    """Where the jobs are, for one measurement."""

    @property
    def target(self) -> str:
        """The address that its programs get."""

    def unfinished(self, jobs: int) -> int:
        """How many of so many jobs aren't finished yet, as far as the store knows."""

    def settle(self) -> None:
        """Do after filling what would otherwise happen during the measurement."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to run a peer.

    says       the settings, for the reader
    settings   the same for its programs, as JSON
    jobs       of a drain: enough for some seconds at its rate
    workloads  what to measure; producers that do not differ are measured once
    """

    name: str
    says: str
    settings: Mapping[str, object]
    jobs: int
    workloads: tuple[str, ...] = WORKLOADS


class Peer(Protocol):
    """A job queue to compare with."""

    @property
    def name(self) -> str:
        """What --only calls it."""

    @property
    def title(self) -> str:
        """What the table calls it."""

    @property
    def history(self) -> str:
        """What is left of a finished job."""

    @property
    def enqueues(self) -> tuple[int, int]:
        """How many jobs to enqueue one by one, and in bulk."""

    @property
    def configurations(self) -> tuple[Configuration, ...]:
        """The default one first."""

    def install(self, cache: Path) -> Environment:
        """Make its environment unless it is there. Raises Unavailable."""

    def store(self, bench: Bench, environment: Environment, way: Configuration) -> AbstractContextManager[Store]:
        """A fresh place for its jobs, gone afterwards."""
