"""The demonstration: a server of its own, an application that enqueues in its transactions, workers, the history, and
an import whose worker is killed.

Guarantees: workers that end are replaced and a server that ends is started again, visibly; whatever interrupts it,
nothing of it is left, unless it was to be kept and has come to its end.
Never: touches a database or a setting of the user's.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from pgqueue import PgQueue
from pgqueue.db.connect import connect
from pgqueue.db.failure import DatabaseError, is_outage
from pgqueue.db.pool import Connection
from pgqueue.demo import report, stdlib
from pgqueue.demo.crew import QUEUES, Crew
from pgqueue.demo.home import APPLICATION, Home, Note
from pgqueue.demo.postgres import EmbeddedServer
from pgqueue.demo.resume import Import
from pgqueue.demo.screen import Screen
from pgqueue.errors import ConfigError, ServerError

T = TypeVar("T")

DATABASE = "demo"
UNDO_EVERY = 20  # of so many transactions one is rolled back
TICK = 0.2  # seconds between looks at the workers and the progress
LET_OTHERS = 2.0  # seconds in which somebody else may start the server again before we do
PATIENCE = 60.0  # seconds that it may be away
RATE_OVER = 3.0  # seconds

_PROGRESS = """
with running as materialized (select worker from pgqueue.live_jobs where state = 'running')
select coalesce(sum(completed + cancelled + discarded + stopped), 0)::bigint,
  coalesce(sum(discarded), 0)::bigint,
  coalesce(sum(available + running + scheduled + retryable + pending), 0)::bigint,
  coalesce(string_agg(queue, ', ') filter (where paused), ''),
  (select coalesce(string_agg(held.jobs::text, ' + ' order by w.id), '')
     from pgqueue.workers w
     cross join lateral (select count(*) as jobs from running where running.worker = w.name) held
     where w.state = 'active')
