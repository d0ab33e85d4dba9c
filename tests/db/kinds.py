"""Every kind of connection a caller may have, opened inside a transaction: the table behind the tests of adapt.

Each opener yields `Opened`: what the caller would pass, and how that caller commits, rolls back and runs its own SQL.
Sync kinds are driven through the same async face, so that one test body serves both.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg
import django
import django.conf
import psycopg
import psycopg2
import psycopg2.extras
import psycopg_pool
import pytest
import sqlalchemy as sa
import sqlalchemy.ext.asyncio as sa_async
import sqlmodel
import sqlmodel.ext.asyncio.session as sqlmodel_async
import tortoise
import tortoise.fields
import tortoise.transactions
from django.db.utils import ConnectionHandler
from django.utils.connection import ConnectionProxy
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import args_row, class_row, dict_row, namedtuple_row
from sqlalchemy import orm

from pgqueue.db.adapt import arun, run
from pgqueue.store.statement import Statement

T = TypeVar("T")

if not django.conf.settings.configured:
    django.conf.settings.configure(USE_TZ=True)
    django.setup()


class Thing:
    """What a class_row factory would make of the caller's rows."""

    def __init__(self, **columns: object) -> None:
        raise AssertionError("pgqueue's rows must not go through the caller's row factory")


@dataclass
class Opened:
    """A caller's connection amid a transaction."""

    conn: Any
    commit: Callable[[], Awaitable[None]]
    rollback: Callable[[], Awaitable[None]]
    execute: Callable[[str], Awaitable[None]]
    run: Callable[[Statement[Any]], Awaitable[Any]]
    wrong: Callable[[Statement[Any]], Awaitable[Any]]


Opener = Callable[[str], contextlib.AbstractAsyncContextManager[Opened]]


def _sync(
    conn: object, commit: Callable[[], object], rollback: Callable[[], object], execute: Callable[[str], object]
) -> Opened:
    async def do_commit() -> None:
        commit()

    async def do_rollback() -> None:
        rollback()

    async def do_execute(sql: str) -> None:
        execute(sql)

    async def do_run(statement: Statement[T]) -> T:
        return run(conn, statement)

    async def wrong(statement: Statement[T]) -> T:
        return await arun(conn, statement)

    return Opened(conn, do_commit, do_rollback, do_execute, do_run, wrong)


def _async(
    conn: object,
    commit: Callable[[], Awaitable[object]],
    rollback: Callable[[], Awaitable[object]],
    execute: Callable[[str], Awaitable[object]],
) -> Opened:
    async def do_commit() -> None:
        await commit()

    async def do_rollback() -> None:
        await rollback()

    async def do_execute(sql: str) -> None:
        await execute(sql)

    async def do_run(statement: Statement[T]) -> T:
        return await arun(conn, statement)

    async def wrong(statement: Statement[T]) -> T:
        return run(conn, statement)

    return Opened(conn, do_commit, do_rollback, do_execute, do_run, wrong)


def _opener(open_sync: Callable[..., Iterator[Opened]], **options: Any) -> Opener:
    @contextlib.asynccontextmanager
    async def opened(dsn: str) -> AsyncIterator[Opened]:
        with contextlib.contextmanager(open_sync)(dsn, **options) as found:
            yield found

    return opened


def _async_opener(open_async: Callable[..., AsyncIterator[Opened]], **options: Any) -> Opener:
    def opened(dsn: str) -> contextlib.AbstractAsyncContextManager[Opened]:
        return contextlib.asynccontextmanager(open_async)(dsn, **options)

    return opened


@contextlib.asynccontextmanager
async def _closing(conn: psycopg.AsyncConnection[Any]) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    try:
        yield conn
    finally:
        await conn.close()


def _url(dsn: str, driver: str) -> str:
    return dsn.replace("postgresql://", f"postgresql+{driver}://")


# --- drivers -----------------------------------------------------------------------------------------------------


def psycopg_sync(dsn: str, **options: Any) -> Iterator[Opened]:
    with contextlib.closing(psycopg.connect(dsn, **options)) as conn:
        yield _sync(conn, conn.commit, conn.rollback, conn.execute)


def psycopg_pooled(dsn: str) -> Iterator[Opened]:
    with psycopg_pool.ConnectionPool(dsn, min_size=1, open=False) as pool, pool.connection() as conn:
        yield _sync(conn, conn.commit, conn.rollback, conn.execute)


def psycopg_pipeline(dsn: str) -> Iterator[Opened]:
    with contextlib.closing(psycopg.connect(dsn)) as conn, conn.pipeline():
        yield _sync(conn, conn.commit, conn.rollback, conn.execute)


class Traced:
    """What a tracing library hands out instead of a connection."""

    def __init__(self, conn: object) -> None:
        self.__wrapped__ = conn


