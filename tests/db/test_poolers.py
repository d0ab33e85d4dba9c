"""A pooler that we were not told of is found out before it does harm, and the error says what to set."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue import PgQueue
from pgqueue.app import child_context
from pgqueue.context import Context
from pgqueue.core.job import Claimed
from pgqueue.db import listen
from pgqueue.db.connect import aconnect, aconnect_direct, connect, connect_direct, is_outage
from pgqueue.db.pool import AsyncPool, Pool, PoolOptions
from pgqueue.db.session import Session
from pgqueue.engine.child import ChildJob
from pgqueue.errors import ConfigError
from pgqueue.store.statement import Row, Statement
from tests.cli.commands import APP, finish
from tests.db.listening import listening
from tests.db.pooler import Fate, Pooler

PATIENCE = 30.0
REMEDY = r"PgBouncer behind this DSN: set pooled=True \(PGQUEUE_POOLED=1\) and direct_dsn"
ONE_EACH = PoolOptions(max_size=1, budget=timedelta(seconds=1))
FORGETS_ALL = "deallocate all"


def _scalar(rows: Sequence[Row]) -> object:
    return rows[0][0]


ONE = Statement("select 1", {}, _scalar)


def prepares(name: str) -> str:
    return f"prepare {name} as select 1"


@pytest.fixture
def another(conn: psycopg.Connection) -> Callable[[str], Statement[object]]:
    """What another client of a pooler does to the server's session before it is ours. psycopg can't see it."""
    conn.execute("""create function another_does(what text) returns int language plpgsql as
        'begin execute what; return 1; end'""")
    return lambda what: Statement("select public.another_does(%(what)s)", {"what": what}, _scalar)


@pytest.fixture
def pooler(dsn: str) -> Iterator[Callable[[Fate], Pooler]]:
    with contextlib.ExitStack() as stack:

        def make(options: Fate) -> Pooler:
            return stack.enter_context(contextlib.closing(Pooler(dsn, options)))

        yield make


async def test_a_direct_connection_is_opened_with_the_users_settings_and_ours(dsn: str) -> None:
    given = make_conninfo(dsn, options="-c work_mem=5MB -c search_path=nowhere")
    query = "select current_setting('work_mem'), current_setting('search_path'), current_setting('application_name')"
    found = ("5MB", "pg_catalog", "pgqueue test")
    settings = {"search_path": "pg_catalog"}
    with connect_direct(given, role="test", settings=settings) as conn:
        assert conn.autocommit
        assert conn.execute(query).fetchone() == found
    async with await aconnect_direct(given, role="test", settings=settings) as aconn:
        assert aconn.autocommit
        assert await (await aconn.execute(query)).fetchone() == found


@pytest.mark.parametrize("options", ["refused", "dropped"])
async def test_a_direct_connection_is_not_one_through_a_pooler(pooler: Callable[[Fate], Pooler], options: Fate) -> None:
    between = pooler(options)
    with pytest.raises(ConfigError, match=r"pooler behind this DSN .* give direct_dsn") as caught:
        connect_direct(between.dsn, role="test")
    with pytest.raises(ConfigError, match=r"pooler behind this DSN .* give direct_dsn"):
        await aconnect_direct(between.dsn, role="test")
    assert not is_outage(caught.value)
    assert b"current_setting" not in between.sent if options == "refused" else b"current_setting" in between.sent


async def test_a_pooler_that_refuses_our_settings_is_named_at_once(pooler: Callable[[Fate], Pooler]) -> None:
    dsn = pooler("refused").dsn
    with pytest.raises(ConfigError, match=REMEDY):
        connect(dsn, role="test")
    with pytest.raises(ConfigError, match=REMEDY):
        await aconnect(dsn, role="test")
    with pytest.raises(ConfigError, match=REMEDY), contextlib.closing(Pool(dsn)) as pool:
        pool.run(ONE)
    apool = AsyncPool(dsn)
    with pytest.raises(ConfigError, match=REMEDY):
        await apool.arun(ONE)
    await apool.aclose()
    with pytest.raises(psycopg.OperationalError) as raw:  # as loops see it whose connection is not opened by `connect`
        psycopg.connect(dsn, options="-c work_mem=5MB")
    assert not is_outage(raw.value)


async def test_behind_a_pooler_that_is_known_all_is_well(pooler: Callable[[Fate], Pooler]) -> None:
    known = PoolOptions(pooled=True)
    dsn = pooler("refused").dsn
    with contextlib.closing(Pool(dsn, options=known)) as pool:
        assert pool.run(ONE) == 1
    apool = AsyncPool(dsn, options=known)
    assert await apool.arun(ONE) == 1
    await apool.aclose()


@pytest.mark.parametrize("what", [prepares("_pg3_0"), FORGETS_ALL])
async def test_prepared_statements_that_got_lost_tell_of_a_pooler(
    dsn: str, another: Callable[[str], Statement[object]], what: str
) -> None:
    often = [ONE] * 6  # psycopg prepares what has run five times
    before = often if what is FORGETS_ALL else []
    with contextlib.closing(Pool(dsn, options=ONE_EACH)) as pool:

        def run_all(statements: Sequence[Statement[object]]) -> list[object]:
            return [pool.run(each) for each in statements]

        run_all([*before, another(what)])
        with pytest.raises(ConfigError, match=REMEDY):
            run_all(often)
    apool = AsyncPool(dsn, options=ONE_EACH)

    async def arun_all(statements: Sequence[Statement[object]]) -> list[object]:
        return [await apool.arun(each) for each in statements]

    await arun_all([*before, another(what)])
    with pytest.raises(ConfigError, match=REMEDY):
        await arun_all(often)
    await apool.aclose()


@pytest.mark.parametrize(("what", "then"), [(prepares("_pg3_2"), "select 2"), (FORGETS_ALL, ONE.sql)])
async def test_the_engines_session_tells_of_it_too(
    dsn: str, another: Callable[[str], Statement[object]], what: str, then: str
) -> None:
    session = Session(dsn, role="test", pooled=False)
    assert await session.run(ONE) == 1
    assert await session.run(another(what)) == 1
    with pytest.raises(ConfigError, match=REMEDY) as caught:
        await session.run(Statement(then, {}, _scalar))
    assert isinstance(caught.value, psycopg.Error)  # so that the loops of a running worker try again
    assert not is_outage(caught.value)
    await session.close()


def test_a_worker_does_not_start_behind_a_pooler_that_it_was_not_told_of(
    pooler: Callable[[Fate], Pooler], tmp_path: Path
) -> None:
    dsn = pooler("refused").dsn
    q = PgQueue(dsn)
    q.task(_nothing)
    with pytest.raises(ConfigError, match=REMEDY):
        q.worker().start()
    (tmp_path / "app.py").write_text(APP)
    for command in (["worker", "-A", "app", "--check"], ["enqueue", "mail"]):
        done = finish(*command, dsn=dsn, cwd=tmp_path)
        assert done.returncode == 2
        assert "set pooled=True" in done.stderr


def _nothing() -> None: ...


def test_a_task_without_a_queue_object_borrows_connections_that_suit_the_pooler(
    pooler: Callable[[Fate], Pooler],
) -> None:
    job = Claimed(1, 1, "quick", "{}", None, 0, None, 0, None, None, None, 0)
    settings = {"dsn": pooler("refused").dsn, "pooled": True, "schema": "pgqueue", "install": str(UUID(int=0))}
    child = ChildJob(job, "default", 1, None, None, False, settings)
    context = cast("Context", child_context(child, cast("Any", _Undisturbed())))
    with context.connection() as conn:
        assert conn.execute("select 1").fetchone() == (1,)
        assert conn.prepare_threshold is None


class _Undisturbed:
    reason = None
    began = 0.0


async def test_a_listener_leaves_nothing_in_a_poolers_session_and_begins_when_the_pooler_has_gone(
    pooler: Callable[[Fate], Pooler], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listen, "POOLER_RETRY", 0.01)
    between = pooler("dropped")
    ready: asyncio.Queue[str | None] = asyncio.Queue()
    async with asyncio.timeout(PATIENCE), listening(between.dsn, ready.put_nowait):
        for _ in range(3):  # it has tried again, twice
            assert await asyncio.to_thread(between.starts.acquire, timeout=PATIENCE)
        assert b'listen "' not in between.sent
        warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
        assert len(warnings) == 1
        assert "leads to a pooler: polling instead of LISTEN" in warnings[0]
        between.options = "passed"
        assert await ready.get() is None
        assert b'listen "pgqueue.ready"' in between.sent


async def test_nothing_that_a_notification_says_ends_the_listening(
    dsn: str, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listen, "PING_EVERY", 3600.0)  # which would read what was left unread
    heard: asyncio.Queue[str | None] = asyncio.Queue()

    def note(queue: str | None) -> None:
        heard.put_nowait(queue)
        if queue == "bad":
            raise LookupError(queue)

    async with asyncio.timeout(PATIENCE), listening(make_conninfo(dsn, client_encoding="latin1"), note):
        assert await heard.get() is None
        conn.execute("select pg_notify('pgqueue.ready', said) from unnest(array['café', 'bad', 'good']) said")
        assert [await heard.get() for _ in range(3)] == ["caf\ufffd", "bad", "good"]
    assert [str(each.exc_info[1]) for each in caplog.records if each.exc_info] == ["bad"]
