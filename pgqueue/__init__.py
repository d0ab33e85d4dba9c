"""pgqueue: a transactional job queue in PostgreSQL."""

from pgqueue.context import AsyncContext, Context, current_context
from pgqueue.core.draft import EnqueuedJob
from pgqueue.core.job import Job
from pgqueue.core.retry import Retry
from pgqueue.core.signals import Cancel, Discard, RetryAfter, Snooze
from pgqueue.core.states import State
from pgqueue.db.drivers import register_adapter
from pgqueue.errors import JobFailed, JobNotFound, LeaseLost, PgqueueError, WaitTimeout
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
    "WaitTimeout",
    "Worker",
    "current_context",
    "register_adapter",
]
