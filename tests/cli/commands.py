"""Runs the command line: in this process (`invoke`), or in one of its own as a shell does (`finish`, `Running`)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from click.testing import CliRunner, Result

from pgqueue.cli.main import cli

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 60  # seconds after which a process that does not do what it should is killed

APP = """
import asyncio, time
from pgqueue import Context, PgQueue, Retry

q = PgQueue()

@q.task(queue="mail", retry=Retry(max_attempts=3))
def send_welcome(user_id: int, lang: str = "en") -> dict:
    return {"sent": user_id}

@q.task
def boom() -> None:
    raise ValueError("no such user")

@q.task
async def nap(seconds: float) -> None:
    print("napping", flush=True)
    await asyncio.sleep(seconds)
"""


def environment(dsn: str | None = None, **more: str) -> dict[str, str]:
    """Ours, without what would tell the command line where a database is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "DATABASE_URL"))}
    said = {} if dsn is None else {"PGQUEUE_DSN": dsn}
    return kept | said | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"} | more


def invoke(*args: str, dsn: str | None = None, stdin: str | None = None, **variables: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli, args, input=stdin, env=variables | ({} if dsn is None else {"PGQUEUE_DSN": dsn}))


def finish(
    *args: str, dsn: str | None = None, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a process of its own."""
    return subprocess.run(
        _argv(args), cwd=cwd, env=environment(dsn, **variables), capture_output=True, text=True, check=False,
        timeout=PATIENCE, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def _argv(args: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "pgqueue", *args]


class Running:
    """A command that runs until it is told to stop; `output` is all that it has written so far, errors too."""

    def __init__(self, *args: str, dsn: str | None = None, cwd: Path | None = None, **variables: str) -> None:
        self.process = subprocess.Popen(
            _argv(args), cwd=cwd, env=environment(dsn, **variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.output = ""
        self._watchdog = threading.Timer(PATIENCE, self.process.kill)

    def __enter__(self) -> Running:
        self._watchdog.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._watchdog.cancel()
        self._pipe.close()

    @property
    def _pipe(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def wait_for(self, text: str) -> str:
        """The line that says `text`, once it is written; fails if the command ends before."""
        for line in self._pipe:
            self.output += line
            if text in line:
                return line
        raise AssertionError(f"it ended and never said {text!r}:\n{self.output}")

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to the process."""
        self.process.send_signal(signum)

    def ended(self) -> int:
        """The exit status, once it has ended."""
        self.output += self._pipe.read()
        return self.process.wait()
