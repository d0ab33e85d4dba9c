"""The composition root: the one place that knows the engine, the features and the application's tasks together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable
from uuid import UUID

import msgspec

from pgqueue.context import AsyncContext, BaseContext, Context, Interrupt, RunningJob, read_metadata
from pgqueue.db.connect import is_outage, resolve_dsn, way_around
from pgqueue.db.failure import DatabaseError
from pgqueue.db.pool import AsyncPool, Pool, PoolOptions
from pgqueue.db.schema import gate, installed_version
from pgqueue.db.session import Session
from pgqueue.engine.child import ChildJob, Flags
from pgqueue.engine.lane import Attempt
from pgqueue.engine.worker import Worker, WorkerOptions
from pgqueue.errors import ConfigError
from pgqueue.extension import Here
from pgqueue.features.memory import noted
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

    worker = Worker(options, tasks=tasks, make_context=make_context, on_note=noted)
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
    here = Here(
        job=attempt.job, lease=attempt.lease.id, install=install, schema=parts.schema, keeper=attempt,
        began=attempt.started_at,
    )  # fmt: skip
    return context(here, attempt.lane.queue, attempt, parts, is_async=attempt.task.executor == "async")


def child_context(child: ChildJob, flags: Flags) -> BaseContext:
    """The context of an attempt in a process of its own, made there."""
    here = Here(
        job=child.job, lease=child.lease, install=UUID(str(child.settings["install"])),
        schema=str(child.settings["schema"]), keeper=flags, began=flags.began,
        note=lambda patch: flags.note(msgspec.Raw(patch.encode())),
    )  # fmt: skip
    return context(here, child.queue, flags, pools_of(child), is_async=child.is_async)


def context(here: Here, queue: str, interrupt: Interrupt, pools: Pools, *, is_async: bool) -> BaseContext:
    """A context of either colour."""
    job = here.job
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
        return AsyncContext(running, interrupt, here, lend=pools.apool.connection)
    return Context(running, interrupt, here, lend=pools.pool.connection)


@dataclass(frozen=True, slots=True)
class _OwnPools:
    pool: Pool
    apool: AsyncPool


def pools_of(child: ChildJob) -> Pools:
    """What a process of its own can lend: the pools of the task's queue object there, or else of its own."""
    sender: object = child.sender
    if isinstance(sender, Pools):
        return sender
    return _pools(str(child.settings["dsn"]), bool(child.settings["pooled"]))


@cache
def _pools(dsn: str, pooled: bool) -> Pools:
    options = PoolOptions(pooled=pooled)
    return _OwnPools(Pool(dsn, options=options), AsyncPool(dsn, options=options))
