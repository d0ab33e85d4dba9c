"""PgQueue: the handle through which an application meets its queue. Opens nothing before it is needed.

Every verb has two colours: `verb` on sync connections (or the sync pool), `averb` on async ones. With `conn=` it takes
part in the caller's transaction; without, it has one of its own. Both colours build the same statement; a test holds
their names, parameters and docstrings together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack, overload

from pgqueue.app import Parts
from pgqueue.context import AsyncContext, Context
from pgqueue.core.draft import Args, Draft, EnqueuedJob
from pgqueue.core.job import Job
from pgqueue.core.retry import Retry
from pgqueue.core.states import FINAL, State, Verb
from pgqueue.db.adapt import arun, run
from pgqueue.db.pool import AsyncPool, Pool, PoolOptions
from pgqueue.errors import InvalidArguments, InvalidJob, JobFailed, JobNotFound, WaitTimeout
from pgqueue.selection import FilterOptions, Selection, make_filter, rescheduling
from pgqueue.store import control, jobs
from pgqueue.store.control import QueueStats, WorkerInfo
from pgqueue.store.statement import SCHEMA, Statement, check_schema
from pgqueue.tasks.door import Options, check_delay, check_id, check_name, check_priority, check_reason, nearest
from pgqueue.tasks.json_text import encode_object
from pgqueue.tasks.registry import Registry
from pgqueue.tasks.task import ContextTask, Executor, Task, apply_options, draft_by_name
from pgqueue.worker import Worker, WorkerSettings

if TYPE_CHECKING:  # it brings the executors
    from pgqueue.local import LocalJob

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
LIMIT = 1000


class PgQueue:
    """A queue in a PostgreSQL database, and the tasks that run its jobs.

    dsn         where: a DSN or URL; None: PGQUEUE_DSN, DATABASE_URL or libpq's PG* variables
    schema      the schema that `pgqueue migrate` made
    pooled      there is a PgBouncer in transaction mode behind `dsn`: nothing is prepared, no session state is used
    direct_dsn  a way around the pooler, for LISTEN and migrations; None: PGQUEUE_DIRECT_DSN, for LISTEN, if `dsn` is
                None too
    pool_size   connections at most, for verbs without `conn`
    raises      ConfigError for a malformed DSN at the first use; ValueError for a schema name that can't be
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        schema: str = SCHEMA,
        pooled: bool = False,
        direct_dsn: str | None = None,
        pool_size: int = 4,
    ) -> None:
        self.dsn = dsn
        self.schema = check_schema(schema)
        self.pooled = pooled
        self.direct_dsn = direct_dsn
        self.tasks = Registry()
        options = PoolOptions(max_size=pool_size, pooled=pooled)
        self.pool = Pool(dsn, options=options)
        self.apool = AsyncPool(dsn, options=options)

    # Tasks -------------------------------------------------------------------------------------------------------

    @overload
    def task(self, fn: Callable[Concatenate[Context, P], R], /) -> ContextTask[Context, P, R]: ...
    @overload
    def task(self, fn: Callable[Concatenate[AsyncContext, P], R], /) -> ContextTask[AsyncContext, P, R]: ...
    @overload
    def task(self, fn: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: int = 0,
        retry: Retry | None = None,
        timeout: timedelta | float | None = None,
        executor: Executor | None = None,
        validate: Callable[..., object] | None = None,
        checkpoint_every: timedelta | float | None = 10.0,
    ) -> _Decorator: ...
    def task(self, *function: Callable[..., Any], **options: Any) -> Any:
        """Make a function a task: `@q.task`, or `@q.task(queue="mail", retry=Retry(max_attempts=8), timeout=60)`.

        name      the kind that is stored; the function's name unless given
        queue     where its jobs go; priority: higher runs first
        retry     how often and when a failed attempt is tried again
        timeout   seconds or a timedelta; an attempt that takes longer fails
        executor  "async", "thread" or "process"; coroutines run async and functions in threads unless told otherwise
        validate  called with the arguments before anything is sent; raises to refuse them
        checkpoint_every  seconds or a timedelta: make what a running attempt remembers (steps, cursors, data) durable
                  so often, for others to see and for the case that its worker is killed; None: when it ends
        """

        def decorate(function: Callable[..., Any]) -> Task[..., Any]:
            task: Task[..., Any] = Task(function, sender=self, **options)
            if task.takes_context:
                task = ContextTask(function, sender=self, **options)
            self.tasks.add(task)
            return task

        return decorate(*function) if function else decorate

    # Enqueue -----------------------------------------------------------------------------------------------------

    def enqueue(
        self,
        kind: str,
        args: Mapping[str, object] | None = None,
        *,
        conn: object | None = None,
        **options: Unpack[Options],
    ) -> EnqueuedJob:
        """Insert a job by the name of its task, which may live in another code base. A task known here checks `args`.

        raises  InvalidArguments, InvalidJob, InvalidConnection: before anything is sent
        """
        return self.send(*self._job(kind, args, options), conn)[0]

    async def aenqueue(
        self,
        kind: str,
        args: Mapping[str, object] | None = None,
        *,
        conn: object | None = None,
        **options: Unpack[Options],
    ) -> EnqueuedJob:
        """Insert a job by the name of its task, which may live in another code base. A task known here checks `args`.

        raises  InvalidArguments, InvalidJob, InvalidConnection: before anything is sent
        """
        return (await self.asend(*self._job(kind, args, options), conn))[0]

    def send(self, draft: Draft, args: Args, conn: object | None) -> list[EnqueuedJob]:
        """Insert jobs with these arguments, in one statement; what tasks do when they are enqueued."""
        return self._run(jobs.enqueue(draft, args, schema=self.schema), conn) if args.rows else []

    async def asend(self, draft: Draft, args: Args, conn: object | None) -> list[EnqueuedJob]:
        """Insert jobs with these arguments, in one statement; what tasks do when they are enqueued."""
        return await self._arun(jobs.enqueue(draft, args, schema=self.schema), conn) if args.rows else []

    def _job(self, kind: str, args: Mapping[str, object] | None, options: Options) -> tuple[Draft, Args]:
        task = self.tasks.find(kind)
        if task is None:
            return draft_by_name(kind, **options), Args(encode_object("args", args or {}))
        return apply_options(task.draft, options), Args(task.args_text((), args or {}))

    # Look --------------------------------------------------------------------------------------------------------

    def job(self, id: int, *, conn: object | None = None) -> Job:
        """One job. Raises JobNotFound."""
        return _only(self._run(control.get([check_id(id)], schema=self.schema), conn), id)

    async def ajob(self, id: int, *, conn: object | None = None) -> Job:
        """One job. Raises JobNotFound."""
        return _only(await self._arun(control.get([check_id(id)], schema=self.schema), conn), id)

    def jobs(
        self,
        *,
        limit: int = 100,
        before: int | None = None,
        conn: object | None = None,
        **filter: Unpack[FilterOptions],
    ) -> list[Job]:
        """Jobs by filter, newest first: at most `limit` (1..1000) with ids below `before`, for the next page."""
        ids = self._run(self._match(filter, limit, before), conn)
        return self._run(control.get(ids, schema=self.schema), conn)

    async def ajobs(
        self,
        *,
        limit: int = 100,
        before: int | None = None,
        conn: object | None = None,
        **filter: Unpack[FilterOptions],
    ) -> list[Job]:
        """Jobs by filter, newest first: at most `limit` (1..1000) with ids below `before`, for the next page."""
        ids = await self._arun(self._match(filter, limit, before), conn)
        return await self._arun(control.get(ids, schema=self.schema), conn)

    # Control ------------------------------------------------------------------------------------------------------

    def cancel(self, id: int, *, reason: str | None = None, conn: object | None = None) -> str:
        """End a job: `cancelled`; `requested` if it is running; `already <state>` if it is final; or `not found`."""
        return self._run(_ending(id, Verb.CANCEL, reason, self.schema), conn)[id]

    async def acancel(self, id: int, *, reason: str | None = None, conn: object | None = None) -> str:
        """End a job: `cancelled`; `requested` if it is running; `already <state>` if it is final; or `not found`."""
        return (
            await self._arun(
                _ending(id, Verb.CANCEL, reason, self.schema),
                conn,
            )
        )[id]

    def stop(self, id: int, *, reason: str | None = None, conn: object | None = None) -> str:
        """Park a job, to be resumed by `retry`: `stopped`, `requested`, `already <state>` or `not found`."""
        return self._run(_ending(id, Verb.STOP, reason, self.schema), conn)[id]

    async def astop(self, id: int, *, reason: str | None = None, conn: object | None = None) -> str:
        """Park a job, to be resumed by `retry`: `stopped`, `requested`, `already <state>` or `not found`."""
        return (await self._arun(_ending(id, Verb.STOP, reason, self.schema), conn))[id]

    def retry(self, id: int, *, restart: bool = False, conn: object | None = None) -> str:
        """Make a job that is final or waits for a time `available` now; `restart` drops its checkpoint.

        Or else: `already <state>`, `blocked by a live job with the same unique key`, `not found`.
        """
        return self._run(control.retry([check_id(id)], restart=restart, schema=self.schema), conn)[id]

    async def aretry(self, id: int, *, restart: bool = False, conn: object | None = None) -> str:
        """Make a job that is final or waits for a time `available` now; `restart` drops its checkpoint.

        Or else: `already <state>`, `blocked by a live job with the same unique key`, `not found`.
        """
        return (await self._arun(control.retry([check_id(id)], restart=restart, schema=self.schema), conn))[id]

    def reschedule(
        self, id: int, *, at: datetime | None = None, delay: timedelta | float | None = None, conn: object | None = None
    ) -> str:
        """Let a waiting job run at another time (aware datetime, or delay).

        Answers with its state then, `already <state>` if it does not wait, or `not found`.
        """
        return self._run(rescheduling(at, delay, self.schema)([check_id(id)]), conn)[id]

    async def areschedule(
        self, id: int, *, at: datetime | None = None, delay: timedelta | float | None = None, conn: object | None = None
    ) -> str:
        """Let a waiting job run at another time (aware datetime, or delay).

        Answers with its state then, `already <state>` if it does not wait, or `not found`.
        """
        return (await self._arun(rescheduling(at, delay, self.schema)([check_id(id)]), conn))[id]

    def set_priority(self, id: int, priority: int, *, conn: object | None = None) -> str:
        """Give a waiting job another priority: its state, `already <state>` if it does not wait, or `not found`."""
        return self._run(_prioritised(id, priority, self.schema), conn)[id]

    async def aset_priority(self, id: int, priority: int, *, conn: object | None = None) -> str:
        """Give a waiting job another priority: its state, `already <state>` if it does not wait, or `not found`."""
        return (await self._arun(_prioritised(id, priority, self.schema), conn))[id]

    def delete(self, id: int, *, conn: object | None = None) -> str:
        """Remove a job that is not running, with its history: `deleted`, `already running` or `not found`.

        `already <state>` if it changed to that at this moment: it is still there.
        """
        return self._run(control.delete([check_id(id)], schema=self.schema), conn)[id]

    async def adelete(self, id: int, *, conn: object | None = None) -> str:
        """Remove a job that is not running, with its history: `deleted`, `already running` or `not found`.

        `already <state>` if it changed to that at this moment: it is still there.
        """
        return (await self._arun(control.delete([check_id(id)], schema=self.schema), conn))[id]

    def where(self, **filter: Unpack[FilterOptions]) -> Selection:
        """The jobs that fit, for a verb on all of them: `q.where(kind="mail", state="discarded").retry()`."""
        return Selection(make_filter(filter), schema=self.schema, run=self._run, arun=self._arun)

    # Queues and workers -------------------------------------------------------------------------------------------

    def pause(self, queue: str, *, conn: object | None = None) -> bool:
        """Let workers take nothing from `queue`; running jobs go on. False: it was paused already."""
        return self._run(control.pause(check_name(queue, "queue"), schema=self.schema), conn)

    async def apause(self, queue: str, *, conn: object | None = None) -> bool:
        """Let workers take nothing from `queue`; running jobs go on. False: it was paused already."""
        return await self._arun(control.pause(check_name(queue, "queue"), schema=self.schema), conn)

    def resume(self, queue: str, *, conn: object | None = None) -> bool:
        """Let workers take from `queue` again. False: it was not paused."""
        return self._run(control.resume(check_name(queue, "queue"), schema=self.schema), conn)

    async def aresume(self, queue: str, *, conn: object | None = None) -> bool:
        """Let workers take from `queue` again. False: it was not paused."""
        return await self._arun(control.resume(check_name(queue, "queue"), schema=self.schema), conn)

    def queues(self, *, conn: object | None = None) -> list[QueueStats]:
        """Every queue with its counts, by name."""
        return self._run(control.queues(schema=self.schema), conn)

    async def aqueues(self, *, conn: object | None = None) -> list[QueueStats]:
        """Every queue with its counts, by name."""
        return await self._arun(control.queues(schema=self.schema), conn)

    def workers(self, *, conn: object | None = None) -> list[WorkerInfo]:
        """Every worker of the last day, by id."""
        return self._run(control.workers(schema=self.schema), conn)

    async def aworkers(self, *, conn: object | None = None) -> list[WorkerInfo]:
        """Every worker of the last day, by id."""
        return await self._arun(control.workers(schema=self.schema), conn)

    def stats(self, *, conn: object | None = None) -> dict[str, int]:
        """What waits and runs now, by state, over all queues; of final states the outcomes since the beginning.

        A job that was retried counts again with each outcome, and one that was deleted still.
        """
        return self._run(control.stats(schema=self.schema), conn)

    async def astats(self, *, conn: object | None = None) -> dict[str, int]:
        """What waits and runs now, by state, over all queues; of final states the outcomes since the beginning.

        A job that was retried counts again with each outcome, and one that was deleted still.
        """
        return await self._arun(control.stats(schema=self.schema), conn)

    # Wait ---------------------------------------------------------------------------------------------------------

    def wait(self, id: int, timeout: timedelta | float = 30.0, *, conn: object | None = None) -> Job:
        """The job once it is final; `timeout` is a timedelta or seconds, and the job is looked at once more at its end.

        conn    sees what others commit only outside a transaction or in one that is READ COMMITTED
        raises  WaitTimeout, JobNotFound; InvalidJob for a time-out that can't be
        """
        for pause in _pauses(id, timeout):
            job = self.job(id, conn=conn)
            if job.state in FINAL:
                return job
            time.sleep(pause)
        raise AssertionError("unreachable")

    async def await_(self, id: int, timeout: timedelta | float = 30.0, *, conn: object | None = None) -> Job:
        """The job once it is final; `timeout` is a timedelta or seconds, and the job is looked at once more at its end.

        conn    sees what others commit only outside a transaction or in one that is READ COMMITTED
        raises  WaitTimeout, JobNotFound; InvalidJob for a time-out that can't be
        """
        for pause in _pauses(id, timeout):
            job = await self.ajob(id, conn=conn)
            if job.state in FINAL:
                return job
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    def result(self, id: int, timeout: timedelta | float = 30.0, *, conn: object | None = None) -> object:
        """What the job returned, once it has. Otherwise as `wait`.

        raises  JobFailed if it ended without a result, WaitTimeout, JobNotFound; InvalidJob
        """
        return _result(self.wait(id, timeout, conn=conn))

    async def aresult(self, id: int, timeout: timedelta | float = 30.0, *, conn: object | None = None) -> object:
        """What the job returned, once it has. Otherwise as `wait`.

        raises  JobFailed if it ended without a result, WaitTimeout, JobNotFound; InvalidJob
        """
        return _result(await self.await_(id, timeout, conn=conn))

    # The rest -----------------------------------------------------------------------------------------------------

    def migrate(self, target: str = "head") -> str | None:
        """Bring the database's schema to `target`; returns its version. Safe to call from many processes at once.

        raises  ConfigError if there is a pooler in between and no `direct_dsn`
        """
        from pgqueue.db.schema import direct_dsn, migrate  # Alembic takes two seconds to import

        dsn = direct_dsn(self.dsn, self.direct_dsn, pooled=self.pooled)
        return migrate(dsn, schema=self.schema, target=target)

    def worker(
        self, queues: Mapping[str, int] | Sequence[str] | str = "default", **options: Unpack[WorkerSettings]
    ) -> Worker:
        """A worker for these queues: names with how many jobs run at once (10 unless given). See `Worker`."""
        return Worker(self._parts(), queues, options)

    def run_local(
        self, kind: str, args: Mapping[str, object] | None = None, *, state: Path | str, restart: bool = False
    ) -> LocalJob:
        """Run one attempt of a job here and now, without a worker; its checkpoint is kept in the file `state`.

        If that says how far an earlier attempt came, this one goes on from there; `restart` forgets it. Blocks.
        raises  InvalidArguments for an unknown kind, or arguments that don't fit; ConfigError if the file is in use, or
                of another job; Unreachable if it may have marks in a database that is away
        """
        from pgqueue.local import run_local

        task = self.tasks.find(kind)
        if task is None:
            raise InvalidArguments(f"there is no task {kind!r} here{nearest(kind, self.tasks.kinds())}")
        return run_local(self._parts(), task, task.args_text((), args or {}), path=Path(state), restart=restart)

    def _parts(self) -> Parts:
        return Parts(
            given_dsn=self.dsn, given_direct_dsn=self.direct_dsn, pooled=self.pooled, schema=self.schema,
            tasks=self.tasks, pool=self.pool, apool=self.apool,
        )  # fmt: skip

    def close(self) -> None:
        """Close the sync connections; a later use opens others."""
        self.pool.close()

    async def aclose(self) -> None:
        """Close all connections; a later use opens others."""
        self.pool.close()
        await self.apool.aclose()

    def _match(self, filter: FilterOptions, limit: int, before: int | None) -> Statement[list[int]]:
        if not 1 <= limit <= LIMIT:
            raise InvalidJob(f"limit {limit}: must be from 1 to {LIMIT}; ask for the next page with before=")
        return control.match(make_filter(filter), limit=limit, before=before, schema=self.schema)

    def _run(self, statement: Statement[T], conn: object | None) -> T:
        return self.pool.run(statement) if conn is None else run(conn, statement)

    async def _arun(self, statement: Statement[T], conn: object | None) -> T:
        return await (self.apool.arun(statement) if conn is None else arun(conn, statement))


