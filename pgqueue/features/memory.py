"""What an attempt remembers for the next one of its job, and how it is marked in transactions of the caller's.

Guarantees: what a call refuses leaves no trace; a checkpoint that was damaged is one clear error, and stays as it is.
Never: sends anything; a mark is a Statement for whoever has the connection.
"""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from pgqueue.core.checkpoint import NULL, Checkpoint
from pgqueue.errors import StepError
from pgqueue.extension import Here, Keeper
from pgqueue.store import jobs
from pgqueue.store.statement import Statement
from pgqueue.tasks.json_text import decode_as, encode_value


class Marks(Protocol):
    """How an attempt writes about its job in a transaction of the caller's."""

    def mark(self, part: str, name: str, text: str) -> Statement[None]:
        """A step is "done" with its result, or has come as far as its "cursor" says."""

    def complete(self, result: str | None, patch: str | None) -> Statement[None]:
        """The job is done; `patch` is what the attempt has to add to its checkpoint."""


@dataclass(frozen=True, slots=True)
class FencedMarks:
    """The marks of an attempt that a worker runs. `began`: when, by this process' monotonic clock."""

    fence: jobs.Fence
    schema: str
    began: float

    def mark(self, part: str, name: str, text: str) -> Statement[None]:
        return jobs.set_checkpoint(self.fence, part, name, text, schema=self.schema)

    def complete(self, result: str | None, patch: str | None) -> Statement[None]:
        elapsed = time.monotonic() - self.began
        return jobs.complete_tx(self.fence, result, elapsed, patch, schema=self.schema)


class _Stored(msgspec.Struct):
    done: dict[str, msgspec.Raw] = {}
    cursor: dict[str, msgspec.Raw] = {}
    data: dict[str, msgspec.Raw] = {}


class _Metadata(msgspec.Struct):
    pgqueue: _Stored = msgspec.field(default_factory=_Stored)


_read_metadata = msgspec.json.Decoder(_Metadata).decode


class Memory:
    """What one attempt remembers. All contexts of an attempt share it.

    title       how errors name the job
    metadata    that of a job that has a checkpoint, else None
    completing  complete_tx was called: the job's row tells whether that was committed
    on_change   called with each addition, as a patch; "{}" before a mark is sent. None: nobody wants to know
    """

    def __init__(
        self,
        title: str,
        marks: Marks,
        metadata: str | None,
        on_change: Callable[[str], None] | None = None,
    ) -> None:
        self._marks = marks
        self._on_change = on_change
        self._checkpoint = _load(metadata, title)
        self._result_type: Any = Any
        self._has_ended = False
        self.completing = False

    @classmethod
    def of(cls, here: Here) -> Memory:
        """That of an attempt that a worker runs."""
        job = here.job
        marks = FencedMarks(jobs.Fence(here.install, job.id, job.claim, here.lease), here.schema, here.began)
        metadata = job.metadata if job.has_checkpoint else None
        return cls(f"job {job.id} ({job.kind})", marks, metadata, here.note)

    @property
    def checkpoint(self) -> Checkpoint:
        """The steps so far.

        raises  StepError if what is stored was damaged
        """
        if isinstance(self._checkpoint, StepError):
            raise self._checkpoint
        return self._checkpoint

    def patch(self) -> str | None:
        """What this attempt adds, as JSON; None for nothing."""
        if isinstance(self._checkpoint, StepError) or not self._checkpoint.is_changed:
            return None
        return self._checkpoint.patch()

    def close(self) -> str | None:
        """The attempt has ended: `patch`, to which nothing is added any more."""
        self._has_ended = True
        return self.patch()

    def enter(self, name: str, result_type: Any, *, has_cursor: bool) -> bool:
        """Begin a step; False: it was finished before.

        result_type  what its result has to be readable as
        """
        self._refuse_afterwards(f"step {name!r}")
        is_new = self.checkpoint.enter(name, has_cursor=has_cursor)
        if is_new:
            self._result_type = result_type
        return is_new

    def leave(self, name: str, result: str | None) -> None:
        """The running step has ended: with a result, or (None) not as it should."""
        checkpoint = self.checkpoint
        is_recorded = result is not None and not checkpoint.row_decides
        checkpoint.leave(result)
        if is_recorded:
            self._tell("done", name, str(result))

    def set_cursor(self, value: object) -> None:
        """The running step has come so far."""
        self._refuse_afterwards("set_cursor")
        checkpoint = self.checkpoint
        name = checkpoint.cursor_step("set_cursor")
        text = encode_value(f"step {name!r}: its cursor", value).decode()
        checkpoint.set_cursor(text)
        self._tell("cursor", name, text)

    def save(self, values: Mapping[str, object]) -> None:
        """Add to the data."""
        self._refuse_afterwards("save")
        changes = {key: encode_value(f"save: {key}", value).decode() for key, value in values.items()}
        self.checkpoint.save(changes)
        for key, text in changes.items():
            self._tell("data", key, text)

    def mark_done(self, result: object) -> Statement[None]:
        """The running step is done, says a row in the caller's transaction."""
        text = self.result_text(self.checkpoint.current_step("set_step_tx"), result)
        name = self.checkpoint.done_in_tx(text)
        self._announce("{}")
        return self._marks.mark("done", name, text)

    def result_text(self, name: str, result: object) -> str:
        """The running step's result as it is stored.

        raises  InvalidJob for what JSON can't say, StepError for what would not be of the annotated type again
        """
        what = f"step {name!r}: its result"
        text = encode_value(what, result).decode()
        if self._result_type is not Any:
            remembered(text, self._result_type, what)
        return text

    def mark_cursor(self, value: object) -> Statement[None]:
        """The running step has come so far, says a row in the caller's transaction."""
        name = self.checkpoint.cursor_step("set_step_cursor_tx")
        text = encode_value(f"step {name!r}: its cursor", value).decode()
        self.checkpoint.cursor_in_tx(text)
        self._announce("{}")
        return self._marks.mark("cursor", name, text)

    def completion(self, result: object) -> Statement[None]:
        """The job's completion in the caller's transaction."""
        text = None if result is None else encode_value("result", result).decode()
        self.completing = True
        self._announce('{"completing":true}')
        return self._marks.complete(text, self.patch())

    def _tell(self, part: str, name: str, text: str) -> None:
        if self._on_change is not None:
            self._on_change(msgspec.json.encode({part: {name: msgspec.Raw(text.encode())}}).decode())

    def _announce(self, note: str) -> None:
        if self._on_change is not None:
            self._on_change(note)

    def _refuse_afterwards(self, what: str) -> None:
        if self._has_ended:
            raise StepError(f"{what}: the attempt that this context belongs to has ended")
        if self.completing:
            raise StepError(f"{what} after complete_tx: what a job adds, it adds before it is completed")


