"""What `pgqueue bench` asks of the database beside the queue's verbs, as statements. Pure: none of them does I/O.

A run is known by its queue, `pgqueue.bench.<first id it may use>.<random>`: everything here is about that queue only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pgqueue.store.statement import Row, Statement, queries

PREFIX = "pgqueue.bench."  # of the queues; in SQL it would be taken for the schema


@dataclass(frozen=True, slots=True)
class Member:
    """A process of a run that is noted, as it was registered. `heard`: within its lease."""

    host: str
    pid: int
    heard: bool


def begin(*, mark: str, host: str, pid: int, version: str, schema: str) -> Statement[tuple[str, int]]:
    """Note a new run, its queue paused; answers with that queue and the id of the worker that stands for the run.

    mark  twelve random hexadecimal digits
    """
    params = {"prefix": PREFIX, "mark": mark, "host": host, "pid": pid, "version": version}
    return Statement(_query("begin", schema), params, lambda rows: (str(rows[0][0]), int(str(rows[0][1]))))


def beat(worker: int, *, schema: str) -> Statement[None]:
    """The run goes on."""
    return Statement(_query("beat", schema), {"worker": worker}, lambda rows: None)


def runs(*, schema: str) -> Statement[dict[str, list[Member]]]:
    """The runs that are noted, by queue, with their processes."""
    return Statement(_query("runs", schema), {"prefix": PREFIX}, _members)


def working(queue: str, *, schema: str) -> Statement[int]:
    """How many workers serve the queue."""
    return Statement(_query("working", schema), {"queue": queue}, _number)


def completed(queue: str, *, worker: int, schema: str) -> Statement[int]:
    """How many jobs of the run have been completed; `worker` stands for it."""
    return Statement(_query("completed", schema), {"queue": queue, "worker": worker}, _number)


def results(queue: str, *, first: int, last: int, schema: str) -> Statement[dict[int, int]]:
    """The numbers that completed jobs from `first` to `last` returned, by id."""
    params = {"queue": queue, "first": first, "last": last}
    return Statement(
        _query("results", schema), params, lambda rows: {int(str(id)): json.loads(str(text)) for id, text in rows}
    )


def first_start(queue: str, *, first: int, last: int, schema: str) -> Statement[float | None]:
    """How many seconds ago the first of the jobs from `first` to `last` was started; None: none was."""
    params = {"queue": queue, "first": first, "last": last}
    return Statement(
        _query("first_start", schema), params, lambda rows: None if rows[0][0] is None else float(str(rows[0][0]))
    )


def conditions(*, schema: str) -> Statement[Mapping[str, str]]:
    """The server's version and its settings about durability."""
    names = ("server", "fsync", "synchronous_commit", "full_page_writes")
    return Statement(_query("conditions", schema), {}, lambda rows: dict(zip(names, map(str, rows[0]), strict=True)))


def first_id(queue: str) -> int:
    """The lowest id that a job of the run may have."""
    return int(queue.removeprefix(PREFIX).partition(".")[0])


def seize(queue: str, *, schema: str) -> Statement[int]:
    """Let nobody claim or rescue the run's jobs any more; answers with the highest id there is."""
    return Statement(_query("seize", schema), {"queue": queue}, _number)


def remove(queue: str, *, first: int, last: int, schema: str) -> Statement[int]:
    """Remove the run's jobs from `first` to `last` with their history; answers with how many there were."""
    params = {"queue": queue, "first": first, "last": last}
    return Statement(_query("remove", schema), params, _number)


def forget(queue: str, *, schema: str) -> Statement[None]:
    """Remove the rest of the run, and at last the note of it."""
    return Statement(_query("forget", schema), {"queue": queue}, lambda rows: None)


def _query(name: str, schema: str) -> str:
    return queries("bench.sql", schema)[name]


def _number(rows: Sequence[Row]) -> int:
    return int(str(rows[0][0]))


def _members(rows: Sequence[Row]) -> dict[str, list[Member]]:
    found: dict[str, list[Member]] = {}
    for queue, host, pid, heard in rows:
        members = found.setdefault(str(queue), [])
        if host is not None:
            members.append(Member(str(host), int(str(pid)), bool(heard)))
    return found
