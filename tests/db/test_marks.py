"""Marks on every kind of connection: what commits is there, what is rolled back never was, a refusal loses nothing.

One attempt is at hand without a worker: a desk claims its job, and the context is the one that a worker would make.
The last tests let a real worker do it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import psycopg
import pytest
from pytest_postgresql.executors.noop import NoopExecutor

from pgqueue import AsyncContext, Context, PgQueue, Retry, State
from pgqueue.app import context_of
from pgqueue.db.drivers import resolve
from pgqueue.engine.executors import ThreadExecutor
from pgqueue.engine.lane import Attempt, Lane, Lease
from pgqueue.errors import InvalidConnection, SchemaMismatch
from pgqueue.store.statement import Statement
from tests.conftest import dsn_of
from tests.db.kinds import KINDS, Opened
from tests.engine.kit import done, working
from tests.servers import Server, versions
from tests.store.desk import Desk, Held

CALLS = ["set_step_tx", "set_step_cursor_tx", "complete_tx"]
RESULT = {"n": 5}
CAN_BE_CLOSED = re.compile(r"psycopg2?(?! traced)( |$)|asyncpg|sqlalchemy (Async)?Connection")  # for good
BEFORE = {"done": {"before": 7}, "data": {"total": 3}}  # what the attempt has recorded in memory

KIND = pytest.mark.parametrize("kind", KINDS)


def drive(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits, as those of the sync kinds of connection."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waited")


async def awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


class User:
    """The code of a task, in the colour of its context, written once.

    entered  the cursors with which the marked step began
    """

    def __init__(self, ctx: Any) -> None:
        self.ctx = ctx
        self.entered: list[object] = []

    async def step(self, verb: str, name: str, fn: Callable[..., Coroutine[Any, Any, object]]) -> Any:
        call = getattr(self.ctx, verb)
        if isinstance(self.ctx, AsyncContext):
            return await call(name, fn)
        return call(name, lambda *args: drive(fn(*args)))

    async def before(self) -> object:
        """A step, and data, before anything is marked."""

        async def answer() -> int:
            return 7

        self.ctx.save(total=3)
        return await self.step("step", "before", answer)

    async def mark(self, call: str, conn: object, then: Callable[[], Awaitable[object]] | None = None) -> Any:
        """What the step returns that makes this call on `conn` (None: doesn't), and then ends the transaction."""

        async def work(cursor: object = None) -> Any:
            self.entered.append(cursor)
            if conn is None:
                return None
            if call == "set_step_cursor_tx":
                await awaited(self.ctx.set_step_cursor_tx(conn, 5))
            else:
                await awaited(getattr(self.ctx, call)(conn, RESULT))
            if then is not None:
                await then()
            return "what the function returns"

        if call == "complete_tx":
            return await work()
        return await self.step("step_cursor" if call == "set_step_cursor_tx" else "step", f"by {call}", work)


class Stage:
    """A job that is being run, attempt after attempt."""

    def __init__(self, dsn: str, desk: Desk, *, is_async: bool) -> None:
        self.desk = desk
        self.id = desk.enqueue_one()
        self.q = PgQueue(dsn)
        self.task: Any = self.q.task(name="k")(asyncio.sleep if is_async else lambda: None)  # only its colour matters
        self.held: Held = desk.claim()
        self.begin()

    def begin(self) -> None:
        lane, lease = Lane("default", 1, lambda: None), Lease(self.held.lease, 1)
        executor = ThreadExecutor(lambda attempt, ended: None, lambda attempt: None)
        attempt = Attempt(self.held.jobs[0], self.task, lane, lease, executor)
        self.user = User(context_of(attempt, self.q.worker()._parts, self.desk.install))

    @property
    def patch(self) -> dict[str, Any]:
        """What the attempt would leave in memory, if it ended now."""
        found: dict[str, Any] = json.loads(self.user.ctx._memory().patch() or "{}")
        return {part: values for part, values in found.items() if values}

    async def next_attempt(self) -> User:
        """This attempt ends; the user of the next one, who finds the earlier step."""
        self.desk.settle(self.held, "available", checkpoint=self.patch)
        self.held = self.desk.claim()
        assert self.held.ids == [self.id]
        self.begin()
        assert await self.user.before() == 7
        assert self.patch == {"data": BEFORE["data"]}, "the step isn't run again"
        return self.user

    def works(self) -> int:
        """How often the caller's own work was committed."""
        return int(str(self.desk.value("select count(*) from work")))


WORK = "insert into work values (1)"


@pytest.fixture(scope="session")
def template(newest_template: NoopExecutor) -> NoopExecutor:
    """Overrides the one that runs every test on each server: what is tested is the connections."""
    return newest_template


@pytest.fixture
def desk(dsn: str) -> Iterator[Desk]:
    with Desk(dsn) as found:
        found.sql("create table work (n int)")
        yield found


@contextlib.asynccontextmanager
async def opening(kind: str, dsn: str, *, spoilt: bool = False) -> AsyncIterator[Opened]:
    """A connection amid a transaction; one that the test spoils may close as badly as it likes."""
    found = KINDS[kind](dsn)
    opened = await found.__aenter__()
    try:
        yield opened
    finally:
        with contextlib.suppress(*[Exception] if spoilt else []):
            await found.__aexit__(None, None, None)


def stage_for(opened: Opened, dsn: str, desk: Desk, *, wrong_colour: bool = False) -> Stage:
    return Stage(dsn, desk, is_async=resolve(opened.conn)[1].is_async is not wrong_colour)


# Committed and rolled back


@KIND
@pytest.mark.parametrize("call", CALLS)
async def test_a_mark_is_there_as_soon_as_its_transaction_commits_and_no_sooner(
    dsn: str, desk: Desk, kind: str, call: str
) -> None:
    async with opening(kind, dsn) as opened:
        stage = stage_for(opened, dsn, desk)
        await stage.user.before()
        before = desk.snapshot()
        await opened.execute(WORK)

        async def commit() -> None:
            assert (desk.snapshot(), stage.works()) == (before, 0)
            await opened.commit()

        returned = await stage.user.mark(call, opened.conn, commit)
    assert stage.works() == 1
    assert stage.patch == BEFORE, "memory doesn't claim what the row says"
    match call:
        case "set_step_tx":
            again = await stage.next_attempt()
            assert returned == await again.mark(call, None) == RESULT
            assert again.entered == []
        case "set_step_cursor_tx":
            again = await stage.next_attempt()
            await again.mark(call, None)
            assert again.entered == [5]
        case "complete_tx":
            job = desk.job(stage.id)
            assert (job.state, job.result) == (State.COMPLETED, RESULT)
            assert job.metadata == {"pgqueue": {"data": {"total": 3}}}
            assert desk.settle(stage.held, "retryable", delay=0, checkpoint=stage.patch) == {}, "nothing more counts"


@KIND
@pytest.mark.parametrize("undo", ["rollback", "savepoint"])
async def test_a_mark_that_is_rolled_back_leaves_no_trace_in_memory_or_database(
    dsn: str, desk: Desk, kind: str, undo: str
) -> None:
    for call in CALLS:
        async with opening(kind, dsn) as opened:
            stage = stage_for(opened, dsn, desk)
            await stage.user.before()
            before = (desk.snapshot(), stage.works() + (undo == "savepoint"))
            await opened.execute(WORK)
            await opened.execute("savepoint here")

            async def roll_back(opened: Opened = opened) -> None:
                if undo == "rollback":
                    await opened.rollback()
                else:
                    await opened.execute("rollback to savepoint here")
                    await opened.commit()

            await stage.user.mark(call, opened.conn, roll_back)
            assert (desk.snapshot(), stage.works()) == before
            assert stage.user.ctx._memory().completing is (call == "complete_tx"), "then the attempt will fail"
        await nothing_was_lost(stage, call)


async def nothing_was_lost(stage: Stage, call: str) -> None:
    """Nothing is recorded but what was before, and the next attempt comes to the mark as if for the first time."""
    assert stage.patch == BEFORE
    again = await stage.next_attempt()
    assert stage.desk.metadata(stage.id) == {"pgqueue": BEFORE}
    await again.mark(call, None)
    assert again.entered == [None]


# Connections that can't be used

Spoiler = Callable[[Opened, Desk], Awaitable[None]]


async def abort(opened: Opened, desk: Desk) -> None:
    with pytest.raises(Exception, match="division by zero"):
        await opened.run(Statement("select 1 / 0", {}, list))


async def end_session(opened: Opened, desk: Desk) -> None:
    await opened.run(Statement("select 1", {}, list))
    ended = desk.sql(
        """select pg_terminate_backend(pid, 5000) from pg_stat_activity
           where datname = current_database() and pid <> pg_backend_pid() and xact_start is not null"""
    )
    assert (True,) in ended


async def leave_alone(opened: Opened, desk: Desk) -> None:
    pass


async def close(opened: Opened, desk: Desk) -> None:
    await awaited(opened.conn.close())


async def refused(
    kind: str, dsn: str, desk: Desk, spoil: Spoiler, error: type[Exception], said: str, *,
    at: str | None = None, wrong_colour: bool = False,
) -> None:  # fmt: skip
    """Each call gets this error, on a connection to `at`, and loses nothing."""
    for call in CALLS:
        async with opening(kind, at or dsn, spoilt=True) as opened:
            stage = stage_for(opened, dsn, desk, wrong_colour=wrong_colour)
            await stage.user.before()
            before = desk.snapshot()
            await spoil(opened, desk)
            with pytest.raises(error, match=said):
                await stage.user.mark(call, opened.conn)
        assert desk.snapshot() == before
        await nothing_was_lost(stage, call)


@KIND
async def test_an_aborted_transaction_is_refused_and_nothing_is_lost(dsn: str, desk: Desk, kind: str) -> None:
    await refused(kind, dsn, desk, abort, InvalidConnection, "aborted by an earlier error: roll it back")


@KIND
async def test_a_connection_whose_session_was_ended_gets_an_error_and_nothing_is_lost(
    dsn: str, desk: Desk, kind: str
) -> None:
    """Of the driver's, or ours if the driver knows already."""
    await refused(kind, dsn, desk, end_session, Exception, "(?i)terminat|clos|lost|connection")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if CAN_BE_CLOSED.match(kind)])
