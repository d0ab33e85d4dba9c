"""Resumable jobs, end to end: what an attempt leaves to the next one, on every executor.

The numbers are those of the behaviours that River pins for its own resumable jobs; where our rules are stricter the
test says how.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
import psycopg2
import pytest
import sqlalchemy

from pgqueue import AsyncContext, Context, PgQueue, Retry, Snooze, State
from tests.engine import deeds
from tests.engine.kit import awaited, done, errors_of, run_alone, until, working

TWICE = Retry(max_attempts=2, cap=0)


def checkpoint(admin: psycopg.Connection, id: int) -> Any:
    """What is stored of a job's steps."""
    row = admin.execute("select metadata -> 'pgqueue' from pgqueue.jobs where id = %s", [id]).fetchone()
    assert row is not None
    return row[0]


@dataclass
class Diary:
    """What ran, in order."""

    lines: list[str]

    def does(self, what: str, result: object = None) -> Callable[[], object]:
        def step() -> object:
            self.lines.append(what)
            return result

        return step

    def fails(self, what: str) -> Callable[[], object]:
        def step() -> object:
            self.lines.append(what)
            raise OSError(what)

        return step


@pytest.fixture
def diary() -> Diary:
    return Diary([])


def test_a_step_that_was_finished_is_not_run_again_and_its_result_is_remembered(
    q: PgQueue, admin: psycopg.Connection, diary: Diary
) -> None:
    """4 and 5: the second step fails, the third isn't run; the retry goes on with the second."""

    @q.task(retry=TWICE)
    def job(ctx: Context) -> list[object]:
        first = ctx.step("first", diary.does("first", {"n": 1}))
        ctx.step("second", diary.fails("second") if ctx.attempt == 1 else diary.does("second"))
        ctx.step("third", diary.does("third"))
        return [first, ctx.attempt]

    ended = run_alone(q, job.enqueue().id)
    assert ended.result == [{"n": 1}, 2]
    assert diary.lines == ["first", "second", "second", "third"]
    assert errors_of(ended) == [("OSError", "second")]
    assert checkpoint(admin, ended.id) is None, "success removes it (stricter: River leaves it in the row)"


@pytest.mark.parametrize("how", ["error", "snooze", "cancel", "timeout"])
def test_however_an_attempt_ends_its_finished_steps_stay(q: PgQueue, admin: psycopg.Connection, how: str) -> None:
    entered = threading.Event()

    @q.task(retry=Retry(max_attempts=1))
    async def job(ctx: AsyncContext) -> None:
        async def count() -> int:
            return 7

        await ctx.step("count", count)
        entered.set()
        if how == "error":
            raise OSError
        if how == "snooze":
            raise Snooze(3600)
        await asyncio.sleep(3600)

    id = job.using(timeout=0.2 if how == "timeout" else None, metadata={"mine": 1}).enqueue().id
    with working(q):
        awaited(entered)
        if how == "cancel":
            assert q.cancel(id) == "requested"
        wanted = {"error": "discarded", "snooze": "scheduled", "cancel": "cancelled", "timeout": "discarded"}[how]
        while q.job(id).state != wanted:
            threading.Event().wait(0.01)
    assert checkpoint(admin, id) == {"done": {"count": 7}}
    assert q.job(id).metadata["mine"] == 1


def test_a_cursor_comes_back_where_it_was_even_if_it_is_the_first_step(q: PgQueue, admin: psycopg.Connection) -> None:
    """8 and 9, stricter: a cursor of the first step isn't lost."""
    seen: list[object] = []

    @q.task(retry=TWICE)
    def job(ctx: Context) -> None:
        def load(cursor: int | None) -> None:
            seen.append(cursor)
            for n in range((cursor or 0) + 1, 5):
                if n == 3 and ctx.attempt == 1:
                    raise OSError
                ctx.set_cursor(n)

        ctx.step_cursor("load", load)

    assert run_alone(q, job.enqueue().id).state is State.COMPLETED
    assert seen == [None, 2]


@dataclass
class Place:
    """A typed cursor."""

    at: datetime
    ids: list[int]


