"""Resumable jobs, end to end: misuse, the async face, and what is made durable while a job runs.

See tests/conformance for what an attempt leaves to the next one, tests/features for the rules without a database.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import psycopg2
import pytest
import sqlalchemy

from pgqueue import AsyncContext, Context, PgQueue, Retry, Snooze, State
from pgqueue.engine import keeping
from tests.engine.kit import awaited, done, run_alone, until, value, working

TWICE = Retry(max_attempts=2, cap=0)


def checkpoint(admin: psycopg.Connection, id: int) -> Any:
    """What is stored of a job's steps."""
    row = admin.execute("select metadata -> 'pgqueue' from pgqueue.jobs where id = %s", [id]).fetchone()
    assert row is not None
    return row[0]


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
    @q.task(retry=Retry(max_attempts=1))
    def job(ctx: Context) -> None:
        ctx.step("before", lambda: 1)
        misuse(ctx)

    ended = run_alone(q, job.enqueue().id)
    assert ended.state is State.DISCARDED
    assert re.search(said, str(ended.errors[0]["message"]))
    assert checkpoint(admin, ended.id)["done"]["before"] == 1


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


def test_what_was_kept_in_parts_is_all_kept(
    q: PgQueue, admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "KEEP_BYTES", 10)  # a statement for each
    go = threading.Event()

    @q.task(checkpoint_every=0.01)
    def job(ctx: Context, n: int) -> None:
        ctx.save(text=f"job {n} has this to say")
        awaited(go)
        ctx.progress("half")

    jobs = job.enqueue_many([(n,) for n in range(5)])
    with working(q):
        until(admin, "select count(*) = 5 from pgqueue.checkpoint")
        go.set()
        done(q, *[each.id for each in jobs])
    assert [checkpoint(admin, each.id)["data"]["text"] for each in jobs] == [
        f"job {n} has this to say" for n in range(5)
    ]


def test_what_could_not_be_kept_while_a_transaction_held_the_job_is_kept_after_it(
    q: PgQueue, admin: psycopg.Connection
) -> None:
    marked, commit, end = threading.Event(), threading.Event(), threading.Event()

    @q.task(checkpoint_every=0.01)
    def job(ctx: Context) -> None:
        def work() -> None:
            with ctx.connection() as conn, conn.transaction():
                ctx.set_step_tx(conn)
                ctx.save(meanwhile=1)
                marked.set()
                awaited(commit)

        ctx.step("work", work)
        awaited(end)

    job.enqueue()
    with working(q):
        awaited(marked)
        pulses = "select seen_at > %s from pgqueue.workers where state = 'active'"
        until(admin, pulses, value(admin, "select max(seen_at) from pgqueue.workers"))  # it has been tried meanwhile
        assert value(admin, "select count(*) from pgqueue.checkpoint") == 0
        commit.set()
        until(admin, "select count(*) = 2 from pgqueue.checkpoint")
        end.set()


def test_a_task_keeps_what_its_steps_reach_unless_it_says_otherwise(q: PgQueue) -> None:
    @q.task
    def usual() -> None: ...

    @q.task(checkpoint_every=None)
    def never() -> None: ...

    assert (usual.checkpoint_every, never.checkpoint_every) == (10.0, None)


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