async def test_a_closed_connection_is_refused_and_nothing_is_lost(dsn: str, desk: Desk, kind: str) -> None:
    await refused(kind, dsn, desk, close, InvalidConnection, "is closed: pass an open connection")


@KIND
async def test_the_wrong_colour_is_refused_and_nothing_is_lost(dsn: str, desk: Desk, kind: str) -> None:
    said = r"is a(n async|\ssync) connection: "
    await refused(kind, dsn, desk, leave_alone, InvalidConnection, said, wrong_colour=True)


@pytest.fixture
def other(fresh_db: str) -> Iterator[Desk]:
    """Another installation, by its desk."""
    with Desk(fresh_db) as found:
        found.sql("update pgqueue.meta set install_id = gen_random_uuid()")
        yield found


@KIND
async def test_a_connection_to_another_database_is_refused_even_if_the_same_numbers_run_there(
    dsn: str, desk: Desk, fresh_db: str, other: Desk, kind: str
) -> None:
    async def run_twin(opened: Opened, desk: Desk) -> None:
        ((lease, *numbers),) = desk.sql("select id, ids[1], claims[1] from pgqueue.lease order by id desc limit 1")
        other.sql("select setval(pg_get_serial_sequence('pgqueue.job', 'id'), %s, false)", numbers[0])
        other.enqueue_one()
        assert [[job.id, job.claim] for job in other.claim(lease=lease).jobs] == [numbers]

    said = r"job \d+: this connection is to another database"
    await refused(kind, dsn, desk, run_twin, InvalidConnection, said, at=fresh_db)
    assert other.states() == {"running": len(CALLS)}
    assert other.value("select count(*) from pgqueue.checkpoint") == 0