def psycopg_traced(dsn: str) -> Iterator[Opened]:
    with contextlib.closing(psycopg.connect(dsn)) as conn:
        yield _sync(Traced(conn), conn.commit, conn.rollback, conn.execute)


def psycopg2_sync(dsn: str, **options: Any) -> Iterator[Opened]:
    with contextlib.closing(psycopg2.connect(dsn, **options)) as conn:

        def execute(sql: str) -> None:
            with conn.cursor() as cursor:
                cursor.execute(sql)

        yield _sync(conn, conn.commit, conn.rollback, execute)


async def psycopg_async(dsn: str, *, pipeline: bool = False, **options: Any) -> AsyncIterator[Opened]:
    async with (
        _closing(await psycopg.AsyncConnection.connect(dsn, **options)) as conn,
        conn.pipeline() if pipeline else contextlib.nullcontext(),
    ):
        yield _async(conn, conn.commit, conn.rollback, conn.execute)


async def psycopg_async_pooled(dsn: str) -> AsyncIterator[Opened]:
    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, open=False) as pool, pool.connection() as conn:
        yield _async(conn, conn.commit, conn.rollback, conn.execute)


async def asyncpg_connection(dsn: str, **options: Any) -> AsyncIterator[Opened]:
    conn = await asyncpg.connect(dsn, **options)
    try:
        transaction = conn.transaction()
        await transaction.start()
        yield _async(conn, transaction.commit, transaction.rollback, conn.execute)
    finally:
        await conn.close()


async def asyncpg_pooled(dsn: str) -> AsyncIterator[Opened]:
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool, pool.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        yield _async(conn, transaction.commit, transaction.rollback, conn.execute)


# --- SQLAlchemy and SQLModel -------------------------------------------------------------------------------------


def sqlalchemy_connection(dsn: str, *, driver: str, **options: Any) -> Iterator[Opened]:
    engine = sa.create_engine(_url(dsn, driver), execution_options=options)
    with contextlib.closing(engine.connect()) as conn:
        plain = {"stream_results": False, "yield_per": None}
        execute = functools.partial(conn.exec_driver_sql, execution_options=plain)
        yield _sync(conn, conn.commit, conn.rollback, execute)
    engine.dispose()


def sqlalchemy_session(dsn: str, *, driver: str, kind: Any = orm.Session) -> Iterator[Opened]:
    engine = sa.create_engine(_url(dsn, driver))
    with contextlib.closing(kind(engine)) as session:
        yield _sync(session, session.commit, session.rollback, lambda sql: session.connection().exec_driver_sql(sql))
    engine.dispose()


def _scoped(engine: sa.Engine) -> orm.scoped_session[orm.Session]:
    return orm.scoped_session(orm.sessionmaker(engine))


async def sqlalchemy_async_connection(dsn: str, *, driver: str) -> AsyncIterator[Opened]:
    engine = sa_async.create_async_engine(_url(dsn, driver))
    async with engine.connect() as conn:
        yield _async(conn, conn.commit, conn.rollback, conn.exec_driver_sql)
    await engine.dispose()


async def sqlalchemy_async_session(
    dsn: str, *, driver: str, kind: Any = sa_async.AsyncSession
) -> AsyncIterator[Opened]:
    engine = sa_async.create_async_engine(_url(dsn, driver))
    session = kind(engine)

    async def execute(sql: str) -> None:
        await (await session.connection()).exec_driver_sql(sql)

    yield _async(session, session.commit, session.rollback, execute)
    await session.close()
    await engine.dispose()


def _async_scoped(engine: sa_async.AsyncEngine) -> object:
    return sa_async.async_scoped_session(sa_async.async_sessionmaker(engine), scopefunc=lambda: 1)


# --- Django and Tortoise -----------------------------------------------------------------------------------------


def django_databases(dsn: str, **options: object) -> ConnectionHandler:
    parts = conninfo_to_dict(dsn)
    default = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts["dbname"],
        "HOST": parts["host"],
        "PORT": parts["port"],
        "USER": parts["user"],
        "OPTIONS": options,
    }
    return ConnectionHandler({"default": default})


def django_connection(dsn: str, *, proxy: bool, **options: object) -> Iterator[Opened]:
    connections = django_databases(dsn, **options)
    conn = connections["default"]

    def execute(sql: str) -> None:
        with conn.cursor() as cursor:
            cursor.execute(sql)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")  # the test itself is a coroutine
        conn.set_autocommit(False)
        yield _sync(ConnectionProxy(connections, "default") if proxy else conn, conn.commit, conn.rollback, execute)
        conn.close()


class Nothing(tortoise.Model):
    """Tortoise does not start without a model."""

    id = tortoise.fields.IntField(primary_key=True)


