"""How features join the engine without the engine knowing them.

A feature is a value with any of these: `around` wraps each attempt, `settle` adds statements to what an outcome
commits, `services` run beside the worker, `observe` sees events. `app.py` lists the features, one line each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Protocol

# Makes the context of the attempt that is running here; set by executors, read by pgqueue.current_context().
context_here: ContextVar[Callable[[], object]] = ContextVar("pgqueue_context")


class Around(Protocol):
    """Middleware around one attempt."""

    def __call__(self, attempt: object, call_next: Callable[[], Awaitable[object]], /) -> Awaitable[object]:
        """Do something, await `call_next()`, do something, and return its value."""
