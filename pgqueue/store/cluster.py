"""Workers among themselves as statements: register, pulse, rescue, stage, tidy. Pure: building one does no I/O."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from pgqueue.core.states import Verb
from pgqueue.store.arrays import int8_array, text_array
from pgqueue.store.statement import Row, Statement, queries


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a worker process is. `queues` maps names to concurrency, `lease` is in seconds."""

    name: str
    host: str
    pid: int
    version: str
    lease: float
    queues: dict[str, int]
    kinds: Sequence[str]


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a heartbeat found.

    beating   the worker's row is there; False: it was pruned, revive it
    orphans_in  seconds until a silent worker's lease runs out (negative: rescue its jobs); None: there is none
    due_in    seconds until the next scheduled job is due (negative: overdue); None: there is none
    busy      this worker's queues that have work for it; suspect: those with jobs to run alone; paused: those paused
    requests  claimed jobs that somebody wants cancelled or stopped
    closed    which of the doubtful jobs are not open any more
    """

    beating: bool
    orphans_in: float | None
    due_in: float | None
    busy: Sequence[str]
    suspect: Sequence[str]
    paused: Sequence[str]
    requests: dict[int, Verb]
    closed: Sequence[int]


def _identity(identity: Identity) -> dict[str, object]:
    return {
        "name": identity.name, "host": identity.host, "pid": identity.pid, "version": identity.version,
        "lease": identity.lease, "queues": json.dumps(identity.queues), "kinds": json.dumps(list(identity.kinds)),
    }  # fmt: skip


def register(identity: Identity, *, schema: str) -> Statement[tuple[int, UUID]]:
    """A new worker; answers with its id, and with that of the installation."""
    query = queries("cluster.sql", schema)["register"]
    return Statement(query, _identity(identity), lambda rows: (_first(rows), UUID(str(rows[0][1]))))


def revive(worker: int, identity: Identity, *, schema: str) -> Statement[int]:
    """Bring back the row of a worker that was away."""
    return Statement(queries("cluster.sql", schema)["revive"], _identity(identity) | {"worker": worker}, _first)


def pulse(
    worker: int, *, running: int, queues: Sequence[str], kinds: Sequence[str], doubtful: Sequence[int], schema: str
) -> Statement[Pulse]:
    """Renew the worker's lease and look around; `doubtful` are ids that may have been closed behind our back."""
    params = {
        "worker": worker,
        "running": running,
        "queues": text_array(queues),
        "kinds": text_array(kinds),
        "doubtful": int8_array(doubtful),
    }
    return Statement(_query("pulse", schema), params, _decode_pulse)


def rescue(*, schema: str) -> Statement[tuple[int, int]]:
    """Take jobs from dead workers; answers with how many, and how many leases had to be left for later."""
    return Statement(_query("rescue", schema), {}, lambda rows: (_first(rows), int(str(rows[0][1]))))


def stage(limit: int, *, schema: str) -> Statement[int]:
    """Make due jobs available, at most `limit`; answers with how many were due."""
    return Statement(_query("stage", schema), {"n": limit}, _first)


def sign_off(worker: int, *, schema: str) -> Statement[None]:
    """The worker has stopped in order."""
    return Statement(_query("sign_off", schema), {"worker": worker}, lambda rows: None)


def tidy(*, schema: str) -> Statement[int]:
    """Fold sums and forget what is old; answers with how many sums were folded."""
    return Statement(_query("tidy", schema), {}, _first)


def _query(name: str, schema: str) -> str:
    return queries("cluster.sql", schema)[name]


def _first(rows: Sequence[Row]) -> int:
    return int(str(rows[0][0]))


def _decode_pulse(rows: Sequence[Row]) -> Pulse:
    beating, orphans_in, due_in, busy, suspect, paused, requests, closed = rows[0]
    wishes = {int(id): Verb(action) for id, action in json.loads(str(requests)).items()}
    return Pulse(beating, orphans_in, due_in, busy, suspect, paused, wishes, closed)  # type: ignore[arg-type]
