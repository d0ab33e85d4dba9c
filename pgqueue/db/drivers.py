"""The kinds of connection pgqueue can run a statement on: one small adapter per family, found by the class's name.

Guarantees: nothing is imported that the caller has not imported; `check` sends nothing and raises InvalidConnection
for a connection that can't be used; `fetch` sends one statement and leaves no cursor open.
Never: changes a setting of the connection, flushes a session, commits or rolls back.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias, TypeVar, cast

import psycopg
from psycopg.pq import ExecStatus, PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from pgqueue.db.failure import ABORTED
from pgqueue.db.placeholders import Params, bracketed, numbered, positional
from pgqueue.errors import InvalidConnection
from pgqueue.store.statement import Row

Conn_contra = TypeVar("Conn_contra", contravariant=True)


class SyncAdapter(Protocol[Conn_contra]):
    """How one family of sync connections runs a statement."""

    @property
    def is_async(self) -> bool:
        """False."""

    def check(self, conn: Conn_contra) -> None:
        """Raise InvalidConnection if `conn` can't be used; send nothing."""

    def fetch(self, conn: Conn_contra, sql: str, params: Params) -> Sequence[Row]:
        """Run `sql` (`%(name)s` placeholders; see `numbered`, `positional`) and return all rows as sequences."""


class AsyncAdapter(Protocol[Conn_contra]):
    """How one family of async connections runs a statement."""

    @property
    def is_async(self) -> bool:
        """True."""

    def check(self, conn: Conn_contra) -> None:
        """Raise InvalidConnection if `conn` can't be used; send nothing."""

    async def fetch(self, conn: Conn_contra, sql: str, params: Params) -> Sequence[Row]:
        """Run `sql` (`%(name)s` placeholders; see `numbered`, `positional`) and return all rows as sequences."""


Adapter: TypeAlias = SyncAdapter[Conn_contra] | AsyncAdapter[Conn_contra]


def register_adapter(name: str, adapter: Adapter[Conn_contra]) -> None:
    """Let pgqueue use another driver's connections, or replace the adapter of a known kind.

    name    the package and the class, "mydriver.Connection": the class may sit in any module of the package, and
            its subclasses are meant too
    raises  ValueError if `name` is not of that form
    """
    if not re.fullmatch(r"\w+\.\w+", name):
        raise ValueError(f"adapter name {name!r}: use the package and the class, such as 'mydriver.Connection'")
    _ADAPTERS[name] = adapter
    _BY_CLASS.clear()


def resolve(conn: object) -> tuple[object, Adapter[Any]]:
    """The connection behind `conn` (a proxy of Django's, a scoped session, a traced one), and its adapter.

    raises  InvalidConnection naming the class, and how to get a connection from it or what is supported
    """
    if (adapter := _BY_CLASS.get(type(conn))) is not None:
        return conn, adapter
    name = _known_as(type(conn))
    if name in _ADAPTERS:
        _BY_CLASS[type(conn)] = _ADAPTERS[name]
        return conn, _ADAPTERS[name]
    if name in _PROXIES:
        return resolve(_PROXIES[name](conn))
    if name in _NOT_CONNECTIONS:
        raise InvalidConnection(f"{class_name(conn)} is not a connection: {_NOT_CONNECTIONS[name]}")
    if hasattr(conn, "__wrapped__"):  # what tracing libraries wrap connections in
        return resolve(conn.__wrapped__)
    raise InvalidConnection(f"{class_name(conn)} is not a connection pgqueue knows. Supported: {SUPPORTED}")


def commits_alone(target: object, adapter: Adapter[Any]) -> bool | Awaitable[bool]:
    """Would a statement on this connection commit by itself, because no transaction is open and none would be begun?

    False if the adapter has no `commits_alone` to tell. Ask only of what its `check` has passed.
    """
    tell: Callable[[object], bool | Awaitable[bool]] | None = getattr(adapter, "commits_alone", None)
    return False if tell is None else tell(target)


def class_name(conn: object) -> str:
    """`psycopg.AsyncConnection`: how messages name a connection."""
    return _key(type(conn)).removeprefix("builtins.")


def _key(kind: type) -> str:
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def _known_as(kind: type) -> str:
    """The first name in the class's ancestry that one of the tables below has; "" if none has."""
    known = _ADAPTERS.keys() | _PROXIES.keys() | _NOT_CONNECTIONS.keys()
    return next((key for key in map(_key, kind.__mro__) if key in known), "")


def _refuse_closed(conn: object, *, closed: bool) -> None:
    if closed:
        raise InvalidConnection(f"this {class_name(conn)} is closed: pass an open connection")


def _refuse_aborted(*, aborted: bool) -> None:
    if aborted:
        raise InvalidConnection(ABORTED)


