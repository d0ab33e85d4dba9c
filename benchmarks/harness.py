"""Where the claims are measured: a durable PostgreSQL server of our own, and a fresh database for each measurement.

Guarantees: the server keeps its promises to the disk (fsync and synchronous_commit are on); it and its directory are
gone afterwards, as are all databases made here. With a DSN given, that server is used as it is.
Never: touches a database it did not make.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from benchmarks import machine
from benchmarks.app import noop
from pgqueue import PgQueue
from pgqueue.bench.figures import percentile
from pgqueue.demo.postgres import EmbeddedServer
from pgqueue.tasks.task import Task

DURABLE = {
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "min_wal_size": "4GB",
    "checkpoint_timeout": "30min",
    "jit": "off",
    "max_connections": "200",
}
FILL_BATCH = 10_000
USED = 20_000
COMPLETED = "select coalesce(sum(jobs), 0)::bigint from pgqueue.tally where state = 'completed'"
POLL = 0.005


class Bench:
    """A server to measure on.

    quick   a fraction of the jobs, and once instead of three times: to see that all works, not to quote
    server  process id of the server if it runs here, else None
    minutes how long a claim that can go on for ever does; None: as long as it thinks best
    """

    def __init__(
        self, dsn: str, *, quick: bool = False, server: int | None = None, minutes: float | None = None
    ) -> None:
        self.dsn = dsn
        self.quick = quick
        self.server = server
        self.minutes = minutes
        self._numbers = itertools.count(1)
        self._template = f"pgqueue_bench_{os.getpid()}"
        self._shared: dict[str, str] = {}
        self._open = contextlib.ExitStack()

    @property
    def rounds(self) -> int:
        return 1 if self.quick else 3

    def sized(self, full: int, quick: int) -> int:
        """How many, in this run."""
        return quick if self.quick else full

    def announce(self, claim: str, minutes: float) -> None:
        """Say before a long measurement how long it takes."""
        if not self.quick:
            print(f"\n{claim}: takes about {minutes:g} minutes", flush=True)

    @contextlib.contextmanager
    def prepared(self) -> Iterator[Bench]:
        """Make the database that all others are copies of."""
        with self._made(self._template, copy_of="template0") as dsn:
            PgQueue(dsn).migrate()
            with self._open:
                yield self

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """A fresh, migrated database; its DSN. Gone at the end of the block."""
        with self._made(f"{self._template}_{next(self._numbers)}", copy_of=self._template) as dsn:
            yield dsn

    def shared(self, name: str, make: Callable[[str], None]) -> str:
        """A database that takes long to make and serves several claims: made when it is first asked for."""
        if name not in self._shared:
            dsn = self._open.enter_context(self.database())
            make(dsn)
            self._shared[name] = dsn
        return self._shared[name]

    @contextlib.contextmanager
    def _made(self, name: str, *, copy_of: str) -> Iterator[str]:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute(
                sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(copy_of))
            )
        try:
            yield make_conninfo(self.dsn, dbname=name)
        finally:
            with psycopg.connect(self.dsn, autocommit=True) as conn:
                conn.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

    def server_seconds(self) -> float | None:
        """Processor seconds that the server has used so far; None if it is elsewhere."""
        return None if self.server is None else machine.family_seconds(self.server)

    def conditions(self) -> dict[str, object]:
        """What the figures depend on."""
        names = [*DURABLE, "server_version"]
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            rows = conn.execute("select name, current_setting(name) from unnest(%s::text[]) name", [names]).fetchall()
        return {
            "python": platform.python_version(),
            "psycopg": f"{psycopg.__version__} ({psycopg.pq.__impl__})",
            "system": platform.platform(),
            "cpu": machine.cpu_name(),
            "cores": machine.cores(),
            "server": conninfo_to_dict(self.dsn).get("host", "local") if self.server is None else "started here",
            **dict(rows),
            "durable_commit_ms": round(self._commit_ms(), 2),
        }

    def _commit_ms(self) -> float:
        """The median time of one durable commit of one small row, nothing else going on."""
        times = []
        with self.database() as dsn, psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("create table one (n int)")
            for _ in range(300):
                started = time.perf_counter()
                conn.execute("insert into one values (1)")
                times.append((time.perf_counter() - started) * 1000)
        return percentile(times, 0.5)


@contextlib.contextmanager
def open_bench(dsn: str | None, *, quick: bool, minutes: float | None = None) -> Iterator[Bench]:
    """The given server, or one of our own in a temporary directory for the length of the block."""
    if dsn is not None:
        with Bench(dsn, quick=quick, minutes=minutes).prepared() as bench:
            yield bench
        return
    home = Path(tempfile.mkdtemp(prefix="pgqueue-bench-"))
    home.chmod(0o711)  # the server's account has to pass through
    try:
        with (
            EmbeddedServer(home / "server", options=DURABLE) as server,
            Bench(server.dsn(), quick=quick, server=server.pid, minutes=minutes).prepared() as bench,
        ):
            yield bench
    finally:
        shutil.rmtree(home, ignore_errors=True)


def fill(dsn: str, count: int, task: Task[[int, str, int], object] = noop) -> None:
    """Enqueue `count` jobs of three arguments, 10,000 to a transaction, after a checkpoint; then analyze."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("checkpoint")
        for first in range(0, count, FILL_BATCH):
            rows = [(number, "send_email", 1) for number in range(first, min(first + FILL_BATCH, count))]
            task.using(conn).enqueue_many(rows)
        conn.execute("analyze")


def use(dsn: str) -> int:
    """Bring a database to the state of one that has been in use: jobs in it, analyzed. A worker that is started now
    plans with that in view (see fresh.py), and has these to do first; how many they are."""
    fill(dsn, USED)
    return USED


def wait_until_completed(dsn: str, count: int, *, within: float) -> float:
    """Look every 5 ms until `count` completions are committed; returns the monotonic time at which they were seen.

    raises  TimeoutError saying how many there are after `within` seconds
    """
    deadline = time.monotonic() + within
    with psycopg.connect(dsn, autocommit=True) as conn:
        while (done := completed(conn)) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{done} of {count} jobs completed after {within:.0f} s")
            time.sleep(POLL)
    return time.monotonic()


def completed(conn: psycopg.Connection[tuple[object, ...]]) -> int:
    """How many jobs have been completed in a database: sums that are committed together with the completions."""
    row = conn.execute(COMPLETED).fetchone()
    assert row is not None
    assert isinstance(row[0], int)
    return row[0]
