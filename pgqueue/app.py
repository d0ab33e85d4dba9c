"""The composition root: the one place that knows the engine, the features and the application's tasks together."""

from __future__ import annotations

from dataclasses import dataclass

from pgqueue.context import AsyncContext, BaseContext, Context, RunningJob, read_metadata
from pgqueue.db.connect import is_outage, resolve_dsn
from pgqueue.db.failure import DatabaseError
from pgqueue.db.pool import AsyncPool, Pool
from pgqueue.db.schema import gate, installed_version
from pgqueue.db.session import Session
from pgqueue.engine.lane import Attempt
from pgqueue.engine.worker import Worker, WorkerOptions
from pgqueue.errors import ConfigError
from pgqueue.tasks.registry import Registry


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
        if self.given_direct_dsn is not None:
            return resolve_dsn(self.given_direct_dsn)
        return None if self.pooled else self.dsn()


async def assemble(parts: Parts, options: WorkerOptions) -> Worker:
    """A worker of these parts, in this event loop. Its database may be away, but not of the wrong version.

    raises  ConfigError without tasks, SchemaMismatch
    """
    tasks = {task.name: task for task in parts.tasks}
    if not tasks:
        raise ConfigError("there are no tasks to run: is the module that defines them imported?")
    await _check_schema(options)

    def make_context(attempt: Attempt) -> BaseContext:
        return context_of(attempt, parts)

    return Worker(options, tasks=tasks, make_context=make_context)


async def _check_schema(options: WorkerOptions) -> None:
    session = Session(options.dsn, role="start", pooled=options.pooled)
    try:
        gate(await session.run(installed_version(options.schema)), schema=options.schema)
    except DatabaseError as error:
        if not is_outage(error):
            raise
    finally:
        await session.close()


def context_of(attempt: Attempt, parts: Parts) -> BaseContext:
    """The context of an attempt, in the colour of its task."""
    job = attempt.job
    running = RunningJob(
        id=job.id, kind=job.kind, queue=attempt.lane.queue, attempt=job.attempt + 1, priority=job.priority,
        tenant=job.tenant, metadata=read_metadata(job.metadata),
    )  # fmt: skip
    if attempt.task.executor == "async":
        return AsyncContext(running, attempt, lend=parts.apool.connection)
    return Context(running, attempt, lend=parts.pool.connection)