def _refuse_other_database(conn: object, name: str) -> None:
    if name != "postgresql":
        raise InvalidConnection(f"this {class_name(conn)} is connected to {name}: pgqueue needs PostgreSQL")


def _libpq_aborted(raw: object) -> bool:
    """Is this psycopg or psycopg2 connection in an aborted transaction? asyncpg does not tell; the server will."""
    info = getattr(raw, "info", None)
    if getattr(info, "pipeline_status", None) == PipelineStatus.ABORTED:
        return True
    return getattr(info, "transaction_status", None) == TransactionStatus.INERROR


def _aborted(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    pg = conn.pgconn  # conn.info says the same, at ten times the cost
    return pg.transaction_status == _IN_ERROR or pg.pipeline_status == _PIPELINE_ABORTED


def _has_rows(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]) -> bool:
    result = cursor.pgresult  # None in a pipeline: not before it is fetched. cursor.description costs 36 µs
    return result is None or result.status == _TUPLES


_IN_ERROR: Final = TransactionStatus.INERROR.value
_TUPLES: Final = ExecStatus.TUPLES_OK.value
_PIPELINE_ABORTED: Final = PipelineStatus.ABORTED.value


def _libpq_commits_alone(raw: object) -> bool:
    """Of a psycopg or psycopg2 connection; asyncpg's has neither attribute."""
    status = getattr(getattr(raw, "info", None), "transaction_status", None)
    return bool(getattr(raw, "autocommit", False)) and status == TransactionStatus.IDLE


class Psycopg:
    """psycopg 3, sync: a plain cursor of our own, so that the caller's row and cursor factories do not matter."""

    is_async: Final = False

    def check(self, conn: psycopg.Connection[Any]) -> None:
        _refuse_closed(conn, closed=conn.closed)
        _refuse_aborted(aborted=_aborted(conn))

    def commits_alone(self, conn: Any) -> bool:
        return _libpq_commits_alone(conn)

    def fetch(self, conn: psycopg.Connection[Any], sql: str, params: Params) -> Sequence[Row]:
        with psycopg.Cursor(conn, row_factory=tuple_row) as cursor:
            cursor.execute(sql, params)
            return cursor.fetchall() if _has_rows(cursor) else []


class AsyncPsycopg:
    """psycopg 3, async."""

    is_async: Final = True

    def check(self, conn: psycopg.AsyncConnection[Any]) -> None:
        _refuse_closed(conn, closed=conn.closed)
        _refuse_aborted(aborted=_aborted(conn))

    def commits_alone(self, conn: Any) -> bool:
        return _libpq_commits_alone(conn)

    async def fetch(self, conn: psycopg.AsyncConnection[Any], sql: str, params: Params) -> Sequence[Row]:
        async with psycopg.AsyncCursor(conn, row_factory=tuple_row) as cursor:
            await cursor.execute(sql, params)
            return await cursor.fetchall() if _has_rows(cursor) else []


class Psycopg2:
    """psycopg2: the values are written into the text by the driver."""

    is_async: Final = False

    def check(self, conn: Any) -> None:
        _refuse_closed(conn, closed=bool(conn.closed))
        if conn.async_:
            raise InvalidConnection("psycopg2 connections opened with async_=1 are not supported: open a plain one")
        _refuse_aborted(aborted=_libpq_aborted(conn))

    def commits_alone(self, conn: Any) -> bool:
        return _libpq_commits_alone(conn)

    def fetch(self, conn: Any, sql: str, params: Params) -> Sequence[Row]:
        from psycopg2.extensions import cursor as plain_cursor  # the caller has it: this is its connection

        with conn.cursor(cursor_factory=plain_cursor) as cursor:
            cursor.execute(bracketed(sql), params)
            return cast("Sequence[Row]", cursor.fetchall() if cursor.description else [])


class Asyncpg:
    """asyncpg's Connection, and what its pool hands out."""

    is_async: Final = True

    def check(self, conn: Any) -> None:
        released = getattr(conn, "_con", conn) is None  # a pool's proxy after release; is_closed() would raise
        _refuse_closed(conn, closed=released or conn.is_closed())

    def commits_alone(self, conn: Any) -> bool:
        return not conn.is_in_transaction()

    async def fetch(self, conn: Any, sql: str, params: Params) -> Sequence[Row]:
        text, values = numbered(sql, params)
        return [tuple(record) for record in await conn.fetch(text, *values)]


# A connection set to stream would declare a server-side cursor, which can't hold an insert.
_NO_STREAM: Final = {"stream_results": False, "yield_per": None}


