"""How tests wait for other processes: for what they say, and for their end. Never for time."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from pathlib import Path

LONG = 20.0  # seconds; a test that waits so long has failed


class Ear:
    """Hears the lines that other processes write to a named pipe."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR)  # so that it never ends
        self._heard = b""

    def hear(self, timeout: float = LONG) -> str:
        """The next line. Raises TimeoutError."""
        while b"\n" not in self._heard:
            if not select.select([self._fd], [], [], timeout)[0]:
                raise TimeoutError(f"nothing was said; before that: {self._heard!r}")
            self._heard += os.read(self._fd, 4096)
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def close(self) -> None:
        os.close(self._fd)


def say(path: str, what: object) -> None:
    """Write a line to an Ear, from any process."""
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, f"{what}\n".encode())
    os.close(fd)


def has_ended(pid: int, timeout: float = LONG) -> bool:
    """Wait for the end of any process."""
    with suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            return bool(select.select([fd], [], [], timeout)[0])
        finally:
            os.close(fd)
    return True
