"""A connection that the event loop watches: what it hears by itself, and how a statement without an answer ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import psycopg
import pytest

from pgqueue.db.connect import aconnect_direct
from pgqueue.db.waiting import NoAnswer, WatchedConnection
from tests.crash.kit import Proxy
from tests.db.listening import listening

LARGE = 32 * 1024 * 1024  # more than a socket takes at once
LOCK = 77
END_LISTENERS = """
select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and application_name = 'pgqueue listen'
"""


@pytest.fixture
async def watched(dsn: str) -> AsyncIterator[WatchedConnection]:
    conn = await aconnect_direct(dsn, role="test")
    yield conn
    await conn.close()


@pytest.fixture
async def heard(watched: WatchedConnection) -> asyncio.Queue[bytes]:
    """What the notifications say that it gets on the channel waiting_test."""
    found: asyncio.Queue[bytes] = asyncio.Queue()
    watched.pgconn.notify_handler = lambda notify: found.put_nowait(notify.extra)
    await watched.execute("listen waiting_test")
    return found


async def test_a_statement_larger_than_the_sockets_buffer_and_its_answer_go_through(watched: WatchedConnection) -> None:
    text = "x" * LARGE
    for _ in range(2):
        assert await (await watched.execute("select %s::text", [text])).fetchone() == (text,)
    assert await (await watched.execute("select 1")).fetchone() == (1,)


async def test_a_failed_statement_leaves_the_connection_as_it_was(
    watched: WatchedConnection, heard: asyncio.Queue[bytes], conn: psycopg.Connection
) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        await watched.execute("select 1 / 0")
    conn.execute("notify waiting_test, 'after'")
    assert await asyncio.wait_for(heard.get(), 10) == b"after"
    assert await (await watched.execute("select 1")).fetchone() == (1,)


async def test_a_notification_comes_when_nobody_asks_and_between_statements(
    watched: WatchedConnection, heard: asyncio.Queue[bytes], conn: psycopg.Connection
) -> None:
    for n in range(3):
        conn.execute("select pg_notify('waiting_test', %s)", [str(n)])
        assert await asyncio.wait_for(heard.get(), 10) == str(n).encode()
        await watched.execute("select 1")


async def test_the_end_of_an_idle_connection_is_noticed_at_once(
    watched: WatchedConnection, conn: psycopg.Connection
) -> None:
    lost = asyncio.Event()
    watched.on_lost = lost.set
    conn.execute("select pg_terminate_backend(%s)", [watched.info.backend_pid])
    await asyncio.wait_for(lost.wait(), 10)
    assert watched.closed
    with pytest.raises(psycopg.OperationalError):
        await watched.execute("select 1")


async def test_a_connection_that_ends_during_a_statement_fails_it(
    watched: WatchedConnection, conn: psycopg.Connection
) -> None:
    statement = await blocked(watched, conn)
    conn.execute("select pg_terminate_backend(%s)", [watched.info.backend_pid])
    with pytest.raises(psycopg.OperationalError):
        await statement
    assert watched.closed


async def test_a_connection_that_breaks_while_a_large_statement_is_sent_fails_it(dsn: str) -> None:
    port = urlsplit(dsn).port or 5432
    with contextlib.closing(Proxy(port)) as proxy:
        watched = await aconnect_direct(dsn.replace(f":{port}/", f":{proxy.port}/"), role="test")
        proxy.freeze("test")
        statement = asyncio.create_task(watched.execute("select %s::text", ["x" * LARGE]))
        async with asyncio.timeout(10):
            while not watched._writing:  # noqa: ASYNC110 - until the socket takes no more
                await asyncio.sleep(0.01)
        proxy.close()
        with pytest.raises(psycopg.OperationalError) as caught:
            await asyncio.wait_for(statement, 10)
        assert not isinstance(caught.value, NoAnswer)
        assert watched.closed
        await watched.close()


async def test_closing_fails_the_statement_under_way(watched: WatchedConnection, conn: psycopg.Connection) -> None:
    statement = await blocked(watched, conn)
    await watched.close()
    with pytest.raises(psycopg.OperationalError, match="closed while a statement was under way"):
        await statement


async def test_a_statement_without_an_answer_is_given_up_and_cancelled_on_the_server(
    watched: WatchedConnection, conn: psycopg.Connection
) -> None:
    watched.answer_within = 0.2
    pid = watched.info.backend_pid
    statement = await blocked(watched, conn)
    with pytest.raises(NoAnswer, match=r"no answer within 0\.2 s"):
        await statement
    assert watched.closed
    await until_given_up(conn, pid)


async def test_a_statement_whose_task_is_cancelled_is_cancelled_on_the_server(
    watched: WatchedConnection, conn: psycopg.Connection
) -> None:
    pid = watched.info.backend_pid
    statement = await blocked(watched, conn)
    statement.cancel()
    with pytest.raises(asyncio.CancelledError):
        await statement
    assert watched.closed
    await until_given_up(conn, pid)


async def test_a_listener_whose_connection_ends_is_back_at_once(fresh_db: str, conn: psycopg.Connection) -> None:
    """Not with its next question whether the server is there, 15 seconds later."""
    ready: asyncio.Queue[str | None] = asyncio.Queue()
    async with listening(fresh_db, ready.put_nowait):
        for _ in range(3):
            assert await asyncio.wait_for(ready.get(), 10) is None
            conn.execute(END_LISTENERS, [psycopg.conninfo.conninfo_to_dict(fresh_db)["dbname"]])
        assert await asyncio.wait_for(ready.get(), 10) is None


async def blocked(watched: WatchedConnection, conn: psycopg.Connection) -> asyncio.Task[object]:
    """A statement that waits for a lock of `conn`, which the server has."""
    conn.execute("select pg_advisory_lock(%s)", [LOCK])
    task: asyncio.Task[object] = asyncio.create_task(watched.execute("select pg_advisory_lock(%s)", [LOCK]))
    await until(conn, "select count(*) = 1 from pg_locks where pid = %s and not granted", watched.info.backend_pid)
    return task


async def until_given_up(conn: psycopg.Connection, pid: int) -> None:
    await until(conn, "select count(*) = 0 from pg_locks where pid = %s and not granted", pid)


async def until(conn: psycopg.Connection, query: str, pid: int) -> None:
    async with asyncio.timeout(10):
        while conn.execute(query, [pid]).fetchone() != (True,):  # noqa: ASYNC110 - seen in the server
            await asyncio.sleep(0.01)
