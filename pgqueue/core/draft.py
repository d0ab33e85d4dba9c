"""Jobs that are not inserted yet: checked values, ready to be sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """All of a job to enqueue but its arguments. Whoever makes one has checked every value (`tasks.door`).

    delay            seconds from the database's now(); at most one of `delay` and `scheduled_at` is given
    scheduled_at     aware; expires_at likewise
    timeout          seconds
    metadata         JSON text of an object
    """

    kind: str
    queue: str = "default"
    priority: int = 0
    delay: float | None = None
    scheduled_at: datetime | None = None
    max_attempts: int | None = None
    timeout: float | None = None
    expires_at: datetime | None = None
    unique_key: str | None = None
    tags: Sequence[str] = ()
    metadata: str | None = None
    tenant: str | None = None
    parent_id: int | None = None

    @property
    def has_options(self) -> bool:
        """Is there more to it than what every task has?"""
        return (
            self.delay is not None or self.scheduled_at is not None or self.expires_at is not None
            or self.unique_key is not None or bool(self.tags) or self.metadata is not None or self.tenant is not None
            or self.parent_id is not None
        )  # fmt: skip


class Args(NamedTuple):
    """The arguments of jobs that are enqueued together.

    text  JSON: an object for one row, else an array of so many objects
    """

    text: str
    rows: int = 1


@dataclass(frozen=True, slots=True)
class EnqueuedJob:
    """What an enqueue answers.

    inserted  False: a job with the same unique_key was already there, and `id` is that one's
    """

    id: int
    inserted: bool
    kind: str
    queue: str
