"""The file that stands for a job's row where there is no server.

Guarantees: it is replaced as a whole, never changed in place; what `save` has returned from outlives a crash of the
machine; two runs can't have the same file open.
Never: guesses. A file that is of something else is refused.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from pgqueue.core.states import State
from pgqueue.errors import ConfigError, PgqueueError
from pgqueue.extension import Parted
from pgqueue.features.durable import replace

FORMAT = 1


class LocalState(msgspec.Struct, kw_only=True):
    """A job that runs without a server.

    id          negative: no job of a queue has it
    attempt     failures so far
    checkpoint  {"done": {}, "cursor": {}, "data": {}}, each by name
    error       type, message and traceback of the last failure
    """

    format: int = FORMAT
    id: int
    kind: str
    args: msgspec.Raw
    state: State = State.AVAILABLE
    attempt: int = 0
    checkpoint: Parted = {}
    result: Any = None
    error: dict[str, str | None] | None = None


def new_state(kind: str, args: str) -> LocalState:
    """A job that has not begun."""
    return LocalState(id=-1 - secrets.randbits(62), kind=kind, args=msgspec.Raw(args.encode()))


class StateFile:
    """One such file. `note` stands beside it while there may be marks in a database (see `features.local_marks`)."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))  # it is replaced, and the link to it is not to be
        self.note = self.path.with_name(f"{self.path.name}.marks")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from using it.

        raises  ConfigError if somebody does, or if it can't be written
        """
        lock = self.path.with_name(f"{self.path.name}.lock")
        try:
            file = lock.open("w")
        except OSError as error:
            raise ConfigError(f"{lock}: can't be written: {error.strerror}; name another state file") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"{self.path}: another run uses it; wait for its end, or name another file"
                ) from error
            yield

    def load(self) -> LocalState | None:
        """What it says; None if there is no file.

        raises  ConfigError if it is not of a job
        """
        try:
            text = msgspec.json.format(self.path.read_bytes(), indent=-1)  # limits are for what has no spaces
            state = msgspec.json.decode(text, type=LocalState)
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
            raise ConfigError(f"{self.path}: is not the state of a job ({error}); name another file") from error
        if state.format != FORMAT:
            raise ConfigError(f"{self.path}: was written by another release (format {state.format}); name another file")
        return state

    def save(self, state: LocalState) -> None:
        """Replace it.

        raises  PgqueueError: what it said before stands
        """
        try:
            replace(self.path, msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
        except OSError as error:
            raise PgqueueError(f"{self.path}: can't be written: {error.strerror}; it stays as it was") from error
