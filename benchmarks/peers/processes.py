"""A peer's programs as processes: its worker, and its producer that takes orders.

Guarantees: at the end of its block a process is gone, with all its children; when one fails, the error has the end of
what it wrote.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from benchmarks.peers.install import ROOT, clean
from benchmarks.peers.interface import Configuration, Environment
from benchmarks.processes import Stamps

STOP_SECONDS = 3.0
INSTALL_SECONDS = 60


class ProgramFailed(RuntimeError):
    """A peer's program ended by itself."""


class ProducerProcess:
    """Takes orders, one at a time."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log
        self._answer("be ready")

    def seconds(self, do: str, **order: int) -> float:
        """Order jobs to be enqueued; how long that took."""
        answer = json.loads(self._ordered(do, order))
        assert isinstance(answer, float)
        return answer

    def moments(self, do: str, **order: int) -> list[float]:
        """Order jobs to be enqueued; when each was acknowledged."""
        return [float(moment) for moment in json.loads(self._ordered(do, order))]

    def _ordered(self, do: str, order: dict[str, int]) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **order}) + "\n")
        self._process.stdin.flush()
        return self._answer(do)

    def _answer(self, to: str) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ProgramFailed(f"the producer ended when told to {to}: {_end_of(self._log)}")
        return line


class WorkerProcess:
    """Runs jobs until the end of its block."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    def check(self) -> None:
        """Raises ProgramFailed if it has ended."""
        if self._process.poll() is not None:
            raise ProgramFailed(f"the worker ended with code {self._process.returncode}: {_end_of(self._log)}")


def install(environment: Environment, target: str, way: Configuration) -> None:
    """Bring the peer's schema into its database."""
    done = subprocess.run(
        [*environment.command, "install"],
        env=_variables(environment, target, way),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
    )
    if done.returncode:
        raise ProgramFailed(f"the installation of its schema failed: {(done.stderr or done.stdout).strip()[-800:]}")


@contextlib.contextmanager
def producer(environment: Environment, target: str, way: Configuration) -> Iterator[ProducerProcess]:
    """A producer that is connected and waits for orders."""
    with _log() as (log, file):
        process = subprocess.Popen(
            [*environment.command, "produce"],
            env=_variables(environment, target, way),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            start_new_session=True,
        )
        try:
            yield ProducerProcess(process, log)
        finally:
            _end(process)


@contextlib.contextmanager
def worker(
    environment: Environment, target: str, way: Configuration, *, stamps: Stamps, stride: int
) -> Iterator[WorkerProcess]:
    """A worker; every `stride`-th job writes a stamp."""
    variables = _variables(environment, target, way)
    variables |= {"BENCH_STAMPS": str(stamps.path), "BENCH_STRIDE": str(stride)}
    with _log() as (log, file):
        process = subprocess.Popen(
            list(environment.worker or (*environment.command, "worker")),
            env=variables,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            yield WorkerProcess(process, log)
        finally:
            _end(process)


def _variables(environment: Environment, target: str, way: Configuration) -> dict[str, str]:
    settings = {"BENCH_TARGET": target, "BENCH_SETTINGS": json.dumps(way.settings)}
    return clean() | settings | {"PGQUEUE_DSN": target} | dict(environment.variables)


@contextlib.contextmanager
def _log() -> Iterator[tuple[Path, IO[bytes]]]:
    with tempfile.NamedTemporaryFile(prefix="pgqueue-peers-", suffix=".log") as file:
        yield Path(file.name), file.file


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace").strip()[-800:] or "it said nothing"


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL for it and whatever it started: its group is its own."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