@pytest.mark.parametrize("kind", ["psycopg", "psycopg2", "asyncpg", "sqlalchemy Session psycopg"])
async def test_a_database_without_pgqueue_is_refused_and_nothing_is_lost(
    dsn: str, desk: Desk, request: pytest.FixtureRequest, kind: str
) -> None:
    """On another server, where there is one."""
    server: Server = request.getfixturevalue("oldest_server" if "oldest" in versions() else "newest_server")
    elsewhere = dsn_of(server, "postgres")
    await refused(kind, dsn, desk, leave_alone, SchemaMismatch, "run `pgqueue migrate`", at=elsewhere)


# A worker's attempts

WORKERS = ["psycopg2", "sqlalchemy Session psycopg", "django connection", "asyncpg", "sqlalchemy AsyncSession asyncpg"]


@pytest.mark.parametrize("kind", WORKERS)
def test_marks_of_a_workers_attempts_commit_and_roll_back_with_the_work(fresh_db: str, kind: str) -> None:
    """The second item of the first attempt, the first try of the step, and of the completion, are rolled back."""
    entered: list[object] = []

    async def work(ctx: Any, mark: Callable[[Any], object], *, commits: bool) -> None:
        async with opening(kind, fresh_db) as opened:
            await opened.execute(WORK)
            await awaited(mark(opened.conn))
            await (opened.commit() if commits else opened.rollback())
        if not commits:
            raise OSError

    async def body(ctx: Any) -> None:
        async def load(cursor: int | None) -> None:
            entered.append(cursor)
            for item in range((cursor or 0) + 1, 4):
                commits = (ctx.attempt, item) != (1, 2)
                await work(ctx, partial(ctx.set_step_cursor_tx, value=item), commits=commits)

        async def copy() -> None:
            entered.append("copy")
            await work(ctx, partial(ctx.set_step_tx, result=RESULT), commits=ctx.attempt > 2)

        user = User(ctx)
        await user.step("step_cursor", "load", load)
        assert await user.step("step", "copy", copy) == RESULT
        await work(ctx, partial(ctx.complete_tx, result=RESULT), commits=ctx.attempt > 3)
        raise OSError("it is completed all the same")

    q = PgQueue(fresh_db)

    @q.task(retry=Retry(max_attempts=4, cap=0))
    def job(ctx: Context) -> None:
        drive(body(ctx))

    @q.task(retry=Retry(max_attempts=4, cap=0))
    async def ajob(ctx: AsyncContext) -> None:
        await body(ctx)

    with psycopg.connect(fresh_db, autocommit=True) as admin:
        admin.execute("create table work (n int)")
        id = (ajob if "sync" in kind.lower() else job).enqueue().id
        with working(q):
            done(q, id)
        assert admin.execute("select count(*) from work").fetchone() == (5,)
    ended = q.job(id)  # not before the worker has written all it had to say
    assert (ended.state, ended.result, ended.attempt) == (State.COMPLETED, RESULT, 4)
    assert entered == [None, 1, "copy", 3, "copy"]
    q.close()
