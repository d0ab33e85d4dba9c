"""Contexts of attempts that need no database: what one remembers is handed to the next by hand."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any
from uuid import UUID

from pgqueue import AsyncContext, Context
from pgqueue.context import RunningJob
from pgqueue.core.job import Claimed
from pgqueue.extension import Here, Leftover, Lent


class Job:
    """A job whose attempts are begun and ended here.

    stored  what it has of its steps, as the database would have it
    reason  why its attempt is to end
    """

    def __init__(self) -> None:
        self.stored: dict[str, dict[str, Any]] = {}
        self.reason: str | None = None
        self.leftover: Leftover | None = None
        self.lent: Lent | None = None

    def context(self) -> Context:
        """That of a new attempt of a plain function."""
        return Context(self._running(), self, self._here(), lend=lambda: nullcontext(None))  # type: ignore[arg-type]

    def acontext(self) -> AsyncContext:
        """That of a new attempt of a coroutine."""
        return AsyncContext(self._running(), self, self._here(), lend=lambda: nullcontext(None))  # type: ignore[arg-type]

    def end(self) -> dict[str, dict[str, Any]]:
        """The attempt has ended; what is stored now."""
        assert self.leftover is not None
        patch = json.loads(self.leftover.close() or "{}")
        for part in ("done", "cursor", "data"):
            self.stored.setdefault(part, {}).update(patch.get(part, {}))
        for name in self.stored["done"]:
            self.stored["cursor"].pop(name, None)
        self.leftover = None
        return {part: values for part, values in self.stored.items() if values}

    def _here(self) -> Here:
        metadata = json.dumps({"pgqueue": self.stored}) if self.stored else None
        job = Claimed(
            id=1, claim=0, kind="job", args="{}", metadata=metadata, attempt=0, max_attempts=None, crashes=0,
            timeout=None, expires_at=None, tenant=None, priority=0,
        )  # fmt: skip
        return Here(job=job, lease=1, install=UUID(int=0), schema="pgqueue", keeper=self)

    def _running(self) -> RunningJob:
        return RunningJob(id=1, kind="job", queue="q", attempt=1, priority=0, tenant=None, metadata={})
