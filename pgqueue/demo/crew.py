"""The worker processes of a demo, and who starts another when one ends.

Guarantees: each is a real `pgqueue worker`, started as a user would start it and with nobody else's settings; it dies
with the demo, even a killed one, unless it is to be kept.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pgqueue.demo.home import APPLICATION, end
from pgqueue.engine.death import how_it_ended
from pgqueue.engine.spawn import spawn_worker
from pgqueue.errors import PgqueueError

QUEUES = "index=4,words=8,summary=2,import=1"
LEASE = 8  # seconds; a killed worker's jobs go on after that
GRACE = 5
QUICK = 5.0  # seconds; a worker that fails sooner has a reason that starting it again will hardly change
PATIENCE = 5  # such ends in a row


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    process: subprocess.Popen[bytes]
    started: float
    quick_deaths: int = 0


class Crew:
    """`count` worker processes, with their logs in `directory`: demo-1, demo-2, ..., and on when they are replaced."""

    def __init__(self, count: int, *, directory: Path, dsn: str, keep: bool) -> None:
        self._count = count
        self._begun = 0
        self._directory = directory
        self._keep = keep
        self._environment = _environment(dsn)
        self._members: list[_Member] = []

    @property
    def pids(self) -> list[int]:
        return [each.process.pid for each in self._members]

    def start(self) -> None:
        self._members = [self._begin() for _ in range(self._count)]

    def look(self) -> Iterator[str]:
        """Start another for every worker that has ended, and say so.

        raises  PgqueueError with the end of its log if a worker ends at once again and again
        """
        for index, member in enumerate(self._members):
            code = member.process.poll()
            lived = time.monotonic() - member.started
            if code is None or (member.quick_deaths and lived < 1):
                continue
            quick = member.quick_deaths + 1 if lived < QUICK and code > 0 else 0
            if quick > PATIENCE:
                raise PgqueueError(
                    f"worker {member.name} {how_it_ended(code)} {quick} times: {self._tail(member.name)}"
                )
            heir = self._members[index] = self._begin(quick)
            what = how_it_ended(code) if code else "was stopped"
            yield f"worker {member.name} (process {member.process.pid}) {what}: {heir.name} takes its place"

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[subprocess.Popen[bytes] | None]:
        """The process of a worker, which does nothing for the length of the block; None if it has ended."""
        found = next(
            (each.process for each in self._members if each.name == name and each.process.poll() is None), None
        )
        if found is None or sys.platform == "win32":
            yield found
            return
        try:
            found.send_signal(signal.SIGSTOP)
            if hasattr(os, "waitid"):  # the signal takes a moment; an exit is left for poll()
                os.waitid(os.P_PID, found.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            yield found
        finally:
            found.send_signal(signal.SIGCONT)  # a stopped one could not be asked to end

    def stop(self) -> None:
        """Stop all in order, and wait until that is done."""
        alive = [each.process for each in self._members if each.process.poll() is None]
        end([each.pid for each in alive], signal.SIGTERM, patience=GRACE + 5)
        for process in alive:
            process.wait()
        self._members = []

    def _begin(self, quick_deaths: int = 0) -> _Member:
        self._begun += 1
        name = f"demo-{self._begun}"
        options = ["-A", APPLICATION, "-q", QUEUES, "--name", name, "--lease", str(LEASE), "--grace", str(GRACE)]
        here = self._directory  # where no pgqueue.yaml of the user's is
        with (here / f"{name}.log").open("ab") as log:
            process = spawn_worker(options, env=self._environment, log=log, cwd=here, stays=self._keep)
        return _Member(name, process, time.monotonic(), quick_deaths)

    def _tail(self, name: str) -> str:
        lines = (self._directory / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return "\n".join(lines[-3:]) or "(its log is empty)"


def _environment(dsn: str) -> Mapping[str, str]:
    """Ours, without what the user has set for pgqueue and for PostgreSQL: the demo is about its own database."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PG") and name != "DATABASE_URL"}
    return ours | {"PGQUEUE_DSN": dsn, "PYTHONWARNINGS": "ignore"}
