"""The conditions under which a figure was measured, so that it can be judged."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pgqueue import PgQueue, __version__
from pgqueue.db.adapt import run
from pgqueue.db.connect import describe, resolve_dsn, way_around
from pgqueue.store import bench
from pgqueue.store.statement import Statement

TRIES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Where, with what, how far away. Times in seconds, medians.

    round_trip  of a SELECT of nothing
    commit      how much longer an update of one row takes: the server's work and its disk
    listen      workers hear of a job; without (behind a pooler that nothing leads around) they look for it
    cores       of this machine, for this process
    """

    database: str
    schema: str
    server: str
    fsync: str
    synchronous_commit: str
    full_page_writes: str
    round_trip: float
    commit: float
    pooled: bool
    listen: bool
    cores: int
    python: str
    pgqueue: str

    @property
    def warnings(self) -> Sequence[str]:
        """What makes the figures better, or worse, than they would be in earnest."""
        said = []
        if self.fsync == "off":
            said.append("fsync is off: a crash of the server can destroy the database; commits cost no disk")
        if self.synchronous_commit == "off":
            said.append("synchronous_commit is off: a crash of the server loses the last commits; they cost no disk")
        if self.full_page_writes == "off":
            said.append("full_page_writes is off: a crash of the server can destroy pages; less is written")
        if not self.listen:
            said.append("workers poll, because there is a pooler: --direct-dsn names a way around it")
        return said


def look(q: PgQueue, worker: int) -> Conditions:
    """Look around. `worker` is the id of the row that is updated to see what a commit takes."""
    nothing: Statement[None] = Statement("select 1", {}, lambda rows: None)
    trips, commits = [], []
    with q.pool.connection() as conn:
        for _ in range(TRIES):  # by turns: a moment in which the machine is busy hits both
            trips.append(_seconds(lambda: run(conn, nothing)))
            commits.append(_seconds(lambda: run(conn, bench.beat(worker, schema=q.schema))))
    round_trip = statistics.median(trips)
    said = q.pool.run(bench.conditions(schema=q.schema))
    return Conditions(
        database=describe(resolve_dsn(q.dsn)), schema=q.schema, server=said["server"], fsync=said["fsync"],
        synchronous_commit=said["synchronous_commit"], full_page_writes=said["full_page_writes"],
        round_trip=round_trip, commit=max(0.0, statistics.median(commits) - round_trip), pooled=q.pooled,
        listen=not q.pooled or way_around(q.dsn, q.direct_dsn) is not None, cores=_cores(),
        python=platform.python_version(), pgqueue=__version__,
    )  # fmt: skip


def _seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
