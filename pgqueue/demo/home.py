"""The directory of one demo: its server's data, its workers' logs, and a note of who is running in it.

Guarantees: whatever runs in it can be found and stopped later, by another process; a process is only ever signalled
if its command line shows that it is the one the note means. A directory with anything else in it is refused, not used.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from pgqueue.errors import ConfigError, ServerError

APPLICATION = "pgqueue.demo.stdlib:q"
NOTE = "demo.json"


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about a demo to those who come later.

    owner    the process that shows it
    kept     it has been shown, and was left running
    workers  the processes of its workers
    """

    owner: int
    kept: bool = False
    workers: list[int] = []


class Home:
    """One demo's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()

    def prepare(self) -> None:
        """Make the directory, or take it if it is empty.

        raises  ConfigError if something is in it, or it can't be made
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            if any(self.directory.iterdir()):
                raise ConfigError(f"{self.directory} is not empty: the demo needs a directory of its own")
        except OSError as error:
            raise ConfigError(f"can't use {self.directory}: {error.strerror}") from error

    def write(self, note: Note) -> None:
        unfinished = self.directory / f"{NOTE}.new"
        unfinished.write_bytes(msgspec.json.encode(note))
        unfinished.replace(self.directory / NOTE)

    def read(self) -> Note | None:
        """The note; None if there is no demo here."""
        try:
            return msgspec.json.decode((self.directory / NOTE).read_bytes(), type=Note)
        except (OSError, msgspec.MsgspecError):
            return None

    def server_pid(self) -> int | None:
        """The PostgreSQL that runs on the data in here, whoever started it."""
        data = self.directory / "data"
        try:
            pid = int((data / "postmaster.pid").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None
        return pid if str(data) in _command_of(pid) else None

    def stop(self) -> None:
        """End the workers, then the server."""
        note = self.read()
        end([pid for pid in (note.workers if note else []) if APPLICATION in _command_of(pid)], signal.SIGTERM)
        pid = self.server_pid()
        if pid is not None:
            end([pid], signal.SIGINT)  # a fast shutdown

    def remove(self) -> None:
        """Remove the directory; a process that is just ending may still be writing to it."""
        for _ in range(20):
            shutil.rmtree(self.directory, ignore_errors=True)
            if not self.directory.exists():
                return
            time.sleep(0.1)
        raise ServerError(f"could not remove all of {self.directory}: remove it yourself")


def temporary() -> Home:
    """A new directory for a demo that leaves nothing behind."""
    return Home(Path(tempfile.mkdtemp(prefix="pgqueue-demo-")))


def usual() -> Home:
    """Where `--keep` keeps it: in the user's cache, or for root where its server's account can go as well."""
    if os.name == "nt":
        cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif os.geteuid() == 0 and Path("/var/cache").is_dir():
        cache = Path("/var/cache")
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Home(cache / "pgqueue" / "demo")


def end(pids: Iterable[int], signum: signal.Signals, *, patience: float = 15.0) -> None:
    """Ask processes to end and wait until they have; the ones that do not within `patience` seconds are killed."""
    waiting = {pid: _command_of(pid) for pid in pids}
    for pid in waiting:
        _signal(pid, signum)
    deadline = time.monotonic() + patience
    while waiting:
        waiting = {pid: command for pid, command in waiting.items() if command and _command_of(pid) == command}
        if time.monotonic() > deadline:
            for pid in waiting:
                _signal(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            deadline += patience
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Is there such a process, whatever it does?"""
    return bool(_command_of(pid))


def _signal(pid: int, signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signum)


def _command_of(pid: int) -> str:
    """The command line of a process; empty if it has ended, even if nobody has taken notice of that yet."""
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    said = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S607
    return said.stdout.strip()
