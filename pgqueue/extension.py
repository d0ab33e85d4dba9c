"""How what stands above the engine reaches into a running attempt without the engine knowing it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

# Makes the context of the attempt that is running here; set by executors, read by pgqueue.current_context().
context_here: ContextVar[Callable[[], object]] = ContextVar("pgqueue_context")
