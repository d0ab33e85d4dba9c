"""The last act of the demo: an import whose worker is killed half-way, and the proof that no row is missing or double.

Guarantees: the worker is killed with SIGKILL in the middle of a transaction that has inserted rows; it is held still
while we make sure of that, so what is printed is what its successor finds. The proof is a query, printed as it is sent,
over a table without any constraint that would prevent what it denies.
Never: helps the import along. Who goes on, when and where, is pgqueue's business.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from pgqueue.db.pool import Connection
from pgqueue.demo import report, stdlib
from pgqueue.demo.crew import LEASE, Crew
from pgqueue.demo.report import Question
from pgqueue.demo.screen import Screen

T = TypeVar("T")

SHARE = 0.3  # of the rows are to be there when the worker is killed
TICK = 0.02  # seconds between looks at the import
FINAL = frozenset({"completed", "cancelled", "discarded", "stopped"})

_LOOK = """select state, worker, metadata -> 'pgqueue' -> 'cursor' as cursor,
       (select count(*) from app.character) as rows
from pgqueue.jobs where id = {job};"""

_HISTORY = """select attempt, state, worker, error
from pgqueue.job_attempts
where job_id = {job} order by finished_at;"""

# A connection that has inserted last, so that its cursor isn't set. Its process is held still: it can't commit now.
_IN_TRANSACTION = """
select pid from pg_stat_activity
where datname = current_database() and state = 'idle in transaction' and query like 'insert into app.character%'"""

# The sequence has counted the rows that were rolled back, too; no answer as long as the connection is there.
_LOST = """
select last_value, last_value - (select count(*) from app.character) from app.character_written_seq
where not exists (select from pg_stat_activity where pid = %s)"""

_HEIR = """
select c.worker, w.pid, min(c.n) - 1 from app.character c join pgqueue.workers w on w.name = c.worker
where c.written > %s group by c.worker, w.pid order by 3 limit 1"""


class WithDatabase(Protocol):
    """Does something with the database, again if it went away meanwhile."""

    def __call__(self, action: Callable[[Connection], T], /) -> T: ...


class Look(NamedTuple):
    """The answer to the query that is printed."""

    state: str
    worker: str | None
    cursor: object
    rows: int

    def __str__(self) -> str:
        where = f" on {self.worker}" if self.worker else ""
        return f"{self.state}{where}, cursor {json.dumps(self.cursor)}, {self.rows:,} rows"


class Killed(NamedTuple):
    """Which worker was killed, and when (monotonic); `written`: of the last row before that, be it rolled back."""

    worker: str
    at: float
    written: int


class Heir(NamedTuple):
    """Who went on, and from which cursor: that is the number of the row before its first."""

    worker: str
    pid: int
    cursor: int


class Import:
    """One import. `look` starts another worker for each that has ended."""

    def __init__(self, screen: Screen, crew: Crew, *, with_database: WithDatabase, look: Callable[[], object]) -> None:
        self._screen = screen
        self._crew = crew
        self._with_database = with_database
        self._look_after_workers = look
        self._total = len(stdlib.characters())
        self._job = 0

    def run(self) -> None:
        """Import, kill, and prove; returns when the import is done and the proof is printed."""
        self._job = self._with_database(_add)
        report.pose(Question("What does an import lose when its worker is killed?", _LOOK.format(job=self._job)))
        what = f"{self._total:,} characters with their names, {stdlib.BATCH} and the cursor in each transaction"
        self._screen.fact("import", what)
        killed = self._kill()
        if killed is None:
            self._screen.note("the import was over before its worker could be killed")
        else:
            self._until_another_goes_on(killed)
        while (now := self._look()).state not in FINAL:
            self._wait(now, "")
        self._screen.fact("done", f"{now}" + ("; success removes the cursor" if now.state == "completed" else ""))
        report.tell(self._with_database(lambda conn: report.ask(conn, proof(self._job))))

    def _kill(self) -> Killed | None:
        """Kill the worker when enough rows are there; None if there was no occasion to."""
        while (now := self._look()).state not in FINAL:
            if now.rows >= SHARE * self._total and now.worker and (killed := self._kill_in_transaction(now.worker)):
                return killed
            self._wait(now, "")
        return None

    def _kill_in_transaction(self, worker: str) -> Killed | None:
        """Kill it; None if it is between two transactions, or dead already."""
        with self._crew.frozen(worker) as process:
            if process is None or (connection := self._with_database(_in_transaction)) is None:
                return None
            before = self._look()
            process.kill()
            at = time.monotonic()
        self._screen.fact("before", str(before))
        while (lost := self._with_database(partial(_lost, connection=connection))) is None:
            time.sleep(TICK)
        written, rows = lost
        self._screen.fact("kill -9", f"{process.pid}, the process of {worker}, {rows} rows into the next transaction")
        return Killed(worker, at, written)

    def _until_another_goes_on(self, killed: Killed) -> None:
        while (heir := self._with_database(partial(_heir, after=killed.written))) is None:
            now = self._look()
            if now.state in FINAL:  # somebody else has ended it
                return
            silence = f"no heartbeat for {time.monotonic() - killed.at:.0f} s of {LEASE}: "
            self._wait(now, silence if now.worker == killed.worker else "")
        took = f"{time.monotonic() - killed.at:.1f} s"
        self._screen.fact("after", f"{took}: {heir.worker} (process {heir.pid}) goes on from cursor {heir.cursor}")
        self._screen.fact("", str(self._look()))

    def _look(self) -> Look:
        sql = _LOOK.format(job=self._job).encode()
        return Look(*self._with_database(lambda conn: conn.execute(sql).fetchall()[0]))

    def _wait(self, now: Look, why: str) -> None:
        self._screen.change(now.rows, self._total, f"{why}{now}")
        self._look_after_workers()
        time.sleep(TICK)


def proof(job: int) -> Sequence[Question]:
    """What one would ask who doesn't believe it."""
    return (
        Question(
            "Is a row missing, or there twice? No constraint would have prevented it.",
            """select count(*) as rows, count(distinct n) as different, count(*) - count(distinct n) as double,
       (select count(*) from generate_series(1, (select total from app.import)) wanted (n)
          left join app.character c using (n) where c.n is null) as missing,
       max(written) - count(*) as rolled_back
from app.character;""",
        ),
        Question(
            "Who inserted them?",
            """select worker, count(*) as rows, min(n) as first, max(n) as last, min(code) as from, max(code) as to
from app.character
group by worker order by first;""",
        ),
        Question("What does the job's history say?", _HISTORY.format(job=job)),
    )


def _add(conn: Connection) -> int:
    with conn.transaction():
        return stdlib.add_import(conn)


def _in_transaction(conn: Connection) -> int | None:
    """The server's process for the import's connection, if it is between two inserts of one transaction."""
    rows = conn.execute(_IN_TRANSACTION).fetchall()
    return int(rows[0][0]) if rows else None


def _lost(conn: Connection, *, connection: int) -> tuple[int, int] | None:
    """The last number given to a row, and how many rows were lost with that connection; None as long as it is there."""
    rows = conn.execute(_LOST, [connection]).fetchall()
    return (int(rows[0][0]), int(rows[0][1])) if rows else None


def _heir(conn: Connection, *, after: int) -> Heir | None:
    rows = conn.execute(_HEIR, [after]).fetchall()
    return Heir(*rows[0]) if rows else None