async def tortoise_transaction(dsn: str, *, driver: str) -> AsyncIterator[Opened]:
    await tortoise.Tortoise.init(db_url=dsn.replace("postgresql://", f"{driver}://"), modules={"models": [__name__]})
    try:
        async with tortoise.transactions.in_transaction() as conn:
            yield _async(conn, conn.commit, conn.rollback, conn.execute_script)
            if not conn._finalized:
                await conn.rollback()
    finally:
        await tortoise.Tortoise.close_connections()


KINDS: dict[str, Opener] = {
    "psycopg": _opener(psycopg_sync),
    "psycopg dict_row": _opener(psycopg_sync, row_factory=dict_row),
    "psycopg namedtuple_row": _opener(psycopg_sync, row_factory=namedtuple_row),
    "psycopg class_row": _opener(psycopg_sync, row_factory=class_row(Thing)),
    "psycopg args_row": _opener(psycopg_sync, row_factory=args_row(Thing)),
    "psycopg ClientCursor": _opener(psycopg_sync, cursor_factory=psycopg.ClientCursor),
    "psycopg RawCursor": _opener(psycopg_sync, cursor_factory=psycopg.RawCursor),
    "psycopg prepares all": _opener(psycopg_sync, prepare_threshold=0),
    "psycopg prepares nothing": _opener(psycopg_sync, prepare_threshold=None),
    "psycopg_pool": _opener(psycopg_pooled),
    "psycopg pipeline": _opener(psycopg_pipeline),
    "psycopg traced": _opener(psycopg_traced),
    "psycopg async": _async_opener(psycopg_async),
    "psycopg async dict_row": _async_opener(psycopg_async, row_factory=dict_row),
    "psycopg async pipeline": _async_opener(psycopg_async, pipeline=True),
    "psycopg_pool async": _async_opener(psycopg_async_pooled),
    "psycopg2": _opener(psycopg2_sync),
    "psycopg2 DictCursor": _opener(psycopg2_sync, cursor_factory=psycopg2.extras.DictCursor),
    "psycopg2 RealDictConnection": _opener(psycopg2_sync, connection_factory=psycopg2.extras.RealDictConnection),
    "asyncpg": _async_opener(asyncpg_connection),
    "asyncpg without statement cache": _async_opener(asyncpg_connection, statement_cache_size=0),
    "asyncpg pool": _async_opener(asyncpg_pooled),
    "sqlalchemy Connection psycopg": _opener(sqlalchemy_connection, driver="psycopg"),
    "sqlalchemy Connection psycopg2": _opener(sqlalchemy_connection, driver="psycopg2"),
    "sqlalchemy Connection streaming": _opener(sqlalchemy_connection, driver="psycopg", stream_results=True),
    "sqlalchemy Connection yield_per": _opener(sqlalchemy_connection, driver="psycopg2", yield_per=10),
    "sqlalchemy Session psycopg": _opener(sqlalchemy_session, driver="psycopg"),
    "sqlalchemy Session psycopg2": _opener(sqlalchemy_session, driver="psycopg2"),
    "sqlalchemy scoped_session": _opener(sqlalchemy_session, driver="psycopg", kind=_scoped),
    "sqlalchemy AsyncConnection psycopg": _async_opener(sqlalchemy_async_connection, driver="psycopg_async"),
    "sqlalchemy AsyncConnection asyncpg": _async_opener(sqlalchemy_async_connection, driver="asyncpg"),
    "sqlalchemy AsyncSession psycopg": _async_opener(sqlalchemy_async_session, driver="psycopg"),
    "sqlalchemy AsyncSession asyncpg": _async_opener(sqlalchemy_async_session, driver="asyncpg"),
    "sqlalchemy async_scoped_session": _async_opener(sqlalchemy_async_session, driver="asyncpg", kind=_async_scoped),
    "sqlmodel Session": _opener(sqlalchemy_session, driver="psycopg", kind=sqlmodel.Session),
    "sqlmodel AsyncSession psycopg": _async_opener(
        sqlalchemy_async_session, driver="psycopg", kind=sqlmodel_async.AsyncSession
    ),
    "sqlmodel AsyncSession asyncpg": _async_opener(
        sqlalchemy_async_session, driver="asyncpg", kind=sqlmodel_async.AsyncSession
    ),
    "django connection": _opener(django_connection, proxy=True),
    "django connections[alias]": _opener(django_connection, proxy=False),
    "django server-side binding": _opener(django_connection, proxy=False, server_side_binding=True),
    "tortoise asyncpg": _async_opener(tortoise_transaction, driver="asyncpg"),
    "tortoise psycopg": _async_opener(tortoise_transaction, driver="psycopg"),
}
