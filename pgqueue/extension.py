"""How what stands above the engine reaches into a running attempt without the engine knowing it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, Protocol
from uuid import UUID

import msgspec

from pgqueue.core.job import Claimed

# Makes the context of the attempt that is running here; set by executors, read by pgqueue.current_context().
context_here: ContextVar[Callable[[], object]] = ContextVar("pgqueue_context")

Mode = Literal["worker", "local", "test"]
Parted = dict[str, dict[str, msgspec.Raw]]  # a checkpoint, or a patch of one: its parts, each by name


class Leftover(Protocol):
    """What an attempt leaves to the next one of its job."""

    @property
    def completing(self) -> bool:
        """The attempt has completed its job in a transaction of its own, if that was committed."""

    def patch(self) -> str | None:
        """What is to be merged into the job's metadata, as a JSON object of objects; None for nothing."""

    def close(self) -> str | None:
        """The attempt has ended: the last `patch`. What is added from now on is refused."""


class Lent(Protocol):
    """What an attempt was lent until its function has ended: functions `close` it, coroutines `aclose` it."""

    def close(self) -> None: ...

    def aclose(self) -> Awaitable[None]: ...


class Keeper(Protocol):
    """Who keeps what the contexts of an attempt share: the attempt itself, or its stand-in in another process."""

    leftover: Leftover | None
    lent: Lent | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """What a feature may know of the attempt that its context belongs to.

    install  which database the job is in
    began    when the attempt did, by this process' monotonic clock
    mode     "worker", "local" (without a server) or "test"
    note     tells the worker, if that is another process, what has been remembered, as JSON; else None
    """

    job: Claimed
    lease: int
    install: UUID
    schema: str
    keeper: Keeper
    began: float = 0.0
    mode: Mode = "worker"
    note: Callable[[str], None] | None = None