def test_cursors_of_several_types_and_plain_steps_may_be_mixed(q: PgQueue, admin: psycopg.Connection) -> None:
    """12 and 13."""
    seen: list[object] = []

    @q.task(retry=Retry(max_attempts=3, cap=0))
    def job(ctx: Context) -> None:
        def first(cursor: int | None) -> str:
            seen.append(cursor)
            ctx.set_cursor(5)
            if ctx.attempt == 1:
                raise OSError
            return "one"

        def second(cursor: Place | None) -> None:
            seen.append(cursor)
            ctx.set_cursor(Place(datetime(2026, 1, 2, tzinfo=UTC), [1, 2]))
            if ctx.attempt == 2:
                raise OSError

        seen.append(ctx.step_cursor("first", first, type=int))
        ctx.step("between", lambda: None)
        ctx.step_cursor("second", second, type=Place)

    id = job.enqueue().id
    assert run_alone(q, id).state is State.COMPLETED
    assert seen == [None, 5, "one", None, "one", Place(datetime(2026, 1, 2, tzinfo=UTC), [1, 2])]


def marks_outside(ctx: Context) -> None:
    with ctx.connection() as conn, conn.transaction():
        ctx.set_step_tx(conn)


@pytest.mark.parametrize(
    ("misuse", "said"),
    [
        (lambda ctx: [ctx.step("a", lambda: 1), ctx.step("a", lambda: 2)], "a step of that name"),
        (lambda ctx: ctx.step("a", lambda: ctx.step("b", lambda: 1)), "nested"),
        (lambda ctx: ctx.step("", lambda: 1), "needs a name"),
        (lambda ctx: ctx.set_cursor(1), "set_cursor outside a step"),
        (lambda ctx: ctx.step("a", lambda: ctx.set_cursor(1)), "which has no cursor"),
        (lambda ctx: ctx.step_cursor("a", lambda c: ctx.set_cursor("x" * 70_000)), "its cursor: .* the limit is"),
        (lambda ctx: ctx.step("a", lambda: "x" * 300_000), "its result: .* the limit is"),
        (lambda ctx: ctx.step_cursor("a", lambda c: ctx.set_cursor(float("nan"))), "cursor: .*nan"),
        (marks_outside, "set_step_tx outside a step"),
    ],
)
def test_misuse_is_one_clear_error_and_earlier_steps_stay(
    q: PgQueue, admin: psycopg.Connection, misuse: Callable[[Context], object], said: str
) -> None:
    """1, 7, 11, 17."""

    @q.task(retry=Retry(max_attempts=1))
    def job(ctx: Context) -> None:
        ctx.step("before", lambda: 1)
        misuse(ctx)

    ended = run_alone(q, job.enqueue().id)
    assert ended.state is State.DISCARDED
    assert re.search(said, str(ended.errors[0]["message"]))
    assert checkpoint(admin, ended.id)["done"]["before"] == 1


def test_marks_commit_and_roll_back_with_the_callers_work(q: PgQueue, admin: psycopg.Connection, fresh_db: str) -> None:
    """Stricter than 14 and 15: a rolled-back mark leaves no trace, in memory or in the row."""
    admin.execute("create table imported (n int primary key)")

    @q.task(retry=TWICE)
    def job(ctx: Context) -> None:
        def load(cursor: int | None) -> None:
            with psycopg.connect(fresh_db) as conn:
                for n in range((cursor or 0) + 1, 6):
                    conn.execute("insert into imported values (%s)", [n])
                    ctx.set_step_cursor_tx(conn, n)
                    if n == 3 and ctx.attempt == 1:
                        raise OSError  # rolls the third one back
                    conn.commit()

        ctx.step_cursor("load", load)

    id = job.enqueue().id
    assert run_alone(q, id).state is State.COMPLETED
    assert admin.execute("select array_agg(n order by n) from imported").fetchone() == ([1, 2, 3, 4, 5],)
    assert admin.execute("select count(*) from pgqueue.checkpoint").fetchone() == (0,)


@pytest.mark.parametrize("commits", [True, False])
def test_a_job_completed_in_a_transaction_is_so_if_that_commits(q: PgQueue, fresh_db: str, commits: bool) -> None:
    @q.task(retry=Retry(max_attempts=1))
    def job(ctx: Context) -> str:
        with psycopg.connect(fresh_db) as conn:
            ctx.complete_tx(conn, result={"in": "tx"})
            conn.commit() if commits else conn.rollback()
        return "ignored"

    ended = run_alone(q, job.enqueue().id)
    if commits:
        assert (ended.state, ended.result, ended.errors) == (State.COMPLETED, {"in": "tx"}, [])
    else:
        assert ended.state is State.DISCARDED
        assert "rolled back or never committed" in str(ended.errors[0]["message"])


