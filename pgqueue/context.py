"""What a running task may ask about itself.

`Context` is for plain functions, `AsyncContext` for coroutines; a task gets one as its first parameter if that is
annotated with either, or calls `current_context()`. Nothing here waits for the database but `connection()`, which lends
one, and the `*_tx` calls, which use the caller's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import msgspec

from pgqueue.core.signals import Cancel
from pgqueue.db.pool import AsyncConnection, Connection
from pgqueue.errors import LeaseLost, PgqueueError
from pgqueue.extension import Here, Mode, context_here
from pgqueue.features.http import AsyncHttp, Http
from pgqueue.features.steps import AsyncSteps, Steps


class Interrupt(Protocol):
    """What the context sees of the attempt it belongs to."""

    @property
    def reason(self) -> str | None:
        """timeout, cancel, stop, shutdown, lost; None while nobody wants the attempt to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJob:
    """The job that runs: what was known of it when it was claimed.

    attempt  the number of this attempt, from 1
    """

    id: int
    kind: str
    queue: str
    attempt: int
    priority: int
    tenant: str | None
    metadata: Mapping[str, object]


class BaseContext:
    """The part that both colours share. Use it only in the attempt it was made for."""

    __pgqueue_context__ = True

    def __init__(self, job: RunningJob, interrupt: Interrupt, here: Here) -> None:
        self.job = job
        self._interrupt = interrupt
        self._here = here
        self.log = logging.LoggerAdapter(
            logging.getLogger(f"pgqueue.job.{job.kind}"),
            {"job_id": job.id, "kind": job.kind, "queue": job.queue, "attempt": job.attempt},
        )

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self.job.attempt

    @property
    def mode(self) -> Mode:
        """Who runs it: a "worker", "local" for one without a server, or a "test"."""
        return self._here.mode

    @property
    def tenant(self) -> str | None:
        """The tenant the job belongs to."""
        return self.job.tenant

    @property
    def properties(self) -> Mapping[str, object]:
        """The metadata given when the job was enqueued."""
        return self.job.metadata

    @property
    def cancel_requested(self) -> bool:
        """Someone wants the job cancelled."""
        return self._interrupt.reason == "cancel"

    @property
    def stop_requested(self) -> bool:
        """Someone wants the job stopped, or the worker is stopping."""
        return self._interrupt.reason in ("stop", "shutdown")

    def raise_if_cancelled(self) -> None:
        """End the attempt here if anything wants it to end: call it in loops that a thread can't be taken out of.

        raises  Cancel, or LeaseLost if another worker may be running the job by now
        """
        reason = self._interrupt.reason
        if reason == "lost":
            raise LeaseLost(f"job {self.job.id}: another worker may be running it; this attempt ends")
        if reason is not None:
            raise Cancel(f"the attempt was asked to end: {reason}")

    def _check_time(self) -> None:
        """Before anything is begun. After a time-out, or without the lease, the next attempt may be at it."""
        if self._interrupt.reason in ("timeout", "lost"):
            self.raise_if_cancelled()


class Context(BaseContext, Steps, Http):
    """The context of a task that is a plain function."""

    def __init__(
        self,
        job: RunningJob,
        interrupt: Interrupt,
        here: Here,
        *,
        lend: Callable[[], AbstractContextManager[Connection]],
    ) -> None:
        super().__init__(job, interrupt, here)
        self._lend = lend

    def connection(self) -> AbstractContextManager[Connection]:
        """A connection to the queue's database, in autocommit mode, for the length of a `with` block.

        A statement on it may take 30 s; `set local statement_timeout = 0` lifts that for a transaction.
        raises  Cancel after the attempt's time-out, LeaseLost if another worker may be running the job by now
        """
        self._check_time()
        return self._lend()


class AsyncContext(BaseContext, AsyncSteps, AsyncHttp):
    """The context of a task that is a coroutine."""

    def __init__(
        self,
        job: RunningJob,
        interrupt: Interrupt,
        here: Here,
        *,
        lend: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
    ) -> None:
        super().__init__(job, interrupt, here)
        self._lend = lend

    def connection(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection to the queue's database, in autocommit mode, for the length of an `async with` block.

        raises  as that of `Context`
        """
        self._check_time()
        return self._lend()


def current_context() -> Context | AsyncContext:
    """The context of the task that is running here: `Context` in a plain function, `AsyncContext` in a coroutine.

    raises  PgqueueError outside of a task
    """
    make = context_here.get(None)
    if make is None:
        raise PgqueueError("there is no context here: current_context() works only inside a running task")
    context = make()
    assert isinstance(context, Context | AsyncContext)
    return context


def read_metadata(text: str | None) -> Mapping[str, object]:
    """The application's part of a job's metadata; empty if it can't be read: not worth a failed attempt."""
    if not text:
        return {}
    try:
        metadata = msgspec.json.decode(text, type=dict[str, object])
    except msgspec.DecodeError:
        return {}
    metadata.pop("pgqueue", None)
    return metadata
