"""The composition root: the one place that knows the engine, the features and the application's tasks together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable
from uuid import UUID

import msgspec

from pgqueue.context import AsyncContext, BaseContext, Context, Interrupt, RunningJob, read_metadata
from pgqueue.core.job import Claimed
from pgqueue.db.connect import is_outage, resolve_dsn, way_around
from pgqueue.db.failure import DatabaseError
from pgqueue.db.pool import AsyncPool, Pool, PoolOptions
from pgqueue.db.schema import gate, installed_version
from pgqueue.db.session import Session
from pgqueue.engine.child import ChildJob, Flags
from pgqueue.engine.lane import Attempt
from pgqueue.engine.worker import Worker, WorkerOptions
from pgqueue.errors import ConfigError
from pgqueue.features.steps import FencedMarks, Marks, Memory, RemoteMemory
from pgqueue.store.jobs import Fence
from pgqueue.tasks.registry import Registry


@runtime_checkable
class Pools(Protocol):
    """Who has connections to lend."""

    @property
    def pool(self) -> Pool:
        """For plain functions."""

    @property
    def apool(self) -> AsyncPool:
        """For coroutines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a worker needs of a queue object."""

    given_dsn: str | None
    given_direct_dsn: str | None
    pooled: bool
    schema: str
    tasks: Registry
    pool: Pool
    apool: AsyncPool

    def dsn(self) -> str:
        """Where to claim and complete."""
        return resolve_dsn(self.given_dsn)

    def direct_dsn(self) -> str | None:
        """Where to LISTEN; None behind a pooler without a way around it."""
        direct_dsn = way_around(self.given_dsn, self.given_direct_dsn)
        if direct_dsn:
            return resolve_dsn(direct_dsn)
        return None if self.pooled else self.dsn()


async def assemble(parts: Parts, options: WorkerOptions) -> Worker:
    """A worker of these parts, in this event loop. Its database may be away, but not of the wrong version.

    raises  ConfigError without tasks, or behind a pooler that was not named; SchemaMismatch
    """
    tasks = {task.name: task for task in parts.tasks}
    if not tasks:
        raise ConfigError("there are no tasks to run: is the module that defines them imported?")
    await _check_schema(options)

    def make_context(attempt: Attempt) -> BaseContext:
        return context_of(attempt, parts, worker.install)

    worker = Worker(options, tasks=tasks, make_context=make_context, on_note=_noted)
    return worker


async def _check_schema(options: WorkerOptions) -> None:
    session = Session(options.dsn, role="start", pooled=options.pooled)
    try:
        gate(await session.run(installed_version(options.schema)), schema=options.schema)
    except DatabaseError as error:
        if not is_outage(error):
            raise
    finally:
        await session.close()


def context_of(attempt: Attempt, parts: Parts, install: UUID) -> BaseContext:
    """The context of an attempt in the worker's own process, in the colour of its task."""

    def memory() -> Memory:
        if not isinstance(attempt.memory, Memory):
            fence = Fence(install, attempt.job.id, attempt.job.claim, attempt.lease.id)
            attempt.memory = _memory(attempt.job, FencedMarks(fence, parts.schema))
        return attempt.memory

    return _context(attempt.job, attempt.lane.queue, attempt, parts, memory, is_async=attempt.task.executor == "async")


def child_context(child: ChildJob, flags: Flags) -> BaseContext:
    """The context of an attempt in a process of its own, made there."""
    sender: object = child.sender  # the task's own queue object in that process
    pools = sender if isinstance(sender, Pools) else _pools_of(child.settings)

    def memory() -> Memory:
        if not isinstance(flags.memory, Memory):
            fence = Fence(UUID(str(child.settings["install"])), child.job.id, child.job.claim, child.lease)
            marks = FencedMarks(fence, str(child.settings["schema"]))
            flags.memory = _memory(child.job, marks, lambda patch: flags.note(msgspec.Raw(patch.encode())))
        return flags.memory

    return _context(child.job, child.queue, flags, pools, memory, is_async=child.is_async)


def _noted(attempt: Attempt, note: bytes) -> None:
    """The context of an attempt in another process has remembered something."""
    if not isinstance(attempt.memory, RemoteMemory):
        attempt.memory = RemoteMemory()
    attempt.memory.add(note)


def _memory(job: Claimed, marks: Marks, on_change: Callable[[str], None] = lambda patch: None) -> Memory:
    return Memory(f"job {job.id} ({job.kind})", marks, job.metadata if job.has_checkpoint else None, on_change)


def _context(
    job: Claimed, queue: str, interrupt: Interrupt, pools: Pools, memory: Callable[[], Memory], *, is_async: bool
) -> BaseContext:
    running = RunningJob(
        id=job.id,
        kind=job.kind,
        queue=queue,
        attempt=job.attempt + 1,
        priority=job.priority,
        tenant=job.tenant,
        metadata=read_metadata(job.metadata),
    )
    if is_async:
        return AsyncContext(running, interrupt, memory=memory, lend=pools.apool.connection)
    return Context(running, interrupt, memory=memory, lend=pools.pool.connection)


@dataclass(frozen=True, slots=True)
class _OwnPools:
    pool: Pool
    apool: AsyncPool


def _pools_of(settings: Mapping[str, object]) -> Pools:
    """Pools for a process whose task belongs to no queue object there."""
    return _pools(str(settings["dsn"]), bool(settings["pooled"]))


@cache
def _pools(dsn: str, pooled: bool) -> Pools:
    options = PoolOptions(pooled=pooled)
    return _OwnPools(Pool(dsn, options=options), AsyncPool(dsn, options=options))
