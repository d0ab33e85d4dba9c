"""Runs a Statement on any caller's connection, as a part of whatever transaction the caller has open there.

Guarantees: one round trip; no commit, no rollback, no flush; no setting of the connection is changed and no cursor
is left open; rows reach `decode` as positional sequences whatever the row factory. A connection that can't be used is
refused with InvalidConnection before anything is sent, so the caller's transaction is still good.
Never: imports a driver or an ORM (the class's name decides, `drivers.py`), opens a connection, or retries.

An error *of the server* aborts the caller's transaction, as any failing statement does in PostgreSQL: after LeaseLost,
InvalidJob or SchemaMismatch from here the transaction can only be rolled back, to a savepoint if there is one.
On a connection in autocommit mode the statement is its own transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

from pgqueue.db.drivers import (
    Adapter,
    AsyncAdapter,
    Conn_contra,
    SyncAdapter,
    class_name,
    commits_alone,
    register_adapter,
    resolve,
)
from pgqueue.db.failure import as_pgqueue_error, sqlstate
from pgqueue.db.placeholders import numbered, positional
from pgqueue.errors import InvalidConnection
from pgqueue.store.statement import Statement

__all__ = [
    "Adapter",
    "AsyncAdapter",
    "Conn_contra",
    "SyncAdapter",
    "arun",
    "numbered",
    "positional",
    "register_adapter",
    "run",
    "sqlstate",
]

T = TypeVar("T")


def run(conn: object, statement: Statement[T]) -> T:
    """Run `statement` on a sync connection and return what it decodes to.

    raises  InvalidConnection (nothing was sent); LeaseLost, InvalidJob, SchemaMismatch (the server refused, the
            transaction is aborted); any other error of the driver as it is
    """
    target, adapter = _sync(
        conn,
        "await the verb with an `a` in front, such as `await task.using(conn).aenqueue(...)`, or pass a sync one",
    )
    return _fetch(target, adapter, statement)


async def arun(conn: object, statement: Statement[T]) -> T:
    """Run `statement` on an async connection and return what it decodes to; otherwise as `run`."""
    target, adapter = _async(
        conn,
        "use the verb without the `a` in front, such as `task.using(conn).enqueue(...)`, or pass an async connection",
    )
    return await _afetch(target, adapter, statement)


def join(conn: object, remedy: str) -> Callable[[Statement[T]], T]:
    """How to run a statement in the transaction on a sync connection; errors as `run`.

    remedy  what to do about a connection of the wrong colour
    raises  InvalidConnection, also for a connection on which the statement would be committed by itself
    """
    target, adapter = _sync(conn, remedy)
    if commits_alone(target, adapter):
        raise _alone(target)
    return lambda statement: _fetch(target, adapter, statement)


async def ajoin(conn: object, remedy: str) -> Callable[[Statement[T]], Awaitable[T]]:
    """As `join`, on an async connection."""
    target, adapter = _async(conn, remedy)
    alone = commits_alone(target, adapter)
    if alone if isinstance(alone, bool) else await alone:
        raise _alone(target)
    return lambda statement: _afetch(target, adapter, statement)


def _sync(conn: object, remedy: str) -> tuple[object, SyncAdapter[object]]:
    target, adapter = resolve(conn)
    if adapter.is_async:
        raise InvalidConnection(f"{class_name(conn)} is an async connection: {remedy}")
    adapter.check(target)
    return target, cast("SyncAdapter[object]", adapter)


def _async(conn: object, remedy: str) -> tuple[object, AsyncAdapter[object]]:
    target, adapter = resolve(conn)
    if not adapter.is_async:
        raise InvalidConnection(f"{class_name(conn)} is a sync connection: {remedy}")
    adapter.check(target)
    return target, cast("AsyncAdapter[object]", adapter)


def _fetch(target: object, adapter: SyncAdapter[object], statement: Statement[T]) -> T:
    try:
        rows = adapter.fetch(target, statement.sql, statement.params)
    except Exception as error:
        _raise_ours(error, statement.sql)
        raise
    return statement.decode(rows)


async def _afetch(target: object, adapter: AsyncAdapter[object], statement: Statement[T]) -> T:
    try:
        rows = await adapter.fetch(target, statement.sql, statement.params)
    except Exception as error:
        _raise_ours(error, statement.sql)
        raise
    return statement.decode(rows)


def _alone(target: object) -> InvalidConnection:
    return InvalidConnection(
        f"this {class_name(target)} is in autocommit mode, so that the mark would not commit together with your work:"
        " open a transaction on it first"
    )


def _raise_ours(error: Exception, sql: str) -> None:
    """Every driver has a root class of its own; what doesn't concern us goes on untouched."""
    ours = as_pgqueue_error(error, sql)
    if ours is not None:
        raise ours from error
