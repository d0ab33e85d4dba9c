"""Whether a statement would commit by itself is known of every kind of connection, before it is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import psycopg
import psycopg2
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

from pgqueue.db.drivers import commits_alone, resolve
from tests.db.kinds import KINDS, Opened


@pytest.fixture(params=KINDS)
async def opened(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[Opened]:
    async with KINDS[request.param](dsn) as found:
        yield found


async def test_a_connection_with_a_transaction_is_told_from_one_that_commits_alone(opened: Opened) -> None:
    assert not commits_alone(*resolve(opened.conn))


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
