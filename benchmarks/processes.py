"""Processes beside the harness: workers, and what they write down.

Guarantees: a worker is handed over when it has registered and listens; at the end of its block it is gone.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg

from benchmarks import machine
from benchmarks.app import HOLD, RECORD, STAMPS

WORKER = (sys.executable, "-m", "pgqueue", "worker", "-A", "benchmarks.app:q", "--log-level", "error")
ROOT = Path(__file__).parent.parent
START_SECONDS = 30.0
STOP_SECONDS = 30.0
LISTENERS = """
select count(*) from pg_stat_activity
where datname = current_database() and application_name = 'pgqueue listen' and state = 'idle'
"""
READY = f"""
select exists (select from pgqueue.worker where pid = %(pid)s and stopped_at is null)
  and ({LISTENERS}) >= %(listeners)s
"""


class WorkerProcess:
    """A worker in a process of its own.

    pid  of the process that claims
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid

    def seconds(self) -> float:
        """Processor seconds it has used; 0 where that can't be told."""
        return machine.process_seconds(self.pid) or 0.0

    def kill(self) -> float:
        """kill -9; returns the monotonic time of it."""
        instant = time.monotonic()
        self.process.kill()
        self.process.wait()
        return instant


class Stamps:
    """A file to which tasks append when they were entered."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def size(self) -> int:
        """How many there are."""
        return self.path.stat().st_size // RECORD.size

    def read(self, first: int = 0, last: int | None = None) -> list[tuple[int, float]]:
        """(number, monotonic seconds) in the order of writing: of all, or of those between two places."""
        with self.path.open("rb") as file:
            file.seek(first * RECORD.size)
            written = file.read(((self.size() if last is None else last) - first) * RECORD.size)
        return [(number, instant / 1e9) for number, instant in RECORD.iter_unpack(written)]

    def wait(self, count: int, *, within: float) -> list[tuple[int, float]]:
        """Wait for `count` of them. Raises TimeoutError."""
        deadline = time.monotonic() + within
        while self.size() < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.size()} of {count} jobs were entered after {within:.0f} s")
            time.sleep(0.01)
        return self.read()


@contextlib.contextmanager
def stamps() -> Iterator[Stamps]:
    """An empty file for stamps."""
    with tempfile.TemporaryDirectory(prefix="pgqueue-bench-") as directory:
        path = Path(directory) / "stamps"
        path.touch()
        yield Stamps(path)


@contextlib.contextmanager
def worker(
    dsn: str, *, queues: str = "default=20", lease: float = 15.0, stamps: Stamps | None = None, hold: float = 0.0
) -> Iterator[WorkerProcess]:
    """A worker on that database for the length of the block."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PGQUEUE_")}
    environment |= {"PGQUEUE_DSN": dsn, HOLD: str(hold)}
    if stamps is not None:
        environment[STAMPS] = str(stamps.path)
    listeners = _listeners(dsn)
    process = _spawn([*WORKER, "-q", queues, "--lease", str(lease)], environment)
    try:
        _await_ready(dsn, process, listeners + 1)
        yield WorkerProcess(process)
    finally:
        _end(process)


def python(module: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a module of this package as a program that reads and writes lines."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str], line: str | None = None) -> str:
    """The next line that a program of `python` says.

    raises  RuntimeError if it is another one, or the program has ended
    """
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    if not said or (line is not None and said != line):
        raise RuntimeError(f"{process.args!r} said {said!r} and ended")
    return said


def say(process: subprocess.Popen[str]) -> None:
    """Send it the line that it waits for."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def _spawn(command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL)


def _listeners(dsn: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as conn:
        row = conn.execute(LISTENERS).fetchone()
    assert row is not None
    return int(row[0])


def _await_ready(dsn: str, process: subprocess.Popen[bytes], listeners: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    with psycopg.connect(dsn, autocommit=True) as conn:
        while conn.execute(READY, {"pid": process.pid, "listeners": listeners}).fetchone() != (True,):
            if process.poll() is not None:
                raise RuntimeError(f"the worker ended with code {process.returncode} before it was ready")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the worker was not ready after {START_SECONDS:.0f} s")
            time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
