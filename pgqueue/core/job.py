"""A job, as a worker gets it and as people see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from pgqueue.core.states import State


class Claimed(NamedTuple):
    """A claimed job: what an attempt needs, as the claim's columns come (a tuple: it is made 100,000 times a second).

    claim     the fence of everything written about this attempt
    args      JSON text of an object; metadata likewise, None when empty
    attempt   attempts that failed before this one
    timeout   seconds; None: as the task says
    """

    id: int
    claim: int
    kind: str
    args: str
    metadata: str | None
    attempt: int
    max_attempts: int | None
    crashes: int
    timeout: float | None
    expires_at: datetime | None
    tenant: str | None
    priority: int

    @property
    def has_checkpoint(self) -> bool:
        """Has an attempt before left something to this one?"""
        return self.metadata is not None and '"pgqueue"' in self.metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the relation `pgqueue.jobs` shows it. Times are aware; `duration` is of the last attempt."""

    id: int
    kind: str
    queue: str
    state: State
    args: Mapping[str, object]
    metadata: Mapping[str, object]
    result: object
    errors: Sequence[Mapping[str, object]]
    attempt: int
    max_attempts: int | None
    crashes: int
    priority: int
    created_at: datetime
    scheduled_at: datetime
    started_at: datetime | None
    finalized_at: datetime | None
    duration: timedelta | None
    worker: str | None
    timeout: timedelta | None
    expires_at: datetime | None
    unique_key: str | None
    parent_id: int | None
    tenant: str | None
    tags: Sequence[str]
    checkin: str | None
    request: str | None
