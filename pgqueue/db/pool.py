"""Connections of our own for the verbs that are called without `conn=`: psycopg_pool, opened at the first use.

Guarantees: opens nothing before the first use; a fork or a new event loop gets a pool of its own; a connection that
its server closed is found out before a statement is sent on it; a caller hears why there is no connection, at once if
there is no hope; the pool works again within 2 s of the database; what was never closed ends quietly.
Never: sends a statement a second time when it can't tell whether the first one was committed.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg import errors
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.rows import TupleRow, tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolClosed, PoolTimeout

from pgqueue.db.adapt import arun, run
from pgqueue.db.connect import arguments, describe
from pgqueue.db.failure import as_pooler_error, naming_poolers
from pgqueue.errors import ConfigError, Unreachable
from pgqueue.store.statement import Statement

Connection: TypeAlias = psycopg.Connection[TupleRow]
AsyncConnection: TypeAlias = psycopg.AsyncConnection[TupleRow]
_AnyPool: TypeAlias = ConnectionPool[Any] | AsyncConnectionPool[Any]
T = TypeVar("T")

StalePlan = errors.FeatureNotSupported  # "cached plan must not change result type": there was a migration
# After them every connection is suspect: it would refuse the plan again, or be one to a primary that is a standby now.
_SUSPECT = (StalePlan, errors.ReadOnlySqlTransaction)
# Only a short cut (a server may say it in another language, then the budget is waited for): no use in trying again.
_HOPELESS = re.compile(
    r"password authentication failed|no password supplied|no pg_hba\.conf entry"
    r'|(role|database) "[^"]*" does not exist'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """How a pool connects, and how long it tries.

    max_size           connections at most; further callers wait
    pooled, prepare    as for `connect.connect`
    budget             for getting a connection, outages included; then `Unreachable` (2 s later if a host is silent)
    statement_timeout  the server's limit for one statement (not behind a pooler); zero: no limit
    raises             ConfigError for a value out of range
    """

    role: str = "client"
    max_size: int = 4
    pooled: bool = False
    prepare: bool = True
    budget: timedelta = timedelta(seconds=30)
    statement_timeout: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        if not 1 <= self.max_size <= 1000:
            raise ConfigError(f"max_size {self.max_size}: must be from 1 to 1000")
        if self.budget <= timedelta(0):
            raise ConfigError(f"budget {self.budget}: must be more than zero")


class Pool:
    """Sync connections, for any number of threads."""

    def __init__(self, dsn: str | None = None, *, options: PoolOptions | None = None) -> None:
        self._dsn = dsn
        self._options = options or PoolOptions()
        self._pools: dict[int, ConnectionPool[Connection]] = {}  # by process

    def run(self, statement: Statement[T]) -> T:
        """Run `statement` in a transaction of its own.

        raises  Unreachable, ConfigError (a pooler that we were not told of): nothing was sent; what `adapt.run` raises;
                a driver's error if the connection broke while the statement ran (`is_outage`): it may or may not have
                been committed
        """
        with naming_poolers():
            try:
                with self.connection() as conn:
                    return run(conn, statement)
            except StalePlan:  # the server refused it before it did anything
                with self.connection() as conn:
                    return run(conn, statement)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection in autocommit mode for the length of a block; a transaction left open is rolled back."""
        pool, conn = self._take()
        try:
            yield conn
        except _SUSPECT:
            pool.drain()
            raise
        finally:
            _tidy(conn)
            pool.putconn(conn)

    def close(self) -> None:
        """Close what is open now, and what is in use when it comes back; a later use opens again."""
        if pool := self._pools.pop(os.getpid(), None):
            pool.close()

    def _take(self) -> tuple[ConnectionPool[Connection], Connection]:
        wait = _Wait(self._options.budget.total_seconds())
        while True:
            pool = self._pool()
            try:
                if _is_alive(conn := pool.getconn(wait.turn())):
                    return pool, conn
                pool.putconn(conn)  # which opens another
            except (PoolTimeout, PoolClosed):
                if wait.is_in_vain(pool):
                    with wait.asking_why(pool) as conninfo:
                        psycopg.connect(conninfo, connect_timeout=2).close()

    def _pool(self) -> ConnectionPool[Connection]:
        pid = os.getpid()
        if (found := self._pools.get(pid)) is not None:
            return found
        new = ConnectionPool[Connection](**_settings(self._dsn, self._options), open=True)
        weakref.finalize(self, _close, new, pid)  # at the end of the program too, while there are threads
        pool = self._pools.setdefault(pid, new)
        if pool is not new:  # another thread was first
            new.close()
        return pool


