"""How what stands above the engine reaches into a running attempt without the engine knowing it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Protocol

# Makes the context of the attempt that is running here; set by executors, read by pgqueue.current_context().
context_here: ContextVar[Callable[[], object]] = ContextVar("pgqueue_context")


class Memory(Protocol):
    """What an attempt leaves to the next one of its job."""

    @property
    def completing(self) -> bool:
        """The attempt has completed its job in a transaction of its own, if that was committed."""

    def patch(self) -> str | None:
        """What is to be merged into the job's metadata when the attempt has ended, as JSON; None for nothing."""
