"""The worker processes of a run.

Guarantees: each is a real `pgqueue worker` with the same database and no other setting of the user's; it dies with the
run, even a killed one (Linux); one that ends by itself is an error that shows the end of its log.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping

from pgqueue import PgQueue
from pgqueue.bench.tasks import Setup, environment
from pgqueue.db.connect import way_around
from pgqueue.engine.death import how_it_ended
from pgqueue.engine.spawn import spawn_worker
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
        options = ["--config", os.devnull, "-A", APPLICATION]
        options += ["-q", self._queues, "--grace", str(GRACE), "--log-level", "warning"]
        for _ in range(self._count):
            self._processes.append(spawn_worker(options, env=self._environment, log=self._log))

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
    return ours | {name: value for name, value in said.items() if value} | environment(setup)
