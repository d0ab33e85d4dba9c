"""What a failed statement means: for the caller (pgqueue's own errors) and for loops (try again, or reconnect).

Guarantees: reads the SQLSTATE of any driver's error, however it is wrapped (SQLAlchemy, Django, asyncpg inside
SQLAlchemy); never looks at translated texts (poolers give no SQLSTATE, but speak English only). The error that the
driver raised stays the `__cause__`.
Never: swallows an error or retries; it only names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from pgqueue.errors import (
    ConfigError,
    InvalidConnection,
    InvalidJob,
    LeaseLost,
    PgqueueError,
    SchemaMismatch,
    Unreachable,
)

ABORTED = (
    "the transaction on this connection is aborted by an earlier error: roll it back (or back to a savepoint), "
    "then call again"
)
POOLER_REMEDY = "set pooled=True (PGQUEUE_POOLED=1) and direct_dsn (PGQUEUE_DIRECT_DSN), a way around it"

# 57P01-57P05: shut down, crashed, starting up, dropped, idle too long. 53100/53200/53300: disk, memory, connections.
# 25006: a primary that became a standby. 54000: refuses writes until a vacuum (transaction id wraparound).
_OUTAGES = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "53300", "53100", "53200", "25006", "54000"})
_TRANSIENT = frozenset({"40001", "40P01", "55P03"})
_MISSING = frozenset({"42P01", "42883", "42703"})
_UNPREPARED = frozenset({"42P05", "26000"})  # prepared already, or not at all: by whoever had the server before us
# PgBouncer, of our session settings (since 1.20 it reads them); Amazon's RDS Proxy.
_REFUSES_OPTIONS = re.compile(r"unsupported (options )?startup parameter|doesn.t support command-line options")
_DRIVER_OUTAGES = frozenset({"OperationalError", "InterfaceError", "ConnectionDoesNotExistError", "PoolTimeout"})
_QUALIFIED = re.compile(r"\w+\.\w+")


DatabaseError = psycopg.Error  # what our own connections raise


class BehindPooler(psycopg.OperationalError, ConfigError):
    """There is a pooler where the configuration says that there is none. A ConfigError for callers; for the engine's
    loops an error of the database that is no outage, since a pooler may be put before a worker that runs.
    """


def sqlstate(error: BaseException) -> str | None:
    """The five characters the server gave as the reason, from any driver's error; None if the server gave none."""
    for each in _chain(error):
        diag = getattr(each, "diag", None)
        for state in (getattr(each, "sqlstate", None), getattr(each, "pgcode", None), getattr(diag, "sqlstate", None)):
            if isinstance(state, str) and len(state) == 5:
                return state
    return None


def is_outage(error: BaseException) -> bool:
    """Can the database not be reached or not do its work just now? Then drop the connection, wait, and try again."""
    if isinstance(error, PgqueueError) and not isinstance(error, Unreachable):
        return False
    state = sqlstate(error)
    if state is not None:
        return state.startswith("08") or state in _OUTAGES
    return not _is_refused_by_pooler(error) and any(_lost(each) for each in _chain(error))


def is_transient(error: BaseException) -> bool:
    """Was the statement refused because of its neighbours (serialization, deadlock, lock timeout)? Try again."""
    return sqlstate(error) in _TRANSIENT


def as_pgqueue_error(error: BaseException, sql: str) -> PgqueueError | None:
    """The error pgqueue raises in place of `error`, which running `sql` has caused; None to leave it as it is."""
    state = sqlstate(error)
    if state == "PQ001":
        return LeaseLost(server_text(error))
    if state == "PQ002":
        return InvalidJob(server_text(error))
    if state == "PQ003":
        return InvalidConnection(server_text(error))
    if state == "25P02" or type(error).__name__ == "PipelineAborted":
        return InvalidConnection(ABORTED)
    if state == "3F000" or (state in _MISSING and _names_our_object(server_text(error), sql)):
        return SchemaMismatch(
            f"{server_text(error)}: the pgqueue schema of this database is missing or of another version; "
            "run `pgqueue migrate`, and check that the connection is to the intended database"
        )
    return None


@contextmanager
def naming_poolers() -> Iterator[None]:
    """For what is done on a connection of our own that should lead to the server itself.

    raises  BehindPooler in place of an error by which a pooler betrays itself
    """
    try:
        yield
    except psycopg.Error as error:
        found = as_pooler_error(error)
        if found is None:
            raise
        raise found from error


def as_pooler_error(error: BaseException) -> BehindPooler | None:
    """The error that names the pooler which `error` tells of, if it does; for connections of our own only."""
    if isinstance(error, BehindPooler):
        return None  # it has been named
    if _is_refused_by_pooler(error):
        own = "where pooled is set already, take `options` out of the DSN, and unset PGOPTIONS"
        return BehindPooler(f"there is a PgBouncer behind this DSN: {POOLER_REMEDY}; {own}")
    if sqlstate(error) in _UNPREPARED:
        return BehindPooler(f"{server_text(error)}: there must be a PgBouncer behind this DSN: {POOLER_REMEDY}")
    return None


def server_text(error: BaseException) -> str:
    """The server's own sentence, without the driver's additions."""
    deepest = list(_chain(error))[-1]
    text = getattr(getattr(deepest, "diag", None), "message_primary", None) or getattr(deepest, "message", None)
    return str(text or deepest).strip()


def _names_our_object(text: str, sql: str) -> bool:
    """A user's trigger may miss a table of its own: only names that our statement spells out count."""
    plain = sql.replace('"', "")
    return any(name in plain for name in _QUALIFIED.findall(text.replace('"', "")))


def _is_refused_by_pooler(error: BaseException) -> bool:
    return sqlstate(error) is None and any(
        isinstance(each, psycopg.OperationalError) and _REFUSES_OPTIONS.search(str(each)) for each in _chain(error)
    )


def _lost(error: BaseException) -> bool:
    names = {base.__name__ for base in type(error).__mro__}
    return isinstance(error, OSError) or (not _DRIVER_OUTAGES.isdisjoint(names) and "PoolClosed" not in names)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps, outermost first; bounded, since causes may form a ring."""
    current: object = error
    for _ in range(8):
        if not isinstance(current, BaseException):
            return
        yield current
        current = getattr(current, "orig", None) or current.__cause__
