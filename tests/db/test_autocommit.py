"""Whether a statement would commit by itself is known of every kind of connection, before it is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import psycopg
import psycopg2
import pytest
import sqlalchemy
from pytest_postgresql.executors.noop import NoopExecutor
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from pgqueue.db.drivers import commits_alone, resolve
from tests.db.kinds import KINDS, Opened


@pytest.fixture(scope="session")
def template(newest_template: NoopExecutor) -> NoopExecutor:
    """Overrides the one that runs every test on each server: what is tested is the connections."""
    return newest_template


@pytest.fixture(params=KINDS)
async def opened(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[Opened]:
    async with KINDS[request.param](dsn) as found:
        yield found


async def alone(conn: object) -> bool:
    found = commits_alone(*resolve(conn))
    return found if isinstance(found, bool) else await found


async def test_a_connection_with_a_transaction_is_told_from_one_that_commits_alone(opened: Opened) -> None:
    assert not await alone(opened.conn)


def test_psycopg_in_autocommit_mode_commits_alone_unless_a_transaction_is_open(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert commits_alone(*resolve(conn))
        with conn.transaction():
            assert not commits_alone(*resolve(conn))


async def test_async_psycopg_in_autocommit_mode_commits_alone(dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        assert commits_alone(*resolve(conn))


def test_psycopg2_in_autocommit_mode_commits_alone_unless_a_transaction_is_open(dsn: str) -> None:
    conn = psycopg2.connect(dsn)
    conn.autocommit = True
    assert commits_alone(*resolve(conn))
    conn.cursor().execute("begin")
    assert not commits_alone(*resolve(conn))
    conn.close()


async def test_asyncpg_outside_of_a_transaction_commits_alone(dsn: str) -> None:
    conn = await asyncpg.connect(dsn)
    assert commits_alone(*resolve(conn))
    async with conn.transaction():
        assert not commits_alone(*resolve(conn))
    await conn.close()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_sqlalchemy_at_the_level_autocommit_commits_alone(dsn: str, driver: str) -> None:
    url = dsn.replace("postgresql://", f"postgresql+{driver}://")
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    with engine.connect() as conn:
        assert commits_alone(*resolve(conn))


@pytest.mark.parametrize("driver", ["psycopg_async", "asyncpg"])
async def test_async_sqlalchemy_at_the_level_autocommit_commits_alone(dsn: str, driver: str) -> None:
    url = dsn.replace("postgresql://", f"postgresql+{driver}://")
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    async with engine.connect() as conn:
        assert commits_alone(*resolve(conn))
    await engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg_async", "asyncpg"])
@pytest.mark.parametrize("level", ["AUTOCOMMIT", "READ COMMITTED"])
@pytest.mark.parametrize("begun", [False, True])
async def test_an_async_session_that_was_not_used_yet_tells_what_it_will_do(
    dsn: str, driver: str, level: str, begun: bool
) -> None:
    engine = create_async_engine(
        dsn.replace("postgresql://", f"postgresql+{driver}://"), isolation_level=level, poolclass=sqlalchemy.NullPool
    )
    async with AsyncSession(engine) as session:
        if begun:
            await session.begin()
        assert await alone(session) is (level == "AUTOCOMMIT")
    await engine.dispose()