class AsyncPool:
    """Async connections; each event loop has its own, and they go when it has gone."""

    def __init__(self, dsn: str | None = None, *, options: PoolOptions | None = None) -> None:
        self._dsn = dsn
        self._options = options or PoolOptions()
        self._pools: dict[tuple[int, asyncio.AbstractEventLoop], AsyncConnectionPool[AsyncConnection]] = {}

    async def arun(self, statement: Statement[T]) -> T:
        """Run `statement` in a transaction of its own; otherwise as `Pool.run`."""
        with naming_poolers():
            try:
                async with self.connection() as conn:
                    return await arun(conn, statement)
            except StalePlan:
                async with self.connection() as conn:
                    return await arun(conn, statement)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection in autocommit mode for the length of a block; a transaction left open is rolled back."""
        pool, conn = await self._take()
        try:
            yield conn
        except _SUSPECT:
            await pool.drain()
            raise
        finally:
            _tidy(conn)
            await pool.putconn(conn)

    async def aclose(self) -> None:
        """Close what this event loop has open, and what is in use when it comes back; a later use opens again."""
        if pool := self._pools.pop((os.getpid(), asyncio.get_running_loop()), None):
            await pool.close()

    async def _take(self) -> tuple[AsyncConnectionPool[AsyncConnection], AsyncConnection]:
        wait = _Wait(self._options.budget.total_seconds())
        while True:
            pool = await self._pool()
            try:
                if _is_alive(conn := await pool.getconn(wait.turn())):
                    return pool, conn
                await pool.putconn(conn)
            except (PoolTimeout, PoolClosed):
                if wait.is_in_vain(pool):
                    with wait.asking_why(pool) as conninfo:
                        await (await psycopg.AsyncConnection.connect(conninfo, connect_timeout=2)).close()

    async def _pool(self) -> AsyncConnectionPool[AsyncConnection]:
        key = os.getpid(), asyncio.get_running_loop()
        if (found := self._pools.get(key)) is not None:
            return found
        for gone in [each for each in list(self._pools) if each[1].is_closed()]:  # each asyncio.run() has a new one
            self._pools.pop(gone, None)  # connections that nobody holds are closed
        settings = _settings(self._dsn, self._options)
        pool = AsyncConnectionPool[AsyncConnection](connection_class=_Cancellable, **settings, open=False)
        await pool.open()
        return self._pools.setdefault(key, pool)


class _Cancellable(psycopg.AsyncConnection[TupleRow]):
    """The pool's tasks swallow a cancellation amid connecting, and asyncio.run() would wait for them for ever."""

    @classmethod
    async def connect(cls, *args: Any, **kwargs: Any) -> _Cancellable:
        try:
            return await super().connect(*args, **kwargs)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()  # once more, at whatever it waits for next
            raise


class _Wait:
    """How long one caller still waits for a connection, and what it is told in the end."""

    def __init__(self, budget_seconds: float) -> None:
        self._budget = budget_seconds
        self._deadline = time.monotonic() + budget_seconds
        self._turn = 0.125
        self._failed = 0

    def turn(self) -> float:
        """Seconds to wait in the pool's line: it may give up connecting, and begins again when somebody asks."""
        self._turn = min(2.0, self._turn * 2)
        return min(self._turn, self._deadline - time.monotonic())

    def is_in_vain(self, pool: _AnyPool) -> bool:
        """Is the time over, or has the pool failed to connect since?"""
        failed, self._failed = self._failed, pool.get_stats().get("connections_errors", 0)
        return self._failed > failed or time.monotonic() >= self._deadline

    @contextmanager
    def asking_why(self, pool: _AnyPool) -> Iterator[str]:
        """For an attempt without the pool, which keeps its reasons to itself.

        raises  Unreachable if it is the last; BehindPooler
        """
        conninfo, error = str(pool.conninfo), None
        reason = (
            f"all {pool.max_size} of this pool have been in use for {self._budget:g} s. Raise max_size, or pass conn="
        )
        try:
            yield conninfo
        except psycopg.OperationalError as caught:
            if (pooler := as_pooler_error(caught)) is not None:
                raise pooler from caught
            error = caught
            reason = f"{' '.join(str(error).split())}. Check the DSN and that the server runs"
        if time.monotonic() >= self._deadline or _HOPELESS.search(reason):
            raise Unreachable(f"no connection to {describe(conninfo)}: {reason}") from error


def _settings(dsn: str | None, own: PoolOptions) -> dict[str, Any]:
    conninfo, threshold = arguments(
        dsn, role=own.role, pooled=own.pooled, prepare=own.prepare, statement_timeout=own.statement_timeout
    )
    session = {"autocommit": True, "prepare_threshold": threshold}
    size = {"min_size": 0, "max_size": own.max_size, "num_workers": 1}  # a worker connects: one at a time in any case
    return {"conninfo": conninfo, "kwargs": session, "reconnect_timeout": 2.0, **size}


def _is_alive(conn: Connection | AsyncConnection) -> bool:
    """Has its server not hung up? Looks at the socket only (2 us). Twice: the first reading may find its last words.

    A host that vanished without a word is noticed by the keepalives, within 11 s.
    """
    try:
        conn.pgconn.consume_input()
        conn.pgconn.consume_input()
    except psycopg.OperationalError:
        conn.pgconn.finish()
    return conn.pgconn.status == ConnStatus.OK


def _tidy(conn: Connection | AsyncConnection) -> None:
    """A connection left amid a statement or a transaction is closed, which rolls back."""
    if conn.pgconn.transaction_status != TransactionStatus.IDLE or not conn.autocommit:
        conn.pgconn.finish()
    conn.row_factory = tuple_row


def _close(pool: ConnectionPool[Connection], pid: int) -> None:
    if pid == os.getpid():  # a fork inherits this wish, but not the threads
        pool.close(timeout=1)
