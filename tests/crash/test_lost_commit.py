"""COMMIT and the network: its answer is lost, or it never arrives. The task gets an error and can't know which it was.

The job knows: what was committed with a mark isn't done again, and what wasn't is done by the next attempt. The worker
reaches PostgreSQL directly; only the task's own connection goes through the proxy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from pgqueue import AsyncContext, Context, Job, PgQueue, Retry, State
from tests.crash.kit import Proxy
from tests.db.kinds import KINDS
from tests.engine.kit import run_alone

ROLE = "task"  # by which the proxy knows the connection
ITEMS = (1, 2, 3)
TWICE = Retry(max_attempts=2, cap=0)
SYNC = ["psycopg", "psycopg2", "sqlalchemy Session psycopg2"]
ASYNC = ["psycopg async", "asyncpg", "sqlalchemy AsyncSession psycopg"]


def drive(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits, as those of the sync kinds of connection."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waited")


async def awaited(value: object) -> Any:
    return await value if inspect.isawaitable(value) else value


@dataclass
class Scene:
    """Work in a table, and a proxy that cuts the task's connection at one COMMIT of the first attempt.

    executed  that COMMIT reaches the server; else it doesn't
    entered   what the step's function was called with, each time
    """

    q: PgQueue
    proxy: Proxy
    admin: psycopg.Connection
    dsn: str
    kind: str
    executed: bool
    entered: list[object] = field(default_factory=list)
    raised: list[BaseException] = field(default_factory=list)

    def task(self, body: Callable[[Any, Any], Coroutine[Any, Any, object]]) -> Any:
        """A task of the connection's colour. `body` gets its context, and what calls a verb of that with a step."""

        @self.q.task(retry=TWICE)
        def job(ctx: Context) -> object:
            return drive(body(ctx, lambda verb, name, fn: verb(name, lambda *args: drive(fn(*args)))))

        @self.q.task(retry=TWICE)
        async def ajob(ctx: AsyncContext) -> object:
            return await body(ctx, lambda verb, name, fn: verb(name, fn))

        return ajob if self.kind in ASYNC else job

    async def commit(self, ctx: Context | AsyncContext, item: int, mark: Callable[[Any], object]) -> None:
        """One item and its mark, in a transaction of its own. The second one's COMMIT is cut, in the first attempt."""
        async with KINDS[self.kind](self.dsn) as opened:
            await opened.execute(f"insert into work values ({item})")
            await awaited(mark(opened.conn))
            if (ctx.attempt, item) != (1, 2):
                await opened.commit()
                return
            self.proxy.cut(ROLE, after=self.executed)
            try:
                await opened.commit()
            except BaseException as error:
                self.raised.append(error)
                raise

    def run(self, job: Any) -> Job:
        """A job of this task, at its end."""
        id = job.enqueue().id
        run_alone(self.q, id)
        assert self.proxy.cut_done[ROLE].is_set()
        assert len(self.raised) == 1, "the driver reports it"
        return self.q.job(id)  # after the worker has written all it had to say

    @property
    def items(self) -> list[int]:
        return [item for (item,) in self.admin.execute("select item from work order by item").fetchall()]


@pytest.fixture
def scene(q: PgQueue, fresh_db: str, kind: str, executed: bool) -> Iterator[Scene]:
    port = urlsplit(fresh_db).port or 5432
    proxy = Proxy(port)
    through = fresh_db.replace(f":{port}/", f":{proxy.port}/") + f"?application_name=pgqueue%20{ROLE}"
    with psycopg.connect(fresh_db, autocommit=True) as admin:
        admin.execute("create table work (item int)")
        yield Scene(q, proxy, admin, through, kind, executed)
    proxy.close()


pytestmark = [
    pytest.mark.parametrize("kind", SYNC + ASYNC),
    pytest.mark.parametrize("executed", [True, False], ids=["answer lost", "never arrived"]),
]


def test_a_cursor_whose_commit_is_in_doubt_goes_on_from_what_was_committed(scene: Scene) -> None:
    async def body(ctx: Any, run: Any) -> None:
        async def load(cursor: int | None) -> None:
            scene.entered.append(cursor)
            for item in ITEMS[cursor or 0 :]:
                await scene.commit(ctx, item, partial(ctx.set_step_cursor_tx, value=item))

        await awaited(run(ctx.step_cursor, "load", load))

    ended = scene.run(scene.task(body))
    assert (ended.state, ended.attempt) == (State.COMPLETED, 2)
    assert scene.items == [1, 2, 3]
    assert scene.entered == [None, 2 if scene.executed else 1]


def test_a_step_whose_commit_is_in_doubt_runs_again_only_if_it_was_not_committed(scene: Scene) -> None:
    async def body(ctx: Any, run: Any) -> None:
        async def copy() -> None:
            scene.entered.append(ctx.attempt)
            await scene.commit(ctx, 2, ctx.set_step_tx)

        await awaited(run(ctx.step, "copy", copy))

    ended = scene.run(scene.task(body))
    assert (ended.state, ended.attempt) == (State.COMPLETED, 2)
    assert scene.items == [2]
    assert scene.entered == ([1] if scene.executed else [1, 2])


def test_a_step_whose_error_is_swallowed_is_done_only_if_it_was_committed(scene: Scene) -> None:
    """The task goes on as if nothing had happened, and fails later: it is still the row that decides."""

    async def body(ctx: Any, run: Any) -> None:
        async def copy() -> None:
            scene.entered.append(ctx.attempt)
            try:
                await scene.commit(ctx, 2, ctx.set_step_tx)
            except Exception:
                return

        await awaited(run(ctx.step, "copy", copy))
        if ctx.attempt == 1:
            raise OSError

    ended = scene.run(scene.task(body))
    assert (ended.state, ended.attempt) == (State.COMPLETED, 2)
    assert scene.items == [2]
    assert scene.entered == ([1] if scene.executed else [1, 2])


@pytest.mark.parametrize("swallows", [False, True], ids=["raises", "swallows"])
def test_a_completion_whose_commit_is_in_doubt_stands_if_it_was_committed(scene: Scene, swallows: bool) -> None:
    async def body(ctx: Any, run: Any) -> str:
        scene.entered.append(ctx.attempt)
        try:
            await scene.commit(ctx, 2, partial(ctx.complete_tx, result=f"of attempt {ctx.attempt}"))
        except Exception:
            if not swallows:
                raise
        return "ignored"

    ended = scene.run(scene.task(body))
    assert ended.state is State.COMPLETED
    assert scene.items == [2]
    if scene.executed:
        assert (ended.result, scene.entered, ended.errors) == ("of attempt 1", [1], [])
    else:
        assert (ended.result, scene.entered, len(ended.errors)) == ("of attempt 2", [1, 2], 1)
        assert ("never committed" in str(ended.errors[0]["message"])) is swallows
    assert scene.admin.execute("select count(*) from pgqueue.checkpoint").fetchone() == (0,)