def _driver_sql(conn: Any, sql: str, params: Params) -> tuple[str, object]:
    """`sql` in the spelling of SQLAlchemy's driver."""
    match conn.dialect.paramstyle:
        case "pyformat":
            return bracketed(sql), dict(params)
        case "numeric_dollar":
            return numbered(sql, params)
        case "format":
            return positional(sql, params)
        case style:
            raise InvalidConnection(
                f"SQLAlchemy's driver {conn.dialect.driver} writes placeholders as {style}, which pgqueue does not "
                "know: use psycopg, psycopg2 or asyncpg"
            )


class SqlalchemyConnection:
    """SQLAlchemy's Connection: begins the caller's transaction if it has not begun, as any execute does."""

    is_async: Final = False

    def check(self, conn: Any) -> None:
        _refuse_other_database(conn, conn.dialect.name)
        _refuse_closed(conn, closed=conn.closed or conn.invalidated)
        _refuse_aborted(aborted=_half_ended(conn) or _libpq_aborted(conn.connection.driver_connection))

    def commits_alone(self, conn: Any) -> bool:
        pooled = conn.connection
        of_asyncpg = getattr(pooled.dbapi_connection, "isolation_level", None)
        return of_asyncpg == "autocommit" or _libpq_commits_alone(pooled.driver_connection)

    def fetch(self, conn: Any, sql: str, params: Params) -> Sequence[Row]:
        text, values = _driver_sql(conn, sql, params)
        with conn.exec_driver_sql(text, values, execution_options=_NO_STREAM) as result:
            return [tuple(row) for row in result] if result.returns_rows else []


def _half_ended(conn: Any) -> bool:
    """A rollback inside a nested block of SQLAlchemy leaves the outer one open but useless."""
    ended = [each for each in (conn.get_nested_transaction(), conn.get_transaction()) if each and not each.is_active]
    return bool(ended)


class SqlalchemyAsyncConnection:
    """SQLAlchemy's AsyncConnection, on psycopg or asyncpg."""

    is_async: Final = True

    def check(self, conn: Any) -> None:
        _refuse_closed(conn, closed=conn.sync_connection is None)  # not awaited yet, or no longer
        SQLALCHEMY.check(conn.sync_connection)

    def commits_alone(self, conn: Any) -> bool:
        return SQLALCHEMY.commits_alone(conn.sync_connection)

    async def fetch(self, conn: Any, sql: str, params: Params) -> Sequence[Row]:
        text, values = _driver_sql(conn, sql, params)
        result = await conn.exec_driver_sql(text, values, execution_options=_NO_STREAM)
        return [tuple(row) for row in result] if result.returns_rows else []


class SqlalchemySession:
    """SQLAlchemy's and SQLModel's Session: joins its transaction, flushes nothing; what is pending goes at commit."""

    is_async: Final = False

    def check(self, session: Any) -> None:
        _refuse_other_database(session, _bind(session).dialect.name)
        _refuse_aborted(aborted=not session.is_active)

    def commits_alone(self, session: Any) -> bool:
        return SQLALCHEMY.commits_alone(session.connection())

    def fetch(self, session: Any, sql: str, params: Params) -> Sequence[Row]:
        conn = session.connection()
        SQLALCHEMY.check(conn)
        return SQLALCHEMY.fetch(conn, sql, params)


class SqlalchemyAsyncSession:
    """SQLAlchemy's and SQLModel's AsyncSession."""

    is_async: Final = True

    def check(self, session: Any) -> None:
        SESSION.check(session.sync_session)

    async def commits_alone(self, session: Any) -> bool:
        return ASYNC_SQLALCHEMY.commits_alone(await session.connection())

    async def fetch(self, session: Any, sql: str, params: Params) -> Sequence[Row]:
        conn = await session.connection()
        ASYNC_SQLALCHEMY.check(conn)
        return await ASYNC_SQLALCHEMY.fetch(conn, sql, params)


def _bind(session: Any) -> Any:
    """The one engine (or connection) behind a session.

    raises  InvalidConnection if there is none or more than one: to guess could enqueue into another database
    """
    by_mapper = getattr(session, "binds", None) or getattr(session, "_Session__binds", {})  # 2.1, 2.0
    engines = {id(bind.engine) for bind in by_mapper.values()}
    try:
        bind = session.get_bind()
    except Exception as error:  # UnboundExecutionError, or whatever a session's own get_bind raises
        raise InvalidConnection(_NO_SINGLE_BIND) from error
    if engines - {id(bind.engine)}:
        raise InvalidConnection(_NO_SINGLE_BIND)
    return bind


_NO_SINGLE_BIND: Final = (
    "this session is not bound to exactly one database: pass the connection that has pgqueue's schema, such as "
    "`session.connection(bind_arguments={'mapper': User})`"
)