async def test_a_coroutine_marks_its_steps_on_an_async_connection(
    q: PgQueue, admin: psycopg.Connection, fresh_db: str
) -> None:
    @q.task(retry=TWICE)
    async def job(ctx: AsyncContext) -> list[object]:
        async def copy() -> None:
            async with await psycopg.AsyncConnection.connect(fresh_db) as conn:
                await ctx.set_step_tx(conn)
            seen.append("copied")

        await ctx.step("copy", copy)
        async for n in ctx.resume("items", [1, 2, 3, 4], key=lambda n: n):
            seen.append(n)
            if n == 3 and ctx.attempt == 1:
                raise OSError
        ctx.save(count=len(seen))
        return seen

    seen: list[object] = []
    id = job.enqueue().id
    with working(q):
        ended = await asyncio.to_thread(lambda: done(q, id)[0])
    assert ended.state is State.COMPLETED
    assert seen == ["copied", 1, 2, 3, 3, 4], "an item is done when the loop asks for the next one"
    assert checkpoint(admin, id) == {"data": {"count": 6}}, "data outlives success"


def test_steps_in_a_process_survive_its_death(q: PgQueue, admin: psycopg.Connection) -> None:
    job = q.task(executor="process", retry=Retry(max_attempts=1))(deeds.resumes)
    ended = run_alone(q, job.enqueue(at=3).id)
    assert ended.state is State.COMPLETED
    assert ended.crashes == 1
    assert ended.result == {"result of the step": 42, "cursor": 3}


def test_damaged_metadata_is_one_clear_error_and_stays_as_it_is(q: PgQueue, admin: psycopg.Connection) -> None:
    """30."""

    @q.task(retry=Retry(max_attempts=1))
    def job(ctx: Context) -> None:
        ctx.step("a", lambda: None)

    id = job.enqueue().id
    admin.execute("""update pgqueue.job set metadata = '{"pgqueue": {"cursor": [1]}}'""")
    ended = run_alone(q, id)
    assert f"job {id} (job): its checkpoint can't be read" in str(ended.errors[0]["message"])
    assert checkpoint(admin, id) == {"cursor": [1]}


def test_checkpoint_every_makes_steps_durable_while_the_job_runs(q: PgQueue, admin: psycopg.Connection) -> None:
    go = threading.Event()

    @q.task(checkpoint_every=0.01)
    def job(ctx: Context) -> None:
        def load(cursor: int | None) -> None:
            ctx.set_cursor(7)
            awaited(go)
            ctx.set_cursor(8)
            raise Snooze(3600)

        ctx.step("first", lambda: "done")
        ctx.step_cursor("load", load)

    id = job.enqueue().id
    with working(q):
        until(admin, "select count(*) = 2 from pgqueue.checkpoint")
        assert checkpoint(admin, id) == {"done": {"first": "done"}, "cursor": {"load": 7}}, "the view shows it"
        assert admin.execute("select metadata from pgqueue.job").fetchone() == ({},), "the row isn't written for it"
        go.set()
        until(admin, "select state = 'scheduled' from pgqueue.jobs")
    assert checkpoint(admin, id) == {"done": {"first": "done"}, "cursor": {"load": 8}}
    assert admin.execute("select count(*) from pgqueue.checkpoint").fetchone() == (0,)


CALLS = {
    "set_step_tx": lambda ctx, conn: ctx.step("s", lambda: ctx.set_step_tx(conn)),
    "set_step_cursor_tx": lambda ctx, conn: ctx.step_cursor("s", lambda cursor: ctx.set_step_cursor_tx(conn, 1)),
    "complete_tx": lambda ctx, conn: ctx.complete_tx(conn),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "sqlalchemy"])
def test_a_mark_on_a_connection_in_autocommit_mode_is_refused(
    q: PgQueue, admin: psycopg.Connection, fresh_db: str, call: str, driver: str
) -> None:
    """It would commit without the work that it stands for."""

    @q.task(retry=Retry(max_attempts=1))
    def job(ctx: Context) -> None:
        if driver == "psycopg":
            with psycopg.connect(fresh_db, autocommit=True) as conn:
                CALLS[call](ctx, conn)
        elif driver == "psycopg2":
            plain = psycopg2.connect(fresh_db)
            plain.autocommit = True
            CALLS[call](ctx, plain)
        else:
            url = fresh_db.replace("postgresql://", "postgresql+psycopg://")
            engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
            with engine.connect() as connection:
                CALLS[call](ctx, connection)

    ended = run_alone(q, job.enqueue().id)
    assert ended.state is State.DISCARDED
    assert "in autocommit mode" in str(ended.errors[0]["message"])
    assert str(ended.errors[0]["type"]) == "pgqueue.errors.InvalidConnection"
    assert admin.execute("select count(*) from pgqueue.checkpoint").fetchone() == (0,)
