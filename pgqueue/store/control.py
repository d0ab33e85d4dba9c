"""What people ask of jobs and queues, as statements for any connection. Pure: building one does no I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import msgspec

from pgqueue.core.job import Job
from pgqueue.core.states import LIVE, State, Verb
from pgqueue.store.statement import Row, Statement, queries

T = TypeVar("T")
INT_DIGITS = 4300  # Python reads no longer integers from text


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which jobs. Every field that is given must fit; `since` and `until` bound created_at (until excluded)."""

    state: State | None = None
    kind: str | None = None
    queue: str | None = None
    tenant: str | None = None
    tag: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStats:
    """One queue: what waits and runs in it now, and what it has finished."""

    queue: str
    paused: bool
    available: int
    running: int
    scheduled: int
    retryable: int
    pending: int
    completed: int
    cancelled: int
    discarded: int
    stopped: int
    oldest_available_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One worker process as the relation `pgqueue.workers` shows it; `queues` maps names to concurrency."""

    id: int
    name: str
    host: str
    pid: int
    state: str
    queues: Mapping[str, int]
    kinds: Sequence[str]
    running: int
    started_at: datetime
    seen_at: datetime
    stopped_at: datetime | None
    lease: timedelta
    version: str


def cancel(ids: Sequence[int], *, action: Verb, reason: str | None, schema: str) -> Statement[dict[int, str]]:
    """Cancel or stop jobs; answers by id: `cancelled` or `stopped`, `requested`, `already <state>`, `not found`."""
    params = {"ids": json.dumps(list(ids)), "action": action.value, "reason": reason}
    return Statement(queries("control.sql", schema)["cancel"], params, _answers)


def retry(ids: Sequence[int], *, restart: bool, schema: str) -> Statement[dict[int, str]]:
    """Make jobs available now; `restart` drops their checkpoints."""
    params = {"ids": json.dumps(list(ids)), "restart": restart}
    return Statement(queries("control.sql", schema)["retry"], params, _answers)


def reschedule(
    ids: Sequence[int], *, at: datetime | None, delay: timedelta | None, schema: str
) -> Statement[dict[int, str]]:
    """Let waiting jobs run at another time."""
    params = {
        "ids": json.dumps(list(ids)),
        "at": at.isoformat() if at else None,
        "delay": delay.total_seconds() if delay is not None else None,
    }
    return Statement(queries("control.sql", schema)["reschedule"], params, _answers)


def set_priority(ids: Sequence[int], *, priority: int, schema: str) -> Statement[dict[int, str]]:
    """Give waiting jobs another priority."""
    params = {"ids": json.dumps(list(ids)), "priority": priority}
    return Statement(queries("control.sql", schema)["set_priority"], params, _answers)


def delete(ids: Sequence[int], *, schema: str) -> Statement[dict[int, str]]:
    """Remove jobs that are not running, and their history."""
    return Statement(queries("control.sql", schema)["delete"], {"ids": json.dumps(list(ids))}, _answers)


def pause(queue: str, *, schema: str) -> Statement[bool]:
    """Let workers take nothing from `queue`; True if it was not paused before."""
    return Statement(queries("control.sql", schema)["pause"], {"queue": queue}, bool)


def resume(queue: str, *, schema: str) -> Statement[bool]:
    """Let workers take from `queue` again; True if it was paused."""
    return Statement(queries("control.sql", schema)["resume"], {"queue": queue}, bool)


def get(ids: Sequence[int], *, schema: str) -> Statement[list[Job]]:
    """Jobs by id, newest first; ids that do not exist are left out."""
    params = {"ids": json.dumps(list(ids))}
    return Statement(queries("control.sql", schema)["get"], params, lambda rows: _all(rows, Job))


def match(filter: Filter, *, limit: int, before: int | None, schema: str) -> Statement[list[int]]:
    """Ids of at most `limit` jobs by filter, newest first, below the id `before`."""
    params = {
        "state": filter.state.value if filter.state else None, "kind": filter.kind, "queue": filter.queue,
        "tenant": filter.tenant, "tag": filter.tag, "since": filter.since.isoformat() if filter.since else None,
        "until": filter.until.isoformat() if filter.until else None, "limit": limit, "before": before,
    }  # fmt: skip
    query = "match_live" if filter.state in LIVE else "match"
    return Statement(queries("control.sql", schema)[query], params, lambda rows: [int(str(row[0])) for row in rows])


def queues(*, schema: str) -> Statement[list[QueueStats]]:
    """Every queue, by name."""
    return Statement(queries("control.sql", schema)["queues"], {}, lambda rows: _all(rows, QueueStats))


def workers(*, schema: str) -> Statement[list[WorkerInfo]]:
    """Every worker of the last day, by id."""
    return Statement(queries("control.sql", schema)["workers"], {}, lambda rows: _all(rows, WorkerInfo))


def stats(*, schema: str) -> Statement[dict[str, int]]:
    """What waits and runs now, by state, over all queues; of final states the outcomes since the beginning."""
    return Statement(queries("control.sql", schema)["stats"], {}, lambda rows: _one(rows[0], dict[str, int]))


def _answers(rows: Sequence[Row]) -> dict[int, str]:
    return {int(str(row[0])): str(row[1]) for row in rows}


def _one(row: Row, shape: type[T]) -> T:
    """Read a row that is one JSON document. Strict is off: intervals come as seconds, empty lists as null."""
    document = _document(str(row[0]))
    if shape is Job:
        document["errors"] = document["errors"] or []
        document["tags"] = document["tags"] or []
    return msgspec.convert(document, shape, strict=False)


def _document(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:  # a number that PostgreSQL keeps and Python can't: it is shown as infinite
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= INT_DIGITS else float(digits))


def _all(rows: Sequence[Row], shape: type[T]) -> list[T]:
    return [_one(row, shape) for row in rows]
