"""The pools behind the verbs without `conn=`: lazy, patient, and never twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from pgqueue.db.failure import is_outage
from pgqueue.db.pool import AsyncPool, Pool, PoolOptions
from pgqueue.errors import ConfigError, Unreachable
from pgqueue.store.statement import Row, Statement

NOWHERE = "postgresql://nobody:s3cret@127.0.0.1:1/nothing"
BRIEF = PoolOptions(budget=timedelta(seconds=1))


def _scalar(rows: Sequence[Row]) -> object:
    return rows[0][0]


PID = Statement("select pg_backend_pid()", {}, _scalar)


@pytest.fixture
def pool(dsn: str) -> Iterator[Pool]:
    with contextlib.closing(Pool(dsn)) as found:
        yield found


def end(conn: psycopg.Connection, pid: object) -> None:
    """End a session, and wait until it has gone."""
    assert conn.execute("select pg_terminate_backend(%s, 5000)", [pid]).fetchone() == (True,)


def sessions(conn: psycopg.Connection) -> int:
    row = conn.execute(
        """select count(*) from pg_stat_activity
           where application_name = 'pgqueue client' and datname = current_database()"""
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_nothing_is_opened_before_the_first_use(conn: psycopg.Connection, pool: Pool) -> None:
    assert sessions(conn) == 0
    pool.run(PID)
    assert sessions(conn) == 1


def test_even_a_bad_dsn_is_no_matter_before_the_first_use() -> None:
    pool = Pool("host=h nonsense=1")
    with pytest.raises(ConfigError, match="nonsense"):
        pool.run(PID)


def test_a_connection_is_used_again(pool: Pool) -> None:
    assert pool.run(PID) == pool.run(PID)


def test_each_statement_is_committed_at_once(conn: psycopg.Connection, pool: Pool) -> None:
    conn.execute("create table app_t (n int)")
    pool.run(Statement("insert into app_t values (1) returning n", {}, _scalar))
    assert conn.execute("select n from app_t").fetchall() == [(1,)]


def test_threads_share_a_pool_and_never_exceed_its_size(conn: psycopg.Connection, pool: Pool) -> None:
    together = threading.Barrier(4)

    def hold() -> object:
        with pool.connection() as own:
            together.wait(10)
            return own.info.backend_pid

    with ThreadPoolExecutor(16) as threads:
        pids = [future.result() for future in [threads.submit(hold) for _ in range(16)]]
    assert len(set(pids)) == 4
    assert sessions(conn) == 4


def test_a_connection_that_its_server_closed_is_not_used_again(conn: psycopg.Connection, pool: Pool) -> None:
    first = pool.run(PID)
    end(conn, first)
    assert pool.run(PID) != first


def test_when_all_connections_died_the_first_caller_gets_a_new_one(conn: psycopg.Connection, pool: Pool) -> None:
    with contextlib.ExitStack() as stack:
        pids = [stack.enter_context(pool.connection()).info.backend_pid for _ in range(4)]
    for pid in pids:
        end(conn, pid)
    began = time.monotonic()
    assert pool.run(PID) not in pids
    assert time.monotonic() - began < 1


def test_a_statement_that_may_have_been_committed_is_not_sent_again(conn: psycopg.Connection, pool: Pool) -> None:
    conn.execute("create table app_t (n int)")
    conn.execute("create sequence tries")
    dying = Statement("select nextval('tries')::text || pg_terminate_backend(pg_backend_pid())::text", {}, _scalar)
    with pytest.raises(psycopg.OperationalError) as caught:
        pool.run(dying)
    assert is_outage(caught.value)
    assert conn.execute("select last_value, is_called from tries").fetchone() == (1, True)
    assert isinstance(pool.run(PID), int)


def test_a_plan_that_a_migration_made_stale_is_made_anew(conn: psycopg.Connection, pool: Pool) -> None:
    conn.execute("create table app_t (n int)")
    conn.execute("insert into app_t values (7)")
    statement = Statement("select * from app_t", {}, _scalar)
    for _ in range(8):  # psycopg prepares it on the way
        pool.run(statement)
    conn.execute("alter table app_t alter n type text")
    assert pool.run(statement) == "7"


def test_what_a_block_leaves_open_is_rolled_back_and_its_settings_are_undone(
    conn: psycopg.Connection, pool: Pool
) -> None:
    conn.execute("create table app_t (n int)")
    with pool.connection() as own:
        own.autocommit = False
        own.row_factory = dict_row  # type: ignore[assignment]
        own.execute("insert into app_t values (1)")
    with pool.connection() as own:
        assert own.autocommit
        assert own.execute("select count(*) from app_t").fetchone() == (0,)


def test_an_error_of_the_callers_block_keeps_the_connection(pool: Pool) -> None:
    first = pool.run(PID)
    with pytest.raises(ZeroDivisionError), pool.connection():
        raise ZeroDivisionError
    assert pool.run(PID) == first


def test_a_session_that_turned_read_only_is_given_up(conn: psycopg.Connection, pool: Pool) -> None:
    conn.execute("create table app_t (n int)")
    with pool.connection() as own:
        first = own.info.backend_pid
        own.execute("set default_transaction_read_only = on")  # what a failover leaves behind
    writing = Statement("insert into app_t values (1) returning n", {}, _scalar)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        pool.run(writing)
    assert pool.run(writing) == 1
    assert pool.run(PID) != first


def test_an_unreachable_server_is_reported_within_the_budget_without_the_password() -> None:
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"no connection to database nothing on 127\.0\.0\.1:1: .*refused") as caught:
        Pool(NOWHERE, options=BRIEF).run(PID)
    assert time.monotonic() - began < 2
    assert "s3cret" not in str(caught.value)
    assert is_outage(caught.value)


def test_a_database_that_does_not_exist_is_reported_at_once(dsn: str) -> None:
    began = time.monotonic()
    with pytest.raises(Unreachable, match='database "no_such_db" does not exist'):
        Pool(make_conninfo(dsn, dbname="no_such_db")).run(PID)
    assert time.monotonic() - began < 5


def test_the_pool_works_as_soon_as_the_database_accepts_connections(conn: psycopg.Connection, fresh_db: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(fresh_db)["dbname"]
    with contextlib.closing(Pool(fresh_db)) as pool, ThreadPoolExecutor(1) as threads:
        first = pool.run(PID)
        conn.execute(f'alter database "{name}" allow_connections false')
        end(conn, first)
        waiting = threads.submit(pool.run, PID)
        with pytest.raises(TimeoutError):
            waiting.result(0.3)
        conn.execute(f'alter database "{name}" allow_connections true')
        assert waiting.result(10) != first


def test_a_full_pool_says_so_within_the_budget(dsn: str) -> None:
    options = PoolOptions(max_size=1, budget=timedelta(seconds=0.2))
    with (
        contextlib.closing(Pool(dsn, options=options)) as pool,
        pool.connection(),
        pytest.raises(Unreachable, match=r"all 1 of this pool have been in use for 0\.2 s"),
    ):
        pool.run(PID)


@pytest.mark.parametrize("bad", [{"max_size": 0}, {"max_size": 1001}, {"budget": timedelta(0)}])
def test_options_out_of_range_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        PoolOptions(**bad)  # type: ignore[arg-type]


def test_close_closes_and_a_later_use_opens_again(conn: psycopg.Connection, pool: Pool) -> None:
    with pool.connection() as own:
        pool.run(PID)
        pool.close()
        assert not own.closed
    assert own.closed
    assert pool.run(PID)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_has_connections_of_its_own_and_leaves_its_parents_alone(dsn: str) -> None:
    program = """
    import os, sys
    from pgqueue.db.pool import Pool
    from pgqueue.store.statement import Statement
    pid = Statement("select pg_backend_pid()", {}, lambda rows: rows[0][0])
    pool = Pool(sys.argv[1])
    first = pool.run(pid)
    child = os.fork()
    if child == 0:
        other = pool.run(pid)
        pool.close()
        sys.exit(0 if other != first and pool.run(pid) != first else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pool.run(pid) == first
    """
    assert _python(program, dsn, "-Wignore::DeprecationWarning") == (0, "")


@pytest.mark.parametrize("way", ["sync", "async", "two loops"])
def test_a_pool_never_closed_ends_quietly_with_the_program(dsn: str, way: str) -> None:
    program = """
    import asyncio, sys
    from pgqueue.db.pool import AsyncPool, Pool
    from pgqueue.store.statement import Statement
    one = Statement("select 1", {}, lambda rows: rows[0][0])
    pool, apool = Pool(sys.argv[1]), AsyncPool(sys.argv[1])
    if sys.argv[2] == "sync":
        assert pool.run(one) == 1
    for _ in range({"sync": 0, "async": 1, "two loops": 2}[sys.argv[2]]):
        assert asyncio.run(apool.arun(one)) == 1
    """
    assert _python(program, dsn, "-Werror", "-Xdev", way) == (0, "")


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_program_ends_though_its_pool_is_connecting_to_a_server_that_never_answers(colour: str) -> None:
    program = """
    import asyncio, sys
    from datetime import timedelta
    from pgqueue.db.pool import AsyncPool, Pool, PoolOptions
    from pgqueue.errors import Unreachable
    from pgqueue.store.statement import Statement
    one, brief = Statement("select 1", {}, len), PoolOptions(budget=timedelta(seconds=0.2))
    try:
        if sys.argv[2] == "sync":
            Pool(sys.argv[1], options=brief).run(one)
        asyncio.run(AsyncPool(sys.argv[1], options=brief).arun(one))
    except Unreachable:
        sys.exit(5)
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nobody = f"host=127.0.0.1 port={silent.getsockname()[1]} user=u dbname=d connect_timeout=30"
        began = time.monotonic()
        assert _python(program, nobody, colour)[0] == 5
    assert time.monotonic() - began < 15


def _python(program: str, dsn: str, *arguments: str) -> tuple[int, str]:
    flags = [each for each in arguments if each.startswith("-")]
    rest = [each for each in arguments if not each.startswith("-")]
    command = [sys.executable, *flags, "-c", textwrap.dedent(program), dsn, *rest]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


# --- async -------------------------------------------------------------------------------------------------------


async def test_tasks_share_an_async_pool_and_never_exceed_its_size(dsn: str, conn: psycopg.Connection) -> None:
    pool = AsyncPool(dsn)
    assert sessions(conn) == 0
    await asyncio.gather(*(pool.arun(PID) for _ in range(20)))
    assert 1 <= sessions(conn) <= 4
    await pool.aclose()


async def test_an_async_connection_that_its_server_closed_is_not_used_again(dsn: str, conn: psycopg.Connection) -> None:
    pool = AsyncPool(dsn)
    first = await pool.arun(PID)
    assert await pool.arun(PID) == first
    end(conn, first)
    second = await pool.arun(PID)
    assert second != first
    await pool.aclose()


async def test_a_cancelled_statement_leaves_the_pool_usable(dsn: str, conn: psycopg.Connection) -> None:
    pool = AsyncPool(dsn, options=PoolOptions(max_size=1))
    conn.execute("select pg_advisory_lock(4711)")
    waiting = asyncio.create_task(pool.arun(Statement("select pg_advisory_lock(4711)::text", {}, _scalar)))
    await _until(
        conn,
        """select count(*) = 1 from pg_stat_activity
                          where wait_event = 'advisory' and datname = current_database()""",
    )
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await pool.arun(Statement("select 1", {}, _scalar)) == 1
    await pool.aclose()
    conn.execute("select pg_advisory_unlock(4711)")


async def test_what_an_async_block_leaves_open_is_rolled_back(dsn: str, conn: psycopg.Connection) -> None:
    conn.execute("create table app_t (n int)")
    pool = AsyncPool(dsn)
    async with pool.connection() as own:
        await own.set_autocommit(False)
        await own.execute("insert into app_t values (1)")
    async with pool.connection() as own:
        assert own.autocommit
        assert await (await own.execute("select count(*) from app_t")).fetchone() == (0,)
    await pool.aclose()


async def test_an_unreachable_server_is_reported_to_async_callers_too() -> None:
    with pytest.raises(Unreachable, match="no connection to database nothing on"):
        await AsyncPool(NOWHERE, options=BRIEF).arun(PID)


async def test_a_full_async_pool_says_so_within_the_budget(dsn: str) -> None:
    pool = AsyncPool(dsn, options=PoolOptions(max_size=1, budget=timedelta(seconds=0.2)))
    async with pool.connection():
        with pytest.raises(Unreachable, match="all 1 of this pool"):
            await pool.arun(PID)
    await pool.aclose()


def test_a_new_event_loop_gets_new_connections_and_the_old_ones_go(dsn: str, conn: psycopg.Connection) -> None:
    pool = AsyncPool(dsn)
    first = asyncio.run(pool.arun(PID))

    async def again() -> object:
        found = await pool.arun(PID)
        await _until(conn, f"select count(*) = 0 from pg_stat_activity where pid = {first}")
        await pool.aclose()
        return found

    assert asyncio.run(again()) != first


async def _until(conn: psycopg.Connection, question: str) -> None:
    """The server has no signal for what its sessions do: ask until it is so."""
    while conn.execute(question).fetchone() != (True,):  # noqa: ASYNC110
        await asyncio.sleep(0)
