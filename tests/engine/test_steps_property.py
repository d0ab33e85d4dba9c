"""Random resumable jobs on a real worker, interrupted at random places: the database itself is the witness.

A program is a list of steps, in the versions that its code had one after the other. Each run of it (an attempt, or
what a snooze left of one) meets faults. The work is rows in a table, written in the very transaction that is marked;
what the runs saw is in a diary, on a connection of its own. `audit` reads both like a bookkeeper: it adds up what was
committed, in plain dictionaries, and knows nothing of checkpoints.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import groupby
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb
from pytest_postgresql.executors.noop import NoopExecutor

from pgqueue import Context, Job, PgQueue, Retry, Snooze, State
from pgqueue.engine import heartbeat
from pgqueue.store import cluster, control
from tests.engine.kit import until, working

ITEMS = (1, 2, 3)  # of each step
LATEST = 10  # moments after which a fault strikes at the earliest
OFTEN = Retry(max_attempts=50, cap=0)

# The kind of a step is in its name, so that it stays the same when the code changes.
NAMES = [f"{kind} {which}" for kind in ("plain", "cursor", "tx", "cursor_tx", "save") for which in "ab"]

ANYWHERE = ("error", "snooze", "dies", "killed")
IN_TRANSACTION = ("rollback, again", "rollback, leave", "savepoint, again", "savepoint, leave")
OUTSIDE = ("zombie",)


@dataclass
class Program:
    """What a job does.

    versions    of the code, each the names of its steps; a run has the next one, until the last
    faults      of each run: what strikes, and at which moment at the earliest
    ends_in_tx  it completes its job in a transaction
    """

    versions: list[list[str]]
    faults: list[list[tuple[str, int]]]
    ends_in_tx: bool

    def version(self, run: int) -> list[str]:
        return self.versions[min(run, len(self.versions) - 1)]


def programs(*faults: str, most: int, names: list[str] = NAMES) -> st.SearchStrategy[Program]:
    """Programs of which at most so many runs are interrupted, by these."""
    fault = st.tuples(st.sampled_from(faults), st.integers(1, LATEST))
    return st.builds(
        Program,
        versions=st.lists(
            st.lists(st.sampled_from(names), unique=True, min_size=1, max_size=6), min_size=1, max_size=3
        ),
        faults=st.lists(st.lists(fault, min_size=1, max_size=2), max_size=most),
        ends_in_tx=st.booleans(),
    )


class Fault(Exception):
    """What a program is interrupted with."""


@dataclass
class Run:
    """One run of a program: user code.

    conn    where it works, and marks; diary: in autocommit mode
    marked  a transaction is open and has a mark in it
    left    a step gave up its transaction and returned: this run has to fail
    lost    others have taken the job away
    """

    ctx: Context
    conn: psycopg.Connection
    diary: psycopg.Connection
    number: int
    faults: list[tuple[str, int]]
    moments: int = 0
    marked: bool = False
    left: bool = False
    lost: bool = False

    def note(self, what: str, name: str = "", value: object = None) -> None:
        self.diary.execute(
            "insert into diary values (default, %s, %s, %s, %s)", [self.number, what, name, Jsonb(value)]
        )

    def perform(self, program: Program) -> str:
        self.note("begin", value=dict(self.ctx.data))
        for name in program.version(self.number):
            self.moment()
            STEPS[name.split()[0]](self, name)
        if self.left:
            raise Fault("a step was left")
        if program.ends_in_tx:
            said = f"committed by {self.number}"
            self.transaction("complete", [1], lambda: self.ctx.complete_tx(self.conn, result=said))
        self.moment()
        return f"returned by {self.number}"

    # steps

    def plain(self, name: str) -> None:
        def step() -> str:
            self.note("entered", name)
            self.moment()
            self.work(name, ITEMS)
            self.conn.commit()
            self.moment()
            return f"{name} of run {self.number}"

        self.note("got", name, self.ctx.step(name, step))

    def cursor(self, name: str) -> None:
        def step(cursor: int | None) -> str:
            self.note("entered", name, cursor)
            for item in ITEMS[cursor or 0 :]:
                self.work(name, [item])
                self.conn.commit()
                self.moment()
                self.ctx.set_cursor(item)
                self.note("set", name, item)
                self.moment()
            return f"{name} of run {self.number}"

        self.note("got", name, self.ctx.step_cursor(name, step))

    def tx(self, name: str) -> None:
        def step() -> str:
            self.note("entered", name)
            self.moment()
            self.transaction(name, ITEMS, lambda: self.ctx.set_step_tx(self.conn, f"{name} of run {self.number}"))
            return "not what is remembered"

        self.note("got", name, self.ctx.step(name, step))

    def cursor_tx(self, name: str) -> None:
        def step(cursor: int | None) -> None:
            self.note("entered", name, cursor)
            for item in ITEMS[cursor or 0 :]:
                if not self.transaction(name, [item], partial(self.ctx.set_step_cursor_tx, self.conn, item)):
                    return

        self.note("got", name, self.ctx.step_cursor(name, step))

    def save(self, name: str) -> None:
        value = None if name.endswith("b") and self.number % 2 else self.number  # None deletes
        self.ctx.save(**{name: value})
        self.note("saved", name, value)

    def work(self, name: str, items: Iterable[int]) -> None:
        for item in items:
            self.conn.execute("insert into work values (default, %s, %s, %s, %s)", [self.number, name, item, self.lost])

    def transaction(self, name: str, items: Iterable[int], mark: Callable[[], None]) -> bool:
        """The work and its mark, committed together; False: given up."""
        while True:
            self.conn.execute("savepoint before")
            self.work(name, items)
            mark()
            self.marked = True
            what, _, then = self.moment().partition(", ")
            self.marked = False
            if what == "rollback":
                self.conn.rollback()
            elif what == "savepoint":
                self.conn.execute("rollback to savepoint before")
            if then == "again":
                continue
            self.conn.commit()
            if then == "leave":
                self.left = True
                return False
            self.moment()
            return True

    # interruptions

    def moment(self) -> str:
        """Here a fault may strike. Answers with what the transaction is to do about it, if there is one."""
        self.moments += 1
        allowed = ANYWHERE + (IN_TRANSACTION if self.marked else OUTSIDE)
        fault = next((each for each in self.faults if each[1] <= self.moments and each[0] in allowed), None)
        if fault is None:
            return ""
        self.faults.remove(fault)
        what = fault[0]
        self.note("fault", what)
        match what:
            case "error":
                raise Fault(what)
            case "snooze":
                raise Snooze(0)
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "dies":
                self.conn.rollback()  # as the server does with what a dead client has left
                self.lose()
                raise Fault(what)
            case "zombie":
                self.lose()
        return what

    def lose(self) -> None:
        """The worker is gone, as far as others see; they take the job, and leave it alone until this run ends."""
        if not self.lost:
            self.note("lost")
            self.lost = True
            with self.diary.transaction():
                self.diary.execute("update pgqueue.lease set worker_id = -1 where %s = any(ids)", [self.ctx.job.id])
                rescue = cluster.rescue(schema="pgqueue")
                self.diary.execute(rescue.sql.encode(), rescue.params)
                self.reschedule(timedelta(days=1))

    def reschedule(self, delay: timedelta) -> None:
        statement = control.reschedule([self.ctx.job.id], at=None, delay=delay, schema="pgqueue")
        self.diary.execute(statement.sql.encode(), statement.params)

    def end(self) -> None:
        if self.lost:
            self.reschedule(timedelta())
        self.note("end")


STEPS: dict[str, Callable[[Run, str], None]] = {
    "plain": Run.plain, "cursor": Run.cursor, "tx": Run.tx, "cursor_tx": Run.cursor_tx, "save": Run.save,
}  # fmt: skip


def perform(ctx: Context, dsn: str, program: Program) -> str:
    """The task. It may be imported by another process."""
    with psycopg.connect(dsn, autocommit=True) as diary, psycopg.connect(dsn) as conn:
        row = diary.execute("select count(*) from diary where what = 'begin'").fetchone()
        assert row is not None
        faults = program.faults[row[0]] if row[0] < len(program.faults) else []
        run = Run(ctx, conn, diary, row[0], list(faults))
        try:
            return run.perform(program)
        finally:
            conn.rollback()
            run.end()


@dataclass
class Books:
    """What must be recorded of a job, after so many of its runs."""

    done: dict[str, object] = field(default_factory=dict)
    cursor: dict[str, int] = field(default_factory=dict)
    data: dict[str, object] = field(default_factory=dict)

    def enter(self, run: int, notes: list[tuple[str, str, Any]], work: list[tuple[str, int]]) -> None:
        """A run: compare what it saw with what there was, then add what it left."""
        seen: dict[str, int | None] = {}  # by the steps that ran
        memory = Books(data=dict(self.data))
        for what, name, value in notes:
            match what:
                case "begin":
                    assert value == self.data
                case "entered":
                    assert name not in self.done, "a step that is recorded as done runs again"
                    assert value == self.cursor.get(name), "it goes on from the last cursor"
                    seen[name] = value
                case "got" if name not in seen:
                    assert value == self.done[name], "its result is remembered"
                case "got" if name.startswith("tx "):
                    assert value == f"{name} of run {run}", "as it was given to the mark"
                case "got" if seen[name] == ITEMS[-1] or not name.startswith("cursor_tx "):
                    memory.done[name] = value
                case "set":
                    memory.cursor[name] = value
                case "saved":
                    memory.data[name] = value
        for name, item in work:
            if name.startswith("tx "):
                self.done[name] = f"{name} of run {run}"
            elif name.startswith("cursor_tx "):
                self.cursor[name] = item
        if ("complete", 1) in work or "lost" not in {what for what, _, _ in notes}:
            self.done |= memory.done
            self.cursor |= memory.cursor
            self.data = {key: value for key, value in memory.data.items() if value is not None}


def audit(program: Program, job: Job, diary: list[tuple[int, str, str, Any]], work: list[tuple[int, str, int]]) -> None:
    """Compare what the runs saw, and what the job is now, with what was committed."""
    books, last = Books(), 0
    for last, notes in groupby(diary, key=lambda note: note[0]):
        books.enter(last, [note[1:] for note in notes], [row[1:] for row in work if row[0] == last])

    found = Counter((name, item) for _, name, item in work)
    wanted = {(name, item) for name in program.version(last) if not name.startswith("save") for item in ITEMS}
    if program.ends_in_tx:
        wanted.add(("complete", 1))
    assert wanted <= found.keys(), "an item was skipped"
    twice = {key for key, count in found.items() if count > 1 and not key[0].startswith(("plain", "cursor "))}
    assert not twice, "an item whose mark was committed was done again"
    how = "committed" if program.ends_in_tx else "returned"
    assert (job.state, job.result) == (State.COMPLETED, f"{how} by {last}")
    kept: Any = job.metadata.get("pgqueue", {})
    assert kept == ({"data": books.data} if books.data else {}), "success removes all but the data"


@dataclass
class Ledger:
    """The tables, and which faults struck in all."""

    dsn: str
    admin: psycopg.Connection
    struck: Counter[str]

    def check(self, q: PgQueue, kind: str, program: Program) -> None:
        """Run a program to its end, and audit it."""
        self.admin.execute("truncate work, diary")
        job = q.enqueue(kind, {"dsn": self.dsn, "program": program})
        until(
            self.admin,
            """select finalized_at is not null and not exists (select from pgqueue.lease where jobs.id = any(ids)) and
                 (select count(*) filter (where what = 'begin')
                       = count(*) filter (where what = 'end' or (what, name) = ('fault', 'killed')) from diary)
               from pgqueue.jobs where id = %s""",
            job.id,
        )
        diary = self.admin.execute("select run, what, name, value from diary order by id").fetchall()
        work = self.admin.execute("select run, name, item from work order by id").fetchall()
        self.struck.update(name for _, what, name, _ in diary if what == "fault")
        late = self.admin.execute("select name from work where late and name ~ 'tx|complete'").fetchall()
        assert not late, "who has lost the job has marked something all the same"
        audit(program, q.job(job.id), diary, work)


@pytest.fixture(scope="session")
def template(newest_template: NoopExecutor) -> NoopExecutor:
    """Overrides the one that runs every test on each server: the statements are tried on each elsewhere."""
    return newest_template


@pytest.fixture
def ledger(admin: psycopg.Connection, fresh_db: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.setattr(heartbeat, "BEAT", 0.1)  # seconds after which a worker sees what others have done to its jobs
    admin.execute("create table work (id serial, run int, name text, item int, late bool)")
    admin.execute("create table diary (id serial, run int, what text, name text, value jsonb)")
    yield Ledger(fresh_db, admin, Counter())
    assert admin.execute("select count(*) from pgqueue.checkpoint").fetchone() == (0,)


def test_whatever_interrupts_a_job_what_was_committed_is_done_once_and_nothing_is_skipped(
    q: PgQueue, ledger: Ledger
) -> None:
    q.task(retry=OFTEN)(perform)
    faults = (*IN_TRANSACTION, *OUTSIDE, "error", "snooze", "dies")

    @given(programs(*faults, most=5))
    @settings(max_examples=80, deadline=None, derandomize=True, database=None)
    def check(program: Program) -> None:
        ledger.check(q, "perform", program)

    with working(q):
        check()
    assert ledger.struck.keys() == {*faults}


def test_a_process_that_is_killed_loses_nothing_that_it_had_remembered(q: PgQueue, ledger: Ledger) -> None:
    """Not even what it kept in memory: the worker lives, and has it."""
    q.task(retry=OFTEN, executor="process")(perform)

    names = ["plain a", "cursor a", "cursor b", "tx a", "cursor_tx a", "save a"]

    @given(programs("killed", "killed", "rollback, leave", most=2, names=names))
    @settings(max_examples=16, deadline=None, derandomize=True, database=None)
    def check(program: Program) -> None:
        ledger.check(q, "perform", program)

    with working(q):
        check()
    assert ledger.struck["killed"] > 0
