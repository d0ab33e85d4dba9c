"""Connections of our own for the verbs that are called without `conn=`: one pool for threads, one for event loops.

Guarantees: opens nothing before the first use; connects in the caller (no threads, no background tasks), so a caller
hears the true reason when there is no connection, and the pool works again the moment the database does; a connection
that died while idle is found out before a statement is sent on it; a fork or a new event loop gets connections of its
own; what was never closed is closed quietly when the program ends.
Never: sends a statement a second time when it can't tell whether the first one was committed.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from pgqueue.db.adapt import arun, run, sqlstate
from pgqueue.db.connect import aconnect, connect, describe, is_outage, resolve_dsn
from pgqueue.db.failure import Unreachable
from pgqueue.db.shelf import AsyncConnection, Connection, Lent, Shelf
from pgqueue.errors import ConfigError
from pgqueue.store.statement import Statement

T = TypeVar("T")

_STALE_PLAN = "0A000"  # "cached plan must not change result type": a migration ran since the statement was prepared
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
    budget             for getting a connection, outages included; then `Unreachable`
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
        self._shelves: dict[int, _SyncShelf] = {}  # by process

    def run(self, statement: Statement[T]) -> T:
        """Run `statement` in a transaction of its own.

        raises  Unreachable, within the budget: nothing was sent; what `adapt.run` raises; a driver's error if the
                connection broke while the statement ran (`is_outage`): it may or may not have been committed
        """
        try:
            return self._run_once(statement)
        except psycopg.Error as error:
            if sqlstate(error) != _STALE_PLAN:
                raise
        return self._run_once(statement)  # the server had refused it before it did anything

    def _run_once(self, statement: Statement[T]) -> T:
        with self.connection() as conn:
            return run(conn, statement)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection in autocommit mode for the length of a block; a transaction left open is rolled back."""
        patience = _Patience(self._dsn, self._options)
        shelf = self._shelf()
        if not shelf.slots.acquire(timeout=patience.left()):
            raise patience.exhausted()
        try:
            lent = self._take(shelf) or Lent(self._open(patience))
            try:
                yield lent.conn
            except psycopg.Error as error:
                _drop_if_useless(lent.conn, error)
                raise
            finally:
                if _must_roll_back(lent.conn):
                    self._roll_back(lent.conn)
                shelf.put(lent)
        finally:
            shelf.slots.release()

    def close(self) -> None:
        """Close what is open now, and what is in use when it comes back; a later use opens again."""
        shelf = self._shelves.pop(os.getpid(), None)
        if shelf is not None:
            shelf.close()

    def _shelf(self) -> _SyncShelf:
        pid = os.getpid()
        return self._shelves.get(pid) or self._shelves.setdefault(pid, _SyncShelf(self._options.max_size))

    def _take(self, shelf: _SyncShelf) -> Lent[Connection] | None:
        while (lent := shelf.take()) is not None:
            try:
                if lent.is_stale():
                    lent.conn.execute("select")
                return lent
            except psycopg.OperationalError:
                lent.conn.close()
        return None

    def _open(self, patience: _Patience) -> Connection:
        options = self._options
        while True:
            try:
                return connect(
                    self._dsn,
                    role=options.role,
                    pooled=options.pooled,
                    prepare=options.prepare,
                    statement_timeout=options.statement_timeout,
                    within=timedelta(seconds=patience.left()),
                )
            except psycopg.OperationalError as error:
                pause = patience.pause_after(error)
            time.sleep(pause)

    def _roll_back(self, conn: Connection) -> None:
        try:
            conn.rollback()
            conn.autocommit = True
        except psycopg.Error:
            conn.close()