class Django:
    """Django's `connection` and `connections[alias]`; opens lazily and joins atomic() as any query of Django's does."""

    is_async: Final = False

    def check(self, conn: Any) -> None:
        _refuse_other_database(conn, conn.vendor)
        _refuse_closed(conn, closed=conn.in_atomic_block and (conn.closed_in_transaction or conn.connection is None))
        _refuse_aborted(aborted=conn.needs_rollback or _libpq_aborted(conn.connection))

    def commits_alone(self, conn: Any) -> bool:
        return not conn.in_atomic_block and bool(conn.get_autocommit())

    def fetch(self, conn: Any, sql: str, params: Params) -> Sequence[Row]:
        with conn.cursor() as cursor:
            cursor.execute(bracketed(sql), params)
            return cast("Sequence[Row]", cursor.fetchall() if cursor.description else [])


class Tortoise:
    """What Tortoise's in_transaction() gives: the driver's connection, under Tortoise's lock."""

    is_async: Final = True

    def check(self, wrapper: Any) -> None:
        _refuse_closed(wrapper, closed=wrapper._finalized)
        self._driver(wrapper._connection).check(wrapper._connection)

    async def fetch(self, wrapper: Any, sql: str, params: Params) -> Sequence[Row]:
        async with wrapper.acquire_connection() as raw:
            return await self._driver(raw).fetch(raw, sql, params)

    def _driver(self, raw: object) -> AsyncAdapter[Any]:
        return cast("AsyncAdapter[Any]", resolve(raw)[1])


SQLALCHEMY: Final = SqlalchemyConnection()
ASYNC_SQLALCHEMY: Final = SqlalchemyAsyncConnection()
SESSION: Final = SqlalchemySession()

SUPPORTED: Final = (
    "psycopg and psycopg2 connections, asyncpg connections, SQLAlchemy and SQLModel sessions and connections (sync and "
    "async), Django's connection, Tortoise's in_transaction(); others through register_adapter()"
)

_ADAPTERS: Final[dict[str, Adapter[Any]]] = {
    "psycopg.Connection": Psycopg(),
    "psycopg.AsyncConnection": AsyncPsycopg(),
    "psycopg2.connection": Psycopg2(),
    "asyncpg.Connection": Asyncpg(),
    "asyncpg.PoolConnectionProxy": Asyncpg(),
    "sqlalchemy.Connection": SQLALCHEMY,
    "sqlalchemy.AsyncConnection": ASYNC_SQLALCHEMY,
    "sqlalchemy.Session": SESSION,
    "sqlalchemy.AsyncSession": SqlalchemyAsyncSession(),
    "django.BaseDatabaseWrapper": Django(),
    "tortoise.TransactionWrapper": Tortoise(),
}

_PROXIES: Final[Mapping[str, Callable[[Any], object]]] = {
    "django.ConnectionProxy": lambda proxy: proxy._connections[proxy._alias],
    "sqlalchemy.scoped_session": lambda scoped: scoped.registry(),
    "sqlalchemy.async_scoped_session": lambda scoped: scoped.registry(),
}

_NOT_CONNECTIONS: Final[Mapping[str, str]] = {
    "builtins.str": "pass the object itself, such as `django.db.connections['default']`",
    "builtins.coroutine": "await it first",
    "contextlib._GeneratorContextManager": "enter it: `with ... as conn:`",
    "contextlib._AsyncGeneratorContextManager": "enter it: `async with ... as conn:`",
    "psycopg.BaseCursor": "pass its `.connection`",
    "psycopg2.cursor": "pass its `.connection`",
    "psycopg2.AbstractConnectionPool": "take one from the pool: `conn = pool.getconn()`",
    "psycopg_pool.ConnectionPool": "take one from the pool: `with pool.connection() as conn:`",
    "psycopg_pool.AsyncConnectionPool": "take one from the pool: `async with pool.connection() as conn:`",
    "asyncpg.Pool": "take one from the pool: `async with pool.acquire() as conn:`",
    "sqlalchemy.Engine": "take one from the engine: `with engine.begin() as conn:`",
    "sqlalchemy.AsyncEngine": "take one from the engine: `async with engine.begin() as conn:`",
    "sqlalchemy.sessionmaker": "open a session: `with Session.begin() as session:`",
    "sqlalchemy.async_sessionmaker": "open a session: `async with Session.begin() as session:`",
    "django.BaseConnectionHandler": "pick one: `connections['default']`",
    "tortoise.BaseDBAsyncClient": "begin a transaction: `async with in_transaction() as conn:`",
}

_BY_CLASS: Final[dict[type, Adapter[Any]]] = {}  # what resolve found before
