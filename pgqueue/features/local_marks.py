"""Marks of a job that runs without a worker: `*_tx` calls commit with the caller's work there too.

They go into the queue's own database. That there are any, and where, is noted in a file beside the job's state before
the first is sent: whoever resumes the job knows that it has to ask that database, even if everything was killed in
between.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import msgspec

from pgqueue.core.checkpoint import NULL
from pgqueue.extension import Parted
from pgqueue.features.durable import replace
from pgqueue.store import local
from pgqueue.store.statement import Statement

COMPLETED = ""  # the name under which the job's own result is marked; no step can have it


class LocalMarks:
    """The marks of one local job; see `features.memory.Marks`.

    job      negative
    note     the file that says that there are marks
    install  asks the queue's database which it is; errors if it can't be reached or has no schema
    """

    def __init__(self, job: int, note: Path, install: Callable[[], UUID], *, schema: str) -> None:
        self._job = job
        self._note = note
        self._ask = install
        self._schema = schema
        self._install: UUID | None = None

    def mark(self, part: str, name: str, text: str) -> Statement[None]:
        return self._mark({part: {name: msgspec.Raw(text.encode())}})

    def complete(self, result: str | None, patch: str | None) -> Statement[None]:
        parts = {} if patch is None else msgspec.json.decode(patch, type=Parted)
        done = {COMPLETED: msgspec.Raw((result or NULL).encode())}
        return self._mark({"done": done, "data": parts.get("data", {})})

    def _mark(self, patch: Parted) -> Statement[None]:
        if self._install is None:
            self._install = self._ask()
            replace(self._note, str(self._install).encode())
        return local.mark(self._install, self._job, msgspec.json.encode(patch).decode(), schema=self._schema)
