"""What a worker and a process of its own say to each other, and how: JSON values over a socket pair.

Guarantees: values arrive whole and in order; user data travels as the JSON it is stored as.
Never: pickle.
"""

from __future__ import annotations

import socket
from datetime import datetime

import msgspec
from msgspec import Raw

from pgqueue.engine.lane import Reason

CHUNK = 65536
_HEAD = 4  # bytes that say how long the value is


class Said(msgspec.Struct, frozen=True, array_like=True, tag=True, tag_field="said"):
    """The root of all that is said."""


class Boot(Said, frozen=True):
    """To the child, first: how its parent was started. `context` makes contexts, `settings` are for those."""

    argv: list[str]
    main_name: str | None
    main_path: str | None
    context: str
    settings: Raw


class Run(Said, frozen=True):
    """To the child: run this. `serial` numbers what it runs; all others: see `Claimed` and `Attempt`."""

    serial: int
    module: str
    qualname: str
    args: Raw
    metadata: Raw  # null if there is none
    id: int
    claim: int
    kind: str
    queue: str
    lease: int
    attempt: int
    max_attempts: int | None
    crashes: int
    timeout: float | None
    expires_at: datetime | None
    tenant: str | None
    priority: int


class Ask(Said, frozen=True):
    """To the child: end what you run. `final`: a SIGTERM comes with it."""

    serial: int
    reason: Reason
    final: bool = False


class Hello(Said, frozen=True):
    """To the parent, first: it has started."""


class Note(Said, frozen=True):
    """To the parent: something that the context of a running job has for it."""

    serial: int
    value: Raw


class Result(Said, frozen=True):
    """To the parent: it returned; null for nothing."""

    serial: int
    value: Raw


class Failure(Said, frozen=True):
    """To the parent: it raised. `signal` names the Signal that it was, with its values."""

    serial: int
    type: str
    message: str
    traceback: str | None
    signal: str | None = None
    delay: float | None = None
    reason: str | None = None


NULL = b"null"
ToChild = Boot | Run | Ask
ToParent = Hello | Note | Result | Failure

encode = msgspec.json.Encoder().encode


class Line:
    """One end of the socket pair. Whoever shares it between threads locks it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = bytearray()

    def send(self, value: Said) -> None:
        """Send a value; waits while the other end does not read.

        raises  OSError if the other end is gone
        """
        raw = encode(value)
        self.sock.sendall(len(raw).to_bytes(_HEAD, "big") + raw)

    def take(self) -> bytes | None:
        """The next value that has arrived whole, not decoded; None if there is none."""
        buffer = self._buffer
        if len(buffer) < _HEAD:
            return None
        end = _HEAD + int.from_bytes(buffer[:_HEAD], "big")
        if len(buffer) < end:
            return None
        raw = bytes(buffer[_HEAD:end])
        del buffer[:end]
        return raw

    def fill(self, flags: int = 0) -> bool:
        """Read what has arrived, waiting for something unless `flags` says otherwise; False: the other end is gone.

        raises  BlockingIOError with MSG_DONTWAIT if nothing has arrived
        """
        try:
            arrived = self.sock.recv(CHUNK, flags)
        except ConnectionResetError:
            return False
        self._buffer += arrived
        return bool(arrived)