class AsyncPool:
    """Async connections; each event loop has its own, and they go when it has gone."""

    def __init__(self, dsn: str | None = None, *, options: PoolOptions | None = None) -> None:
        self._dsn = dsn
        self._options = options or PoolOptions()
        self._shelves: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _AsyncShelf]
        self._shelves = weakref.WeakKeyDictionary()

    async def arun(self, statement: Statement[T]) -> T:
        """Run `statement` in a transaction of its own; otherwise as `Pool.run`."""
        try:
            return await self._run_once(statement)
        except psycopg.Error as error:
            if sqlstate(error) != _STALE_PLAN:
                raise
        return await self._run_once(statement)

    async def _run_once(self, statement: Statement[T]) -> T:
        async with self.connection() as conn:
            return await arun(conn, statement)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection in autocommit mode for the length of a block; a transaction left open is rolled back."""
        patience = _Patience(self._dsn, self._options)
        shelf = self._shelf()
        try:
            async with asyncio.timeout(patience.left()):
                await shelf.slots.acquire()
        except TimeoutError:
            raise patience.exhausted() from None
        try:
            lent = await self._take(shelf) or Lent(await self._open(patience))
            try:
                yield lent.conn
            except psycopg.Error as error:
                _drop_if_useless(lent.conn, error)
                raise
            finally:
                if _must_roll_back(lent.conn):
                    await self._roll_back(lent.conn)
                shelf.put(lent)
        finally:
            shelf.slots.release()

    async def aclose(self) -> None:
        """Close what this event loop has open, and what is in use when it comes back; a later use opens again."""
        shelf = self._shelves.pop(asyncio.get_running_loop(), None)
        if shelf is not None:
            shelf.close()
        self._sweep()

    def _shelf(self) -> _AsyncShelf:
        loop = asyncio.get_running_loop()
        shelf = self._shelves.get(loop)
        if shelf is None or shelf.pid != os.getpid():
            self._sweep()
            shelf = self._shelves[loop] = _AsyncShelf(self._options.max_size)
        return shelf

    def _sweep(self) -> None:
        """Close what loops that ended left behind: asyncio.run() makes a new one each time."""
        for loop in [loop for loop in self._shelves if loop.is_closed()]:
            self._shelves.pop(loop).close()

    async def _take(self, shelf: _AsyncShelf) -> Lent[AsyncConnection] | None:
        while (lent := shelf.take()) is not None:
            try:
                if lent.is_stale():
                    await lent.conn.execute("select")
                return lent
            except psycopg.OperationalError:
                await lent.conn.close()
            except BaseException:  # cancelled: this connection is on no shelf any more
                await lent.conn.close()
                raise
        return None

    async def _open(self, patience: _Patience) -> AsyncConnection:
        options = self._options
        while True:
            try:
                return await aconnect(
                    self._dsn,
                    role=options.role,
                    pooled=options.pooled,
                    prepare=options.prepare,
                    statement_timeout=options.statement_timeout,
                    within=timedelta(seconds=patience.left()),
                )
            except psycopg.OperationalError as error:
                pause = patience.pause_after(error)
            await asyncio.sleep(pause)

    async def _roll_back(self, conn: AsyncConnection) -> None:
        try:
            await conn.rollback()
            await conn.set_autocommit(True)
        except psycopg.Error:
            await conn.close()
        except BaseException:  # cancelled half-way: in an unknown state
            await conn.close()
            raise


class _SyncShelf(Shelf[Connection]):
    def __init__(self, max_size: int) -> None:
        super().__init__()
        self.slots = threading.Semaphore(max_size)


class _AsyncShelf(Shelf[AsyncConnection]):
    def __init__(self, max_size: int) -> None:
        super().__init__()
        self.slots = asyncio.Semaphore(max_size)


def _must_roll_back(conn: Connection | AsyncConnection) -> bool:
    """Did the block leave a transaction open, or autocommit off? A connection amid a statement is closed instead."""
    status = conn.pgconn.transaction_status
    if status in (TransactionStatus.ACTIVE, TransactionStatus.UNKNOWN):
        conn.pgconn.finish()
        return False
    return status != TransactionStatus.IDLE or not conn.autocommit


def _drop_if_useless(conn: Connection | AsyncConnection, error: psycopg.Error) -> None:
    """After a failover a connection may live on, read-only; after 0A000 it would refuse that statement for ever."""
    if is_outage(error) or sqlstate(error) == _STALE_PLAN:
        conn.pgconn.finish()


class _Patience:
    """How long one caller still waits for a connection, and what it is told in the end."""

    def __init__(self, dsn: str | None, options: PoolOptions) -> None:
        self._dsn = dsn
        self._options = options
        self._deadline = time.monotonic() + options.budget.total_seconds()
        self._pause = 0.1

    def left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def pause_after(self, error: psycopg.OperationalError) -> float:
        """Seconds to wait before the next try.

        raises  Unreachable if there is no time left for one, or no hope
        """
        pause = self._pause * random.uniform(0.5, 1)
        self._pause = min(2.0, self._pause * 2)
        if _HOPELESS.search(str(error)) or self.left() <= pause:
            reason = " ".join(str(error).split())
            raise Unreachable(
                f"no connection to {self._where()}: {reason}. Check the DSN and that the server runs"
            ) from error
        return pause

    def _where(self) -> str:
        return describe(resolve_dsn(self._dsn))

    def exhausted(self) -> Unreachable:
        return Unreachable(
            f"no connection to {self._where()}: all {self._options.max_size} of this pool have been in use for "
            f"{self._options.budget.total_seconds():g} s. Raise max_size, or pass conn="
        )