from pgqueue.queue_stats
"""


class _ChangedItsMindError(Exception):
    """What goes wrong in the application, on purpose, after it has enqueued."""


@dataclass(frozen=True, slots=True)
class _Progress:
    """`held` says how many jobs each worker has claimed: 12 + 9; it is empty before there is one."""

    done: int
    discarded: int
    open: int
    paused: str
    held: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to show, and where. `files`: paths of source files, in the order in which they are enqueued."""

    home: Home
    keep: bool
    workers: int
    files: Sequence[str]

    @property
    def packages(self) -> list[str]:
        return sorted({stdlib.package_of(path) for path in self.files})

    @property
    def jobs(self) -> int:
        """How many there will be: two for each file whose transaction is committed, one for each package."""
        return 2 * (len(self.files) - len(self.files) // UNDO_EVERY) + len(self.packages)


def choose_files(limit: int | None) -> list[str]:
    """All source files of the standard library, or `limit` of them from all over it.

    raises  ConfigError if there are none
    """
    found = stdlib.source_files()
    if not found:
        raise ConfigError(f"there are no source files in {stdlib.LIBRARY}: use a Python that comes with them")
    if limit is None or limit >= len(found):
        return found
    return [found[index * len(found) // limit] for index in range(limit)]


class Show:
    """One demonstration. Call `run`, and `close` whatever happened: it takes away what is not to stay."""

    def __init__(self, plan: Plan, screen: Screen) -> None:
        self._plan = plan
        self._screen = screen
        self._server = EmbeddedServer(plan.home.directory, keep=plan.keep)
        self._crew: Crew | None = None
        self._open: Connection | None = None
        self._begun = time.monotonic()
        self._looked = 0.0
        self._added = 0
        self._marks: deque[tuple[float, int]] = deque()

    @property
    def dsn(self) -> str:
        return self._server.dsn(DATABASE)

    def run(self) -> None:
        """Show it all; returns when every job has come to its end, and what the history says of them is printed."""
        self._start_server()
        self._start_workers()
        began = time.monotonic()
        self._enqueue()
        progress = self._until_done()
        seconds = time.monotonic() - began
        rate = progress.done / seconds
        self._screen.fact(
            "done", f"{progress.done:,} jobs in {seconds:.1f} s, {rate:,.0f} a second; {progress.discarded:,} failed"
        )
        report.tell(self._with_database(report.ask))
        self._kill_half_way()
        if self._plan.keep:
            self._note(kept=True)

    def first_failure(self) -> int | None:
        """The id of a job that failed, to look at."""
        rows = self._with_database(
            lambda conn: conn.execute("select min(id) from pgqueue.jobs where state = 'discarded'").fetchall()
        )
        return None if rows[0][0] is None else int(rows[0][0])

    def disconnect(self) -> None:
        """Close the connection."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def close(self) -> None:
        """End the workers and the server, and remove the directory."""
        self.disconnect()
        if self._crew is not None:
            self._crew.stop()
        with contextlib.suppress(ServerError):  # it was killed, or did not even start
            self._server.stop()
        self._plan.home.stop()
        self._plan.home.remove()

    # Beginning ----------------------------------------------------------------------------------------------------

    def _start_server(self) -> None:
        server = self._server
        self._note()
        server.start()
        took = time.monotonic() - self._begun
        version = f"PostgreSQL {server.binaries.version} ({server.binaries.source})"
        self._screen.fact("server", f"{version} on {server.host}:{server.port}, started in {took:.1f} s")
        # Whoever stops it with pg_ctl starts it again without our flags.
        with (server.data / "postgresql.conf").open("a") as settings:
            settings.write(f"port = {server.port}\nlisten_addresses = '{server.host}'\nunix_socket_directories = ''\n")
        with connect(server.dsn(), role="demo") as conn:
            conn.execute(f"create database {DATABASE}".encode())
        version_of_schema = PgQueue(self.dsn).migrate()
        self._with_database(lambda conn: conn.execute(stdlib.SCHEMA.encode()))
        self._screen.fact("schema", f"pgqueue is at version {version_of_schema}; the application's tables are in app")

    def _start_workers(self) -> None:
        plan = self._plan
        self._crew = Crew(plan.workers, directory=plan.home.directory, dsn=self.dsn, keep=plan.keep)
        self._crew.start()
        self._note()
        many = f"{plan.workers} processes" if plan.workers > 1 else "1 process"
        self._screen.fact("workers", f"{many}: pgqueue worker -A {APPLICATION} -q {QUEUES}")
        self._screen.fact("files", f"{len(plan.files):,}, in {len(plan.packages)} packages of {stdlib.LIBRARY}")
        self._screen.fact("", "Each has a transaction: a row in app.file, and its jobs index_file and count_words.")
        self._screen.fact("", f"Every {UNDO_EVERY}th is rolled back on purpose: its jobs never existed.")
        self._screen.line()

    def _note(self, *, kept: bool = False) -> None:
        workers = [] if self._crew is None else self._crew.pids
        self._plan.home.write(Note(owner=os.getpid(), kept=kept, workers=workers))

    # Working ------------------------------------------------------------------------------------------------------

    def _enqueue(self) -> None:
        """What an application does all day, at its own pace."""
        for number, path in enumerate(self._plan.files, start=1):
            self._with_database(partial(_add, path=path, undo=number % UNDO_EVERY == 0))
            self._added = number
            self._tick()
        for name in self._plan.packages:
            self._with_database(partial(_add_package, name=name))

    def _until_done(self) -> _Progress:
        while True:
            progress = self._tick()
            if progress is not None and progress.open == 0:
                self._screen.clear()
                return progress
            time.sleep(TICK / 4)

    def _kill_half_way(self) -> None:
        """The last act: an import whose worker is killed goes on in another."""
        assert self._crew is not None
        Import(self._screen, self._crew, with_database=self._with_database, look=self._look_after_workers).run()

    def _tick(self) -> _Progress | None:
        """Look after the workers and show the progress, if it is time to."""
        if time.monotonic() - self._looked < TICK:
            return None
        self._look_after_workers()
        progress = self._with_database(_progress)
        self._looked = time.monotonic()
        self._screen.change(progress.done, self._plan.jobs, self._describe(progress))
        return progress

    def _describe(self, progress: _Progress) -> str:
        now = time.monotonic()
        self._marks.append((now, progress.done))
        while now - self._marks[0][0] > RATE_OVER:
            self._marks.popleft()
        since, before = self._marks[0]
        rate = (progress.done - before) / (now - since) if now > since else 0.0
        files = len(self._plan.files)
        parts = [
            f"{self._added:,} of {files:,} files" if self._added < files else "",
            f"{progress.done:,} of {self._plan.jobs:,} jobs",
            f"{rate:,.0f}/s",
            f"workers hold {progress.held}" if progress.held else "no worker is there yet",
            f"failed {progress.discarded}" if progress.discarded else "",
            f"paused: {progress.paused}" if progress.paused else "",
        ]
        return "  ".join(filter(None, parts))

    def _look_after_workers(self) -> None:
        if self._crew is not None:
            for news in self._crew.look():
                self._screen.note(news)
                self._note()

    # The database may go away ---------------------------------------------------------------------------------------

    def _with_database(self, action: Callable[[Connection], T]) -> T:
        """Do something with the database, again if it went away meanwhile: every action here may be repeated."""
        while True:
            try:
                if self._open is None:
                    self._open = connect(self.dsn, role="demo")
                return action(self._open)
            except DatabaseError as error:
                if not is_outage(error):
                    raise
                self._outlast()

    def _outlast(self) -> None:
        """Wait for the server; start it again if nobody else does.

        raises  ServerError if it does not come back
        """
        self.disconnect()
        since = time.monotonic()
        said = False
        while True:
            try:
                connect(self.dsn, role="demo").close()
                break
            except DatabaseError as error:
                away = time.monotonic() - since
                if not is_outage(error) or away > PATIENCE:
                    raise
            if not said:
                self._screen.note("the server is away: workers wait for it, nothing is lost")
                said = True
            self._look_after_workers()
            if away > LET_OTHERS and self._plan.home.server_pid() is None:
                self._revive()
            time.sleep(TICK)
        self._screen.note(f"the server is back after {time.monotonic() - since:.1f} s" if said else "reconnected")
        self._marks.clear()

    def _revive(self) -> None:
        home, old = self._plan.home, self._server
        with contextlib.suppress(ServerError):
            old.stop()  # it has ended; this takes notice of it
        self._server = EmbeddedServer(home.directory, port=old.port, keep=self._plan.keep)
        with contextlib.suppress(ServerError):  # a process of the old one may hold its memory still: again, soon
            self._server.start()


def _add(conn: Connection, *, path: str, undo: bool) -> None:
    """A transaction of the application's; with `undo`, one that fails at its end."""
    try:
        with conn.transaction():
            stdlib.add_file(conn, path)
            if undo:
                raise _ChangedItsMindError
    except _ChangedItsMindError:
        conn.execute("insert into app.rolled_back (path) values (%s) on conflict do nothing", [path])


def _add_package(conn: Connection, *, name: str) -> None:
    with conn.transaction():
        stdlib.add_package(conn, name)


def _progress(conn: Connection) -> _Progress:
    return _Progress(*conn.execute(_PROGRESS).fetchall()[0])
