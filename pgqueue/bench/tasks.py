"""The tasks of a run: one that does nothing, and one that says when it was started.

The process that enqueues and the workers make them from the same Setup, which workers find in their environment.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Literal

import msgspec

from pgqueue import PgQueue
from pgqueue.tasks.task import Task

VARIABLE = "BENCH_OF_PGQUEUE"  # PGQUEUE_* are settings
NOOP = "pgqueue.bench.noop"
STAMP = "pgqueue.bench.stamp"


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What workers have to know."""

    queue: str
    schema: str
    pooled: bool
    executor: Literal["async", "thread", "process"]


@dataclass(frozen=True, slots=True)
class Tasks:
    """`stamp` returns nanoseconds of the monotonic clock, which all processes of a machine share."""

    noop: Task[[int], None]
    stamp: Task[[int], int]


def noop(number: int) -> None:
    """Nothing, as a plain function."""


async def anoop(number: int) -> None:
    """Nothing, as a coroutine."""


def stamp(number: int) -> int:
    """Say when it was started."""
    return time.monotonic_ns()


async def astamp(number: int) -> int:
    """Say when it was started."""
    return time.monotonic_ns()


def define(q: PgQueue, setup: Setup) -> Tasks:
    """Make the tasks in `q`."""
    if setup.executor == "async":
        return Tasks(
            q.task(name=NOOP, queue=setup.queue)(anoop),  # type: ignore[arg-type]  # what it returns is awaited
            q.task(name=STAMP, queue=setup.queue)(astamp),  # type: ignore[arg-type]
        )
    return Tasks(
        q.task(name=NOOP, queue=setup.queue, executor=setup.executor)(noop),
        q.task(name=STAMP, queue=setup.queue, executor=setup.executor)(stamp),
    )


def environment(setup: Setup) -> dict[str, str]:
    """The variable by which workers learn of a run."""
    return {VARIABLE: msgspec.json.encode(setup).decode()}


def from_environment() -> Setup:
    """The run that this worker was started for."""
    return msgspec.json.decode(os.environ[VARIABLE], type=Setup)
