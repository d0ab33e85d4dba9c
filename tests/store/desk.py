"""A worker's desk: one connection of the engine's kind, and the statements as short verbs.

Guarantees: every verb is one statement from pgqueue/store, as the engine sends it; time is moved by changing rows,
never by sleeping.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

from pgqueue.core.draft import Args, Draft, EnqueuedJob
from pgqueue.core.job import Claimed, Job
from pgqueue.core.states import State, Verb
from pgqueue.db.session import adapt
from pgqueue.store import cluster, control, jobs
from pgqueue.store.jobs import LOWEST_MARK, Acks, Batch, Fence
from pgqueue.store.statement import Statement

T = TypeVar("T")
KINDS = ["k", "other", "third"]
STARTED = 1_700_000_000_000_000  # microseconds; every attempt takes a second
FINISHED = STARTED + 1_000_000

_leases = itertools.count(1)

# Everything short-lived: empty once all jobs are final, except for the tally.
SIDE_TABLES = ("ready", "waiting", "lease", "suspect", "request", "unique_key", "checkpoint")


def json_args(texts: Sequence[str]) -> Args:
    return Args(texts[0] if len(texts) == 1 else f"[{','.join(texts)}]", len(texts))


class Ack(NamedTuple):
    """A row of `Acks`."""

    id: int
    claim: int
    lease: int
    started_us: int = STARTED
    finished_us: int = FINISHED


def columns(acks: Sequence[Ack]) -> Acks:
    return Acks(*zip(*sorted(acks), strict=True)) if acks else Acks([], [], [], [], [])


@dataclass
class Held:
    """A lease and the jobs that were claimed under it."""

    lease: int
    jobs: list[Claimed]
    batch: Batch = field(repr=False)

    @property
    def ids(self) -> list[int]:
        return [job.id for job in self.jobs]

    def acks(self, chosen: Iterable[Claimed] | None = None) -> list[Ack]:
        return [Ack(job.id, job.claim, self.lease) for job in (self.jobs if chosen is None else chosen)]


class Desk:
    """One connection in autocommit mode; `worker` registers itself when it is first needed."""

    def __init__(self, dsn: str, *, schema: str = "pgqueue", autocommit: bool = True) -> None:
        self.conn: psycopg.Connection[TupleRow] = psycopg.connect(dsn, autocommit=autocommit)
        self.conn.prepare_threshold = 0
        adapt(self.conn)
        self.schema = schema
        self._worker: int | None = None

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        self.conn.close()

    @cached_property
    def install(self) -> UUID:
        """Which database this is."""
        return UUID(str(self.value("select install_id from pgqueue.meta")))

    @property
    def pid(self) -> int:
        return self.conn.info.backend_pid

    def run(self, statement: Statement[T]) -> T:
        with self.conn.cursor(binary=True) as cursor:
            cursor.execute(statement.sql, statement.params)
            return statement.decode(cursor.fetchall())

    def sql(self, query: str, *params: object) -> list[TupleRow]:
        """Rows of a query of the test's own; `pgqueue.` in it means the desk's schema."""
        cursor = self.conn.execute(query.replace("pgqueue.", f'"{self.schema}".').encode(), params or None)
        return cursor.fetchall() if cursor.description else []

    def value(self, query: str, *params: object) -> object:
        return self.sql(query, *params)[0][0]

    # enqueue

    def insert(self, *drafts: Mapping[str, object]) -> list[EnqueuedJob]:
        """The jobs of each draft by a statement of its own; `args` is one job's, or a list of them."""
        answers: list[EnqueuedJob] = []
        for draft in drafts:
            fields: dict[str, Any] = {"kind": "k", **draft}
            args = fields.pop("args", {})
            if "metadata" in fields:
                fields["metadata"] = json.dumps(fields["metadata"])
            texts = [json.dumps(each) for each in (args if isinstance(args, list) else [args])]
            answers += self.run(jobs.enqueue(Draft(**fields), json_args(texts), schema=self.schema))
        return answers

    def enqueue(self, count: int = 1, **draft: object) -> list[int]:
        """`count` equal jobs in one statement; their ids."""
        args = [draft.get("args", {})] * count
        return [each.id for each in self.insert({**draft, "args": args})]

    def enqueue_one(self, **draft: object) -> int:
        return self.enqueue(1, **draft)[0]

    # workers

    @property
    def worker(self) -> int:
        if self._worker is None:
            self._worker = self.register()
        return self._worker

    def register(self, name: str = "w", *, lease: float = 3600) -> int:
        identity = cluster.Identity(
            name=name, host="h", pid=1, version="0", lease=lease, queues={"default": 1}, kinds=KINDS
        )
        return self.run(cluster.register(identity, schema=self.schema))[0]

    def silence(self, worker: int | None = None) -> None:
        """The worker's heartbeat is overdue."""
        worker = worker or self.worker
        self.sql("update pgqueue.worker set seen_at = seen_at - interval '1 year' where id = %s", worker)
        self._worker = None if worker == self._worker else self._worker

    def rescue(self) -> tuple[int, int]:
        return self.run(cluster.rescue(schema=self.schema))

    def stage(self, limit: int = 5000) -> int:
        return self.run(cluster.stage(limit, schema=self.schema))

    def make_due(self) -> int:
        """The time of everything that waits for one comes; answers as `stage`."""
        self.sql(
            """update pgqueue.waiting set due = clock_timestamp() - interval '1 s' where ctid = any (array(
                 select ctid from pgqueue.waiting where due < 'infinity' for update skip locked))"""
        )
        return self.stage()

    def die(self) -> tuple[int, int]:
        """The worker dies and is swept up."""
        self.silence()
        return self.rescue()

    # claim

    def new_lease(self, worker: int | None = None) -> int:
        return (worker or self.worker) << 32 | next(_leases)

    def claim(
        self,
        limit: int = 500,
        *,
        queue: str = "default",
        kinds: Sequence[str] = KINDS,
        priorities: Sequence[int] = (0,),
        worker: int | None = None,
        lease: int | None = None,
        chunks: int = 500,
    ) -> Held:
        worker = worker or self.worker
        lease = lease or self.new_lease(worker)
        batch = self.run(
            jobs.claim(
                queue, worker=worker, lease=lease, kinds=kinds, chunks=chunks, limit=limit, schema=self.schema,
                marks=dict.fromkeys(sorted(priorities, reverse=True), LOWEST_MARK),
            )
        )  # fmt: skip
        if batch.voids:
            self.run(jobs.unvoid(queue, batch.voids, schema=self.schema))
        if not batch.jobs and batch.marks:  # nothing but void entries: the lease holds nothing
            self.run(jobs.give_back([], whole=[lease], part=[], schema=self.schema))
        return Held(lease, list(batch.jobs), batch)

    def claim_suspect(self, queue: str = "default") -> Held:
        lease = self.new_lease()
        batch = self.run(jobs.claim_suspect(queue, worker=self.worker, lease=lease, kinds=KINDS, schema=self.schema))
        return Held(lease, list(batch.jobs), batch)

    # checkpoints; values are Python's

    def fence(self, held: Held, job: int = 0) -> Fence:
        """Of the `job`-th of the held jobs."""
        return Fence(self.install, held.jobs[job].id, held.jobs[job].claim, held.lease)

    def set_checkpoint(self, held: Held, part: str, name: str, value: object, *, job: int = 0) -> None:
        """As from the transaction of the `job`-th of the held jobs."""
        self.run(jobs.set_checkpoint(self.fence(held, job), part, name, json.dumps(value), schema=self.schema))

    def complete_tx(self, held: Held, result: object = None, *, job: int = 0, patch: object = None) -> None:
        result, patch = (None if each is None else json.dumps(each) for each in (result, patch))
        self.run(jobs.complete_tx(self.fence(held, job), result, 1.0, patch, schema=self.schema))

    def keep(self, held: Held, patch: object) -> list[int]:
        """The same patch for all held jobs; the ids that were kept."""
        entries = [{"id": job.id, "claim": job.claim, "lease": held.lease, "patch": patch} for job in held.jobs]
        return self.run(jobs.keep(json.dumps(entries), schema=self.schema))

    # endings; `part`: the lease has jobs left

    def complete(self, held: Held, chosen: Iterable[Claimed] | None = None, *, part: bool = False) -> list[int]:
        """The ids that were lost."""
        chosen = held.jobs if chosen is None else list(chosen)
        if not chosen:
            return []
        whole, parts = ([], [held.lease]) if part else ([held.lease], [])
        return self.run(jobs.complete(columns(held.acks(chosen)), whole=whole, part=parts, schema=self.schema))

    def settle(
        self, held: Held, state: str, chosen: Iterable[Claimed] | None = None, *, part: bool = False, **more: object
    ) -> dict[int, bool]:
        rows = [outcome(job, held.lease, state, **more) for job in (held.jobs if chosen is None else chosen)]
        whole, parts = ([], [held.lease]) if part else ([held.lease], [])
        return self.run(jobs.settle(json.dumps(rows), whole=whole, part=parts, schema=self.schema))

    def fail(self, held: Held, *, delay: float = 60, **more: object) -> dict[int, bool]:
        return self.settle(held, "retryable", delay=delay, attempt_cost=1, error={"type": "E", "message": "m"}, **more)  # type: ignore[arg-type]

    def give_back(self, held: Held, chosen: Iterable[Claimed] | None = None, *, part: bool = False) -> int:
        back = [(job.id, job.claim, held.lease) for job in (held.jobs if chosen is None else chosen)]
        whole, parts = ([], [held.lease]) if part else ([held.lease], [])
        return self.run(jobs.give_back(back, whole=whole, part=parts, schema=self.schema))

    # verbs

    def apply(self, verb: Verb, *ids: int) -> dict[int, str]:
        """The verb with plain arguments: in an hour, priority 5."""
        return self.run(verb_statement(verb, ids, schema=self.schema))

    def ask(self, verb: Verb, id: int) -> str:
        return self.apply(verb, id)[id]

    # looking

    def job(self, id: int) -> Job:
        (found,) = self.run(control.get([id], schema=self.schema))
        return found

    def metadata(self, id: int, *, of: str = "jobs") -> object:
        """As the view shows it, or as the row of table `job` has it."""
        return self.value(f"select metadata from pgqueue.{of} where id = %s", id)

    def state(self, id: int) -> str:
        return str(self.value("select state from pgqueue.jobs where id = %s", id))

    def states(self) -> dict[str, int]:
        return {str(s): int(n) for s, n in self.sql("select state, count(*) from pgqueue.jobs group by state")}

    def snapshot(self) -> list[TupleRow]:
        """Every row of every table that an attempt may write, as text."""
        tables = ("job", "attempt", "tally", *SIDE_TABLES)
        return [
            (table, *row) for table in tables for row in self.sql(f"select t::text from pgqueue.{table} t order by 1")
        ]

    def leftovers(self) -> dict[str, int]:
        """How many rows the short-lived tables still have; those without are left out."""
        counts = {name: int(str(self.value(f"select count(*) from pgqueue.{name}"))) for name in SIDE_TABLES}
        return {name: count for name, count in counts.items() if count}

    def tallied(self) -> dict[str, int]:
        return {str(s): int(n) for s, n in self.sql("select state, sum(jobs) from pgqueue.tally group by state")}


