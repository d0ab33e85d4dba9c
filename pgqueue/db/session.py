"""One connection of the engine (Session, SyncSession): opened when first needed, opened again after it is lost.

Guarantees: a statement is sent once; whether to send it again after a failure is the caller's decision. A connection
that gives no answer is given up. Arrays packed by `store.arrays` go out as they are.
Never: shared with user code.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format
from psycopg.rows import TupleRow
from psycopg.types.datetime import TimestamptzBinaryLoader

from pgqueue.db.connect import aconnect, conninfo, resolve_dsn
from pgqueue.db.failure import naming_poolers
from pgqueue.db.waiting import ANSWER_WITHIN, ImpatientConnection, NoAnswer
from pgqueue.store.arrays import BinaryArray, Int4Array, Int8Array, TimestampArray
from pgqueue.store.statement import Statement

T = TypeVar("T")


class AnyTimestamptz(TimestamptzBinaryLoader):
    """timestamptz as an aware datetime; what lies outside of Python's years (infinity too) as the last or first one."""

    def load(self, data: Buffer) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            before_2000 = bytes(data)[0] & 0x80
            return (datetime.min if before_2000 else datetime.max).replace(tzinfo=UTC)


def _dumper(array: type[BinaryArray]) -> type[Dumper]:
    class ArrayDumper(Dumper):
        format = Format.BINARY
        oid = array.oid

        def dump(self, obj: BinaryArray) -> Buffer:
            return bytes(obj)

    return ArrayDumper


# The engine prepares its statements, perhaps while all tables are empty: whatever row they look for has an index, and
# without this a worker that was there before the jobs ran at a fifth of its speed until the first analyze. One plan for
# all parameters: for `survey` and the heartbeat the planner would ask for a new one each time, 0.7 of their 0.8 ms.
PLANNING = {"enable_seqscan": "off", "jit": "off", "plan_cache_mode": "force_generic_plan"}

_DUMPERS = {array: _dumper(array) for array in (Int4Array, Int8Array, TimestampArray)}


def adapt(conn: psycopg.AsyncConnection[TupleRow] | psycopg.Connection[TupleRow]) -> None:
    """Teach a connection of the engine the types above."""
    conn.adapters.register_loader("timestamptz", AnyTimestamptz)
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
        cursor = self._cursor
        assert cursor is not None
        try:
            await cursor.execute(statement.sql, statement.params)
            return statement.decode(await cursor.fetchall())
        except psycopg.errors.FeatureNotSupported:  # "cached plan must not change result type", for ever
            await self.close()
            raise

    async def _open(self) -> None:
        await self.close()
        conn = await aconnect(self._dsn, role=self._role, pooled=self._pooled, settings=PLANNING)
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
    """The same for a loop in a thread of its own. `answer_within`: seconds until a statement is given up."""

    def __init__(self, dsn: str, *, role: str, pooled: bool, answer_within: float = ANSWER_WITHIN) -> None:
        self._dsn = dsn
        self._role = role
        self._pooled = pooled
        self._answer_within = answer_within
        self._conn: Connection[TupleRow] | None = None
        self._cursor: Cursor[TupleRow] | None = None

    def run(self, statement: Statement[T]) -> T:
        """Run one statement in a transaction of its own. Raises as `Session.run`."""
        if self._cursor is None or self._conn is None or self._conn.closed:
            self._open()
        assert self._cursor is not None
        try:
            with naming_poolers():
                self._cursor.execute(statement.sql, statement.params)
                return statement.decode(self._cursor.fetchall())
        except (NoAnswer, psycopg.errors.FeatureNotSupported):
            self.close()
            raise

    def _open(self) -> None:
        text = conninfo(resolve_dsn(self._dsn), role=self._role, pooled=self._pooled, settings=PLANNING)
        with naming_poolers():
            conn = ImpatientConnection.connect(text, autocommit=True, prepare_threshold=None if self._pooled else 0)
        conn.answer_within = self._answer_within
        adapt(conn)
        self._conn = conn
        self._cursor = conn.cursor(binary=True)

    def close(self) -> None:
        """Close it; the next `run` opens another."""
        conn, self._conn, self._cursor = self._conn, None, None
        if conn is not None:
            conn.close()