class _Note(_Stored):
    completing: bool = False


_read_note = msgspec.json.Decoder(_Note).decode


class RemoteMemory:
    """The memory of an attempt in another process, from what it has noted: it holds even if that process was killed."""

    def __init__(self) -> None:
        self.completing = False
        self._parts = _Stored({}, {}, {})

    def add(self, note: bytes) -> None:
        """Take in one patch."""
        found = _read_note(note)
        self.completing = self.completing or found.completing
        self._parts.done |= found.done
        self._parts.cursor |= found.cursor
        self._parts.data |= found.data
        for name in found.done:
            self._parts.cursor.pop(name, None)

    def patch(self) -> str | None:
        """All that was noted, as one patch; None for nothing."""
        parts = self._parts
        return msgspec.json.encode(parts).decode() if parts.done or parts.cursor or parts.data else None

    def close(self) -> str | None:
        """The attempt has ended."""
        return self.patch()


def noted(keeper: Keeper, note: bytes) -> None:
    """The context of an attempt in another process has remembered something."""
    if not isinstance(keeper.leftover, RemoteMemory):
        keeper.leftover = RemoteMemory()
    keeper.leftover.add(note)


def remembered(text: str, type: Any, what: str) -> Any:
    """The value that was stored as `text`, of the type that the code has for it now; a null is None for every type.

    raises  StepError if it is none, naming `what` it is
    """
    if text == NULL:  # what set_step_tx gives a step unless it is told a result
        return None
    try:
        return decode_as(text, type)
    except (TypeError, ValueError) as error:
        name = type.__name__ if isinstance(type, builtins.type) else type
        raise StepError(
            f"{what} can't be read as {name}: {error}; if other code has stored it, give the step another name,"
            " or start the job over with retry(restart=True)"
        ) from error


def _load(metadata: str | None, title: str) -> Checkpoint | StepError:
    if metadata is None:
        return Checkpoint()
    try:
        stored = _read_metadata(metadata).pgqueue
    except msgspec.DecodeError as error:
        return StepError(
            f"{title}: its checkpoint can't be read ({error}); repair the key pgqueue of its metadata, or start it over"
            " with retry(restart=True)"
        )
    return Checkpoint(_texts(stored.done), _texts(stored.cursor), _texts(stored.data))


def _texts(values: Mapping[str, msgspec.Raw]) -> dict[str, str]:
    return {name: bytes(value).decode() for name, value in values.items()}