def outcome(job: Claimed, lease: int, state: str, **more: object) -> dict[str, object]:
    """One element of settle's document."""
    return {
        "id": job.id, "claim": job.claim, "lease": lease, "state": state, "attempt_cost": 0, "crash_cost": 0,
        "started_at": "2023-11-14T22:13:20Z", "finished_at": "2023-11-14T22:13:21Z", **more,
    }  # fmt: skip


def verb_statement(verb: Verb, ids: Sequence[int], *, schema: str = "pgqueue") -> Statement[dict[int, str]]:
    match verb:
        case Verb.CANCEL | Verb.STOP:
            return control.cancel(ids, action=verb, reason=None, schema=schema)
        case Verb.RETRY:
            return control.retry(ids, restart=False, schema=schema)
        case Verb.RESCHEDULE:
            return control.reschedule(ids, at=None, delay=timedelta(hours=1), schema=schema)
        case Verb.SET_PRIORITY:
            return control.set_priority(ids, priority=5, schema=schema)
        case Verb.DELETE:
            return control.delete(ids, schema=schema)


def bring_to(desk: Desk, state: State, **draft: object) -> int:
    """A job in `state`, by the shortest way through the statements."""
    if state in (State.PENDING, State.SCHEDULED):
        id = desk.enqueue_one(delay=3600, **draft)
        if state is State.PENDING:
            desk.sql("update pgqueue.waiting set state = 'pending', due = 'infinity' where job_id = %s", id)
        return id
    id = desk.enqueue_one(**draft)
    if state is State.AVAILABLE:
        return id
    if state in (State.CANCELLED, State.STOPPED):
        desk.ask(Verb.CANCEL if state is State.CANCELLED else Verb.STOP, id)
        return id
    held = desk.claim(priorities=[int(str(draft.get("priority", 0)))])
    assert held.ids == [id]
    if state is State.COMPLETED:
        assert desk.complete(held) == []
    elif state is State.DISCARDED:
        desk.settle(held, "discarded", attempt_cost=1, error={"type": "E", "message": "m"})
    elif state is State.RETRYABLE:
        desk.fail(held)
    return id


def wait_until(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    """Until another connection has got somewhere; asked of the server over and over."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"


def wait_until_blocked(watcher: Desk, pid: int) -> None:
    """Until that backend waits for a lock that somebody holds."""
    wait_until(lambda: bool(watcher.value("select pg_blocking_pids(%s) <> '{}'", pid)))
