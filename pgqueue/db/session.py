"""One connection of the engine (Session, SyncSession): opened when first needed, opened again after it is lost.

Guarantees: a statement is sent once; whether to send it again after a failure is the caller's decision. JSON comes as
raw bytes, and arrays packed by `store.arrays` go out as they are.
Never: shared with user code.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.adapt import Buffer, Dumper, Loader
from psycopg.pq import Format
from psycopg.rows import TupleRow

from pgqueue.db.connect import aconnect, connect
from pgqueue.store.arrays import BinaryArray, Int4Array, Int8Array, TimestampArray
from pgqueue.store.statement import Statement

T = TypeVar("T")


class RawJsonb(Loader):
    """jsonb as the bytes of its text, not decoded: a value that Python can't read must not break a whole batch."""

    format = Format.BINARY

    def load(self, data: Buffer) -> bytes:
        return bytes(data)[1:]  # the first byte is the format's version


class RawTextJsonb(Loader):
    """The same in text format."""

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


def _dumper(array: type[BinaryArray]) -> type[Dumper]:
    class ArrayDumper(Dumper):
        format = Format.BINARY
        oid = array.oid

        def dump(self, obj: BinaryArray) -> Buffer:
            return bytes(obj)

    return ArrayDumper


_DUMPERS = {array: _dumper(array) for array in (Int4Array, Int8Array, TimestampArray)}


def adapt(conn: psycopg.AsyncConnection[TupleRow] | psycopg.Connection[TupleRow]) -> None:
    """Teach a connection of the engine the types above."""
    conn.adapters.register_loader("jsonb", RawJsonb)
    conn.adapters.register_loader("jsonb", RawTextJsonb)
    for array, dumper in _DUMPERS.items():
        conn.adapters.register_dumper(array, dumper)


class Session:
    """A connection for one loop of the engine.

    role  what it is for; administrators see it in application_name
    """

    def __init__(self, dsn: str, *, role: str, pooled: bool) -> None:
        self._dsn = dsn
        self._role = role
        self._pooled = pooled
        self._conn: AsyncConnection[TupleRow] | None = None
        self._cursor: AsyncCursor[TupleRow] | None = None

    async def run(self, statement: Statement[T]) -> T:
        """Run one statement in a transaction of its own.

        raises  psycopg.Error; after one that closed the connection the next call opens another
        """
        if self._cursor is None or self._conn is None or self._conn.closed:
            await self._open()
        assert self._cursor is not None
        try:
            await self._cursor.execute(statement.sql, statement.params)
            return statement.decode(await self._cursor.fetchall())
        except asyncio.CancelledError:
            await self.close()  # its answer is still under way
            raise

    async def _open(self) -> None:
        await self.close()
        conn = await aconnect(self._dsn, role=self._role, pooled=self._pooled)
        if not self._pooled:
            conn.prepare_threshold = 0  # the engine has a handful of statements, each run for ever
        adapt(conn)
        self._conn = conn
        self._cursor = conn.cursor(binary=True)

    async def close(self) -> None:
        """Close it; the next `run` opens another."""
        conn, self._conn, self._cursor = self._conn, None, None
        if conn is not None:
            await conn.close()


class SyncSession:
    """The same for a loop in a thread of its own."""

    def __init__(self, dsn: str, *, role: str, pooled: bool) -> None:
        self._dsn = dsn
        self._role = role
        self._pooled = pooled
        self._conn: Connection[TupleRow] | None = None
        self._cursor: Cursor[TupleRow] | None = None

    def run(self, statement: Statement[T]) -> T:
        """Run one statement in a transaction of its own. Raises as `Session.run`."""
        if self._cursor is None or self._conn is None or self._conn.closed:
            self._conn = connect(self._dsn, role=self._role, pooled=self._pooled)
            if not self._pooled:
                self._conn.prepare_threshold = 0
            adapt(self._conn)
            self._cursor = self._conn.cursor(binary=True)
        self._cursor.execute(statement.sql, statement.params)
        return statement.decode(self._cursor.fetchall())

    def close(self) -> None:
        """Close it; the next `run` opens another."""
        conn, self._conn, self._cursor = self._conn, None, None
        if conn is not None:
            conn.close()
