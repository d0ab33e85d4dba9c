"""pgqueue: a transactional job queue in PostgreSQL.

Names are loaded when they are first used: the command line's help and a process that only declares tasks do not wait
for the database driver.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgqueue.context import AsyncContext, Context, current_context
    from pgqueue.core.draft import EnqueuedJob
    from pgqueue.core.job import Job
    from pgqueue.core.retry import Retry
    from pgqueue.core.signals import Cancel, Discard, RetryAfter, Snooze
    from pgqueue.core.states import State
    from pgqueue.db.drivers import register_adapter
    from pgqueue.errors import JobFailed, JobNotFound, LeaseLost, PgqueueError, StepError, WaitTimeout
    from pgqueue.queue import PgQueue
    from pgqueue.worker import Worker

__version__ = "0.1.0"
__all__ = [
    "AsyncContext",
    "Cancel",
    "Context",
    "Discard",
    "EnqueuedJob",
    "Job",
    "JobFailed",
    "JobNotFound",
    "LeaseLost",
    "PgQueue",
    "PgqueueError",
    "Retry",
    "RetryAfter",
    "Snooze",
    "State",
    "StepError",
    "WaitTimeout",
    "Worker",
    "current_context",
    "register_adapter",
]

_HOMES = {
    "context": ("AsyncContext", "Context", "current_context"),
    "core.draft": ("EnqueuedJob",),
    "core.job": ("Job",),
    "core.retry": ("Retry",),
    "core.signals": ("Cancel", "Discard", "RetryAfter", "Snooze"),
    "core.states": ("State",),
    "db.drivers": ("register_adapter",),
    "errors": ("JobFailed", "JobNotFound", "LeaseLost", "PgqueueError", "StepError", "WaitTimeout"),
    "queue": ("PgQueue",),
    "worker": ("Worker",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'pgqueue' has no attribute {name!r}")
    value = getattr(import_module(f"pgqueue.{_HOME[name]}"), name)
    globals()[name] = value
    return value
