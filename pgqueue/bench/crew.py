"""The worker processes of a run.

Guarantees: each is a real `pgqueue worker` with the same database and no other setting of the user's; it dies with the
run, even a killed one (Linux); one that ends by itself is an error that shows the end of its log.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pgqueue
from pgqueue import PgQueue
from pgqueue.bench.tasks import Setup, environment
from pgqueue.db.connect import way_around
from pgqueue.engine.death import how_it_ended, mortal
from pgqueue.errors import PgqueueError

APPLICATION = "pgqueue.bench.app:q"
GRACE = 2  # seconds that running jobs get: none takes that long
PATIENCE = 10.0


class Crew:
    """`count` processes, each of which runs `concurrency` jobs at once."""

    def __init__(self, q: PgQueue, setup: Setup, *, count: int, concurrency: int) -> None:
        self._count = count
        self._queues = f"{setup.queue}={concurrency}"
        self._environment = _environment(q, setup)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by stop(); without a name: a killed run leaves none
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def started(self) -> bool:
        return bool(self._processes)

    def start(self) -> None:
        """Start them all; whether they are ready the database knows."""
        # An empty file of settings in place of one in the working directory.
        command = [sys.executable, "-m", "pgqueue", "worker", "--config", os.devnull, "-A", APPLICATION]
        command += ["-q", self._queues, "--grace", str(GRACE), "--log-level", "warning"]
        tie = None if sys.platform == "win32" else mortal(os.getpid(), signal.SIGKILL)
        for _ in range(self._count):
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the run: it stops them itself
                preexec_fn=tie,
            )
            self._processes.append(process)

    def check(self) -> None:
        """Raise PgqueueError if one has ended."""
        for process in self._processes:
            code = process.poll()
            if code is not None:
                raise PgqueueError(f"a worker of the bench {how_it_ended(code)}: {self._last_lines()}")

    def stop(self) -> None:
        """Stop them in order, and wait until that is done."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes = []
        self._log.close()

    def _last_lines(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return " ".join(lines[-3:]) or "its log is empty"


def _environment(q: PgQueue, setup: Setup) -> Mapping[str, str]:
    """Ours, with nothing of pgqueue's in it but where the database is."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PGQUEUE_")}
    around = way_around(q.dsn, q.direct_dsn)
    said = {"PGQUEUE_DSN": q.dsn, "PGQUEUE_DIRECT_DSN": around}
    package = str(Path(pgqueue.__file__).parents[1])  # importable there, installed or not
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return ours | {name: value for name, value in said.items() if value} | environment(setup) | {"PYTHONPATH": path}
