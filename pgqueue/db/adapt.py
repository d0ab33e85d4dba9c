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

from typing import Any, TypeVar, cast

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


def run(conn: object, statement: Statement[T], *, in_transaction: bool = False) -> T:
    """Run `statement` on a sync connection and return what it decodes to.

    in_transaction  refuse a connection on which it would be committed by itself
    raises  InvalidConnection (nothing was sent); LeaseLost, InvalidJob, SchemaMismatch (the server refused, the
            transaction is aborted); any other error of the driver as it is
    """
    target, adapter = resolve(conn)
    if adapter.is_async:
        raise InvalidConnection(
            f"{class_name(conn)} is an async connection: await the verb with an `a` in front, "
            "such as `await task.using(conn).aenqueue(...)`, or pass a sync connection"
        )
    adapter.check(target)
    if in_transaction:
        _refuse_alone(target, adapter)
    try:
        rows = cast("SyncAdapter[object]", adapter).fetch(target, statement.sql, statement.params)
    except Exception as error:
        _raise_ours(error, statement.sql)
        raise
    return statement.decode(rows)


async def arun(conn: object, statement: Statement[T], *, in_transaction: bool = False) -> T:
    """Run `statement` on an async connection and return what it decodes to; otherwise as `run`."""
    target, adapter = resolve(conn)
    if not adapter.is_async:
        raise InvalidConnection(
            f"{class_name(conn)} is a sync connection: use the verb without the `a` in front, "
            "such as `task.using(conn).enqueue(...)`, or pass an async connection"
        )
    adapter.check(target)
    if in_transaction:
        _refuse_alone(target, adapter)
    try:
        rows = await cast("AsyncAdapter[object]", adapter).fetch(target, statement.sql, statement.params)
    except Exception as error:
        _raise_ours(error, statement.sql)
        raise
    return statement.decode(rows)


def _refuse_alone(target: object, adapter: Adapter[Any]) -> None:
    if commits_alone(target, adapter):
        raise InvalidConnection(
            f"this {class_name(target)} is in autocommit mode, so that the mark would not commit together with your"
            " work: open a transaction on it first"
        )


def _raise_ours(error: Exception, sql: str) -> None:
    """Every driver has a root class of its own; what doesn't concern us goes on untouched."""
    ours = as_pgqueue_error(error, sql)
    if ours is not None:
        raise ours from error