def _only(found: list[Job], id: int) -> Job:
    if not found:
        raise JobNotFound(f"there is no job {id}")
    return found[0]


def _ending(id: int, verb: Verb, reason: str | None, schema: str) -> Statement[dict[int, str]]:
    return control.cancel([check_id(id)], action=verb, reason=check_reason(reason), schema=schema)


def _prioritised(id: int, priority: int, schema: str) -> Statement[dict[int, str]]:
    return control.set_priority([check_id(id)], priority=check_priority(priority), schema=schema)


def _pauses(id: int, timeout: timedelta | float) -> Iterator[float]:
    """How long to pause after each look: 5 ms, doubling to 250 ms, never beyond the end of the time.

    raises  WaitTimeout after the look that follows the end; InvalidJob before the first one
    """
    seconds = check_delay(timeout, "timeout")
    deadline = time.monotonic() + seconds
    pause = 0.005
    while (left := deadline - time.monotonic()) > 0:
        yield min(pause, left)
        pause = min(0.25, pause * 2)
    yield 0.0
    raise WaitTimeout(f"job {id} was not final after {seconds:g} s")


def _result(job: Job) -> object:
    if job.state is State.COMPLETED:
        return job.result
    last = f": {job.errors[-1].get('message')}" if job.errors else ""
    raise JobFailed(f"job {job.id} ({job.kind}) is {job.state}{last}")


class _Decorator(Protocol):
    @overload
    def __call__(self, fn: Callable[Concatenate[Context, P], R], /) -> ContextTask[Context, P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[AsyncContext, P], R], /) -> ContextTask[AsyncContext, P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...
