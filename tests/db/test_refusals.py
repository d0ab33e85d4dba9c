"""What is not a usable connection is refused before anything is sent, with a way out."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
import psycopg
import psycopg2
import psycopg2.pool
import psycopg_pool
import pytest
import sqlalchemy as sa
import sqlalchemy.ext.asyncio as sa_async
from sqlalchemy import orm

from pgqueue.db.adapt import arun, register_adapter, run
from pgqueue.errors import InvalidConnection
from pgqueue.store.statement import Row, Statement
from tests.db.kinds import django_databases


def _rows(rows: Sequence[Row]) -> list[tuple[object, ...]]:
    return [tuple(row) for row in rows]


ONE = Statement("select 1", {}, _rows)
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


def test_an_unknown_object_is_named_and_the_supported_kinds_are_listed() -> None:
    with pytest.raises(InvalidConnection, match=r"^object is not a connection pgqueue knows\. Supported: psycopg"):
        run(object(), ONE)
    with pytest.raises(InvalidConnection, match=r"^sqlite3\.Connection is not"):
        run(sqlite3.connect(":memory:"), ONE)


async def test_a_pool_an_engine_or_a_cursor_says_how_to_get_a_connection() -> None:
    engine = sa.create_engine(NOWHERE.replace("postgresql", "postgresql+psycopg"))
    async_engine = sa_async.create_async_engine(NOWHERE.replace("postgresql", "postgresql+asyncpg"))
    found: dict[Any, str] = {
        "default": "pass the object itself",
        engine: r"with engine.begin\(\) as conn",
        async_engine: r"async with engine.begin\(\) as conn",
        orm.sessionmaker(engine): r"with Session.begin\(\) as session",
        sa_async.async_sessionmaker(async_engine): "async with Session.begin",
        psycopg_pool.ConnectionPool(NOWHERE, open=False): r"with pool.connection\(\) as conn",
        psycopg_pool.NullConnectionPool(NOWHERE, open=False): r"with pool.connection\(\) as conn",
        psycopg_pool.AsyncConnectionPool(NOWHERE, open=False): r"async with pool.connection\(\) as conn",
        psycopg_pool.ConnectionPool(NOWHERE, open=False).connection(): "enter it: `with",
        asyncpg.create_pool(NOWHERE): r"pool.acquire\(\)",
        psycopg2.pool.ThreadedConnectionPool(0, 1, NOWHERE): r"pool.getconn\(\)",
        django_databases(NOWHERE): r"connections\['default'\]",
    }
    for thing, advice in found.items():
        with pytest.raises(InvalidConnection, match=advice):
            run(thing, ONE)
        with pytest.raises(InvalidConnection, match=advice):
            await arun(thing, ONE)


async def test_a_connection_that_was_not_awaited_says_so() -> None:
    coroutine = psycopg.AsyncConnection.connect(NOWHERE)
    with pytest.raises(InvalidConnection, match="await it first"):
        await arun(coroutine, ONE)
    coroutine.close()


def test_a_cursor_says_to_pass_its_connection(dsn: str) -> None:
    with psycopg.connect(dsn) as conn, pytest.raises(InvalidConnection, match=r"pass its `\.connection`"):
        run(conn.cursor(), ONE)


def test_a_closed_sync_connection_is_refused(dsn: str) -> None:
    plain = psycopg.connect(dsn)
    plain.close()
    older = psycopg2.connect(dsn)
    older.close()
    engine = sa.create_engine(dsn.replace("postgresql", "postgresql+psycopg"))
    conn = engine.connect()
    conn.close()
    for each in (plain, older, conn):
        with pytest.raises(InvalidConnection, match="is closed: pass an open connection"):
            run(each, ONE)
    engine.dispose()


async def test_a_closed_async_connection_is_refused(dsn: str) -> None:
    plain = await psycopg.AsyncConnection.connect(dsn)
    await plain.close()
    other = await asyncpg.connect(dsn)
    await other.close()
    engine = sa_async.create_async_engine(dsn.replace("postgresql", "postgresql+asyncpg"))
    never_begun = engine.connect()
    ended = await engine.connect()
    await ended.close()
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
        released = await pool.acquire()
        await pool.release(released)
        for each in (plain, other, never_begun, ended, released):
            with pytest.raises(InvalidConnection, match="is closed: pass an open connection"):
                await arun(each, ONE)
    await engine.dispose()


def test_another_database_is_refused_by_name() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as conn, orm.Session(engine) as session:
        for each in (conn, session):
            with pytest.raises(InvalidConnection, match="is connected to sqlite: pgqueue needs PostgreSQL"):
                run(each, ONE)
            assert each.scalar(sa.text("select 1")) == 1
    engine.dispose()


def test_a_psycopg2_connection_in_async_mode_is_refused(dsn: str) -> None:
    with contextlib.closing(psycopg2.connect(dsn, async_=1)) as conn:
        while conn.poll() != psycopg2.extensions.POLL_OK:
            pass
        with pytest.raises(InvalidConnection, match="async_=1 are not supported"):
            run(conn, ONE)


def test_a_session_on_several_databases_asks_for_the_connection(dsn: str) -> None:
    class Base(orm.DeclarativeBase):
        pass

    class Note(Base):
        __tablename__ = "note"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    one, two = (sa.create_engine(dsn.replace("postgresql", "postgresql+psycopg")) for _ in range(2))
    for binds in ({"binds": {Note: one}}, {"bind": two, "binds": {Note: one}}, {}):
        with (
            orm.Session(**binds) as session,
            pytest.raises(InvalidConnection, match=r"exactly one database: .*session.connection\(bind_arguments="),
        ):
            run(session, ONE)
    with orm.Session(bind=two, binds={Note: one}) as session:
        assert run(session.connection(bind_arguments={"mapper": Note}), ONE) == [(1,)]
    one.dispose()
    two.dispose()


def test_a_session_bound_to_a_connection_joins_it(dsn: str) -> None:
    engine = sa.create_engine(dsn.replace("postgresql", "postgresql+psycopg"))
    with engine.connect() as conn, orm.Session(conn) as session:
        assert run(session, ONE) == [(1,)]
    engine.dispose()


def test_a_session_is_not_flushed_and_still_flushes_at_its_commit(dsn: str) -> None:
    class Base(orm.DeclarativeBase):
        pass

    class Note(Base):
        __tablename__ = "pending_note"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    engine = sa.create_engine(dsn.replace("postgresql", "postgresql+psycopg"))
    Base.metadata.create_all(engine)
    counting = Statement("select count(*)::int from pending_note", {}, _rows)
    with orm.Session(engine) as session:
        session.add(Note(id=1))
        assert run(session, counting) == [(0,)]
        assert session.new
        session.commit()
        assert run(session, counting) == [(1,)]
    engine.dispose()


def test_a_session_whose_flush_failed_in_a_savepoint_is_refused_until_it_is_rolled_back(dsn: str) -> None:
    class Base(orm.DeclarativeBase):
        pass

    class Note(Base):
        __tablename__ = "no_such_note"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    engine = sa.create_engine(dsn.replace("postgresql", "postgresql+psycopg"))
    with orm.Session(engine) as session:
        session.begin_nested()
        session.add(Note(id=1))
        with pytest.raises(sa.exc.ProgrammingError):
            session.flush()
        with pytest.raises(InvalidConnection, match="aborted by an earlier error"):
            run(session, ONE)
        session.rollback()
        assert run(session, ONE) == [(1,)]
    engine.dispose()


def test_django_in_a_block_marked_for_rollback_is_refused(dsn: str) -> None:
    conn = django_databases(dsn)["default"]
    conn.set_autocommit(False)
    conn.in_atomic_block = True
    conn.set_rollback(True)
    with pytest.raises(InvalidConnection, match="aborted by an earlier error"):
        run(conn, ONE)
    conn.set_rollback(False)
    assert run(conn, ONE) == [(1,)]
    conn.in_atomic_block = False
    conn.close()


def test_settings_of_the_connection_are_as_they_were(dsn: str) -> None:
    from psycopg.rows import dict_row

    with psycopg.connect(dsn, row_factory=dict_row, cursor_factory=psycopg.ClientCursor, prepare_threshold=3) as conn:
        before = (conn.row_factory, conn.cursor_factory, conn.autocommit, conn.prepare_threshold, conn.isolation_level)
        run(conn, ONE)
        after = (conn.row_factory, conn.cursor_factory, conn.autocommit, conn.prepare_threshold, conn.isolation_level)
        assert after == before
        assert conn.execute("select 1 as x").fetchone() == {"x": 1}


class Foreign:
    """Another driver's connection."""

    def __init__(self, inner: psycopg.Connection) -> None:
        self.inner = inner


def test_another_drivers_connection_works_through_an_adapter_of_the_users(dsn: str) -> None:
    class ForeignAdapter:
        is_async = False

        def check(self, conn: Foreign) -> None:
            if conn.inner.closed:
                raise InvalidConnection("closed")

        def fetch(self, conn: Foreign, sql: str, params: Mapping[str, object]) -> Sequence[Row]:
            return conn.inner.execute(sql, params).fetchall()

    with psycopg.connect(dsn) as inner:
        kind = type(f"Foreign{inner.info.server_version}", (Foreign,), {"__module__": "mydriver.inner"})
        with pytest.raises(InvalidConnection, match=r"^mydriver\.Foreign\d+ is not a connection pgqueue knows"):
            run(kind(inner), ONE)
        register_adapter(f"mydriver.{kind.__name__}", ForeignAdapter())
        assert run(kind(inner), ONE) == [(1,)]


@pytest.mark.parametrize("name", ["Connection", "a.b.Connection", "", "my driver.Connection"])
def test_an_adapter_name_must_be_package_and_class(name: str) -> None:
    with pytest.raises(ValueError, match="use the package and the class"):
        register_adapter(name, object())  # type: ignore[arg-type]
