"""A peer that keeps its jobs in PostgreSQL: all that such peers have in common."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import Bench
from benchmarks.peers.interface import Configuration, Environment, Store
from benchmarks.peers.stores import database


@dataclass(frozen=True, slots=True)
class PostgresPeer:
    """Implements Peer.

    recipe      makes its environment in the cache directory
    unfinished  query that counts the jobs that aren't done, of %(jobs)s
    """

    name: str
    title: str
    history: str
    recipe: Callable[[Path], Environment]
    unfinished: str
    enqueues: tuple[int, int]
    configurations: tuple[Configuration, ...]

    def install(self, cache: Path) -> Environment:
        return self.recipe(cache)

    def store(self, bench: Bench, environment: Environment, way: Configuration) -> AbstractContextManager[Store]:
        return database(bench, environment, way, unfinished=self.unfinished)
