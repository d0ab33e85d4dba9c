"""Opens pgqueue's own connections: where to, and with which settings.

Guarantees: a dead network is noticed within seconds (connect_timeout, tcp_user_timeout and keepalives, which PostgreSQL
leaves off); limits and the isolation level that the role or database sets do not hit our statements, except behind a
pooler, where a session's settings would reach other people's; whatever the DSN says itself wins. What needs a session
of its own gets one or BehindPooler, before any state is left in it. No text made here shows a password.
Never: used for a caller's own connection.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import MappingProxyType
from typing import Any, TypeVar

import psycopg
from psycopg import conninfo as libpq
from psycopg.abc import PQGen
from psycopg.rows import TupleRow

from pgqueue.db.failure import BehindPooler, as_pooler_error, is_outage, is_transient, naming_poolers
from pgqueue.db.waiting import WatchedConnection
from pgqueue.errors import ConfigError, Unreachable

__all__ = [
    "Unreachable",
    "aconnect",
    "aconnect_direct",
    "arguments",
    "connect",
    "connect_direct",
    "conninfo",
    "describe",
    "is_outage",
    "is_transient",
    "redact",
    "resolve_dsn",
]

T = TypeVar("T")

_DEFAULTS: Mapping[str, str] = {
    "connect_timeout": "5",
    "keepalives_idle": "5",  # an idle connection: dead after 5 + 3 * 2 seconds
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",  # ms; a statement in flight, which keepalives do not cover
    "client_encoding": "utf8",
}
_VARIABLES: Mapping[str, str] = {
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "application_name": "PGAPPNAME",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}
_PREPARE_AFTER = 5
_NONE: Mapping[str, str] = MappingProxyType({})
_MARK = "pgqueue.direct"
_READ_MARK = f"select current_setting('{_MARK}', true)"
_DRIVER_SCHEME = re.compile(r"^(postgres(?:ql)?)\+(\w+)://")
_SCHEME = re.compile(r"^(\w[\w+.-]*)://")
_USERINFO = re.compile(r"(://[^:/?#@]*:).*@", re.DOTALL)
_SECRET_PARAM = re.compile(r"([?&](?:ssl)?password=)[^&#]*", re.IGNORECASE)
_SECRET_WORD = re.compile(
    r"\b((?:ssl)?password\s*=\s*)('(?:\\.|[^'\\])*'?|(?:\\.|[^\s\\])*)", re.IGNORECASE | re.DOTALL
)


def resolve_dsn(dsn: str | None = None, *, environ: Mapping[str, str] = os.environ) -> str:
    """The DSN to use, in libpq's form: `dsn`, else PGQUEUE_DSN, else DATABASE_URL, else "" (libpq's PG* variables).

    SQLAlchemy's `postgresql+psycopg://...` is accepted.
    raises  ConfigError naming where the DSN came from, its password removed
    """
    candidates = (("the DSN", dsn), *((name, environ.get(name)) for name in ("PGQUEUE_DSN", "DATABASE_URL")))
    source, found = next(((source, text) for source, text in candidates if text), ("the DSN", ""))
    text = _DRIVER_SCHEME.sub(r"\1://", found.strip())
    if _DRIVER_SCHEME.match(found.strip()):
        text = re.sub(r"([?&])ssl=", r"\1sslmode=", text)  # asyncpg's spelling
    scheme = _SCHEME.match(text)
    if scheme and scheme[1] not in ("postgresql", "postgres"):
        raise ConfigError(f"{source} {redact(text)!r}: not PostgreSQL; set PGQUEUE_DSN to postgresql://host/database")
    try:
        given = libpq.conninfo_to_dict(text)
    except psycopg.Error as error:
        # From None: libpq's own sentence may quote a piece of a password that was not escaped.
        raise ConfigError(f"{source} {_redact_malformed(text)!r}: {_without_values(str(error))}") from None
    if _is_misread(given):
        raise ConfigError(f"{source} {redact(text)!r}: write @ : / in a password as %40 %3A %2F, and ports as numbers")
    return text


def conninfo(
    dsn: str,
    *,
    role: str,
    pooled: bool = False,
    statement_timeout: timedelta = timedelta(0),
    settings: Mapping[str, str] = _NONE,
) -> str:
    """`dsn` (from `resolve_dsn`) with our defaults for what it leaves open.

    role               shown to administrators: application_name "pgqueue <role>"
    pooled             there is a PgBouncer in between: it refuses `options`, so none are sent
    statement_timeout  what the server may spend on one statement; zero: no limit
    settings           more for the session, which win over those of the DSN; none behind a pooler
    """
    given = libpq.conninfo_to_dict(dsn)
    values = {**_DEFAULTS, "application_name": f"pgqueue {role}"}
    if "," in str(given.get("host") or given.get("hostaddr") or os.environ.get("PGHOST", "")):
        values["target_session_attrs"] = "read-write"  # a standby would refuse every write
    values = {
        name: value
        for name, value in values.items()
        if name not in given and _VARIABLES.get(name, "") not in os.environ
    }
    if not pooled:
        own = str(given.get("options") or os.environ.get("PGOPTIONS", ""))
        parts = (_session_options(statement_timeout), own, _as_options(settings))  # the later one wins
        values["options"] = " ".join(part for part in parts if part)
    return libpq.make_conninfo(dsn, **values)


def arguments(
    dsn: str | None,
    *,
    role: str,
    pooled: bool,
    prepare: bool,
    statement_timeout: timedelta,
    settings: Mapping[str, str] = _NONE,
) -> tuple[str, int | None]:
    """The conninfo and the prepare_threshold of a connection of our own; otherwise as `connect`."""
    text = conninfo(resolve_dsn(dsn), role=role, pooled=pooled, statement_timeout=statement_timeout, settings=settings)
    return text, _PREPARE_AFTER if prepare and not pooled else None


def connect(
    dsn: str | None = None,
    *,
    role: str,
    pooled: bool = False,
    prepare: bool = True,
    statement_timeout: timedelta = timedelta(0),
) -> psycopg.Connection[TupleRow]:
    """Open a connection of our own, in autocommit mode.

    prepare  let psycopg prepare what it runs often; never behind a pooler
    raises   ConfigError for a malformed DSN or an unexpected pooler; psycopg.OperationalError (`is_outage`) if the
             server can't be reached
    """
    text, threshold = arguments(dsn, role=role, pooled=pooled, prepare=prepare, statement_timeout=statement_timeout)
    with naming_poolers():
        return psycopg.connect(text, autocommit=True, prepare_threshold=threshold)


async def aconnect(
    dsn: str | None = None,
    *,
    role: str,
    pooled: bool = False,
    prepare: bool = True,
    statement_timeout: timedelta = timedelta(0),
    settings: Mapping[str, str] = _NONE,
) -> WatchedConnection:
    """Open an async connection of our own; otherwise as `connect`.

    settings  more for the session; none behind a pooler
    """
    text, threshold = arguments(
        dsn, role=role, pooled=pooled, prepare=prepare, statement_timeout=statement_timeout, settings=settings
    )
    made_as: type[WatchedConnection] = WatchedConnection if pooled else _Unpooled
    with naming_poolers():
        return await made_as.connect(text, autocommit=True, prepare_threshold=threshold)


def connect_direct(dsn: str, *, role: str, settings: Mapping[str, str] = _NONE) -> psycopg.Connection[TupleRow]:
    """Open a connection of our own, in autocommit mode, that is a session of its own: it may hold locks and settings.

    settings  for the session; they win over those of the DSN
    raises    BehindPooler before anything is left in a session that is others' too; psycopg.OperationalError
    """
    mark, text = _marked(dsn, role, settings)
    with _refusing_poolers(dsn):
        conn = psycopg.connect(text, autocommit=True, prepare_threshold=None)
    try:
        _prove(conn.execute(_READ_MARK).fetchone(), mark, dsn)
    except BaseException:
        conn.close()
        raise
    return conn


async def aconnect_direct(dsn: str, *, role: str, settings: Mapping[str, str] = _NONE) -> WatchedConnection:
    """Open an async connection that is a session of its own; otherwise as `connect_direct`."""
    mark, text = _marked(dsn, role, settings)
    with _refusing_poolers(dsn):
        conn = await WatchedConnection.connect(text, autocommit=True, prepare_threshold=None)
    try:
        _prove(await (await conn.execute(_READ_MARK)).fetchone(), mark, dsn)
    except BaseException:
        await conn.close()
        raise
    return conn


def redact(dsn: str) -> str:
    """`dsn` for people to read: its passwords are replaced by ***."""
    if "://" in dsn:
        return _SECRET_PARAM.sub(r"\1***", _USERINFO.sub(r"\1***@", dsn))
    return _SECRET_WORD.sub(r"\1***", dsn)


def way_around(dsn: str | None, direct_dsn: str | None) -> str | None:
    """What was given as a way around a pooler, else PGQUEUE_DIRECT_DSN; None without one.

    That variable belongs to PGQUEUE_DSN: beside a DSN that was given it might lead to another database.
    """
    return direct_dsn or (None if dsn else os.environ.get("PGQUEUE_DIRECT_DSN"))


def describe(dsn: str) -> str:
    """`database app on db.example:5432`, for messages."""
    given = libpq.conninfo_to_dict(dsn)
    host = given.get("host") or given.get("hostaddr") or os.environ.get("PGHOST") or "the local socket"
    port = given.get("port") or os.environ.get("PGPORT") or "5432"
    user = given.get("user") or os.environ.get("PGUSER")
    database = given.get("dbname") or os.environ.get("PGDATABASE") or user or "(default)"
    return redact(f"database {database} on {host}:{port}")


def _is_misread(given: Mapping[str, object]) -> bool:
    """An unescaped character cuts a URL at the wrong place, and a piece of the password ends up as host or port."""
    port = str(given.get("port") or "")
    return "@" in str(given.get("host") or "")[1:] or not re.fullmatch(r"[\d, ]*", port)


def _marked(dsn: str, role: str, settings: Mapping[str, str]) -> tuple[str, str]:
    """A mark that nobody else has, and the conninfo of a session that bears it."""
    mark = secrets.token_hex(8)
    return mark, conninfo(dsn, role=role, settings={**settings, _MARK: mark})


def _prove(found: TupleRow | None, mark: str, dsn: str) -> None:
    """Poolers refuse what a client asks for its session, or drop it; only the server itself obeys."""
    if found != (mark,):
        raise _not_direct(dsn)


@contextmanager
def _refusing_poolers(dsn: str) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        if as_pooler_error(error) is None:
            raise
        raise _not_direct(dsn) from error


def _not_direct(dsn: str) -> BehindPooler:
    return BehindPooler(
        f"there is a pooler behind this DSN ({describe(dsn)}), where a session of its own is needed: "
        "give direct_dsn (on the command line --direct-dsn or PGQUEUE_DIRECT_DSN), a way around the pooler"
    )


class _Unpooled(WatchedConnection):
    """Says what it means when what it has prepared is not there, or is there already."""

    async def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        try:
            return await super().wait(gen, *args, **kwargs)
        except psycopg.Error as error:
            found = as_pooler_error(error)
            if found is None:
                raise
            raise found from error


def _session_options(statement_timeout: timedelta) -> str:
    settings = {
        "statement_timeout": str(round(statement_timeout / timedelta(milliseconds=1))),
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "idle_session_timeout": "0",
        "default_transaction_isolation": r"read\ committed",
    }
    return _as_options(settings)


def _as_options(settings: Mapping[str, str]) -> str:
    return " ".join(f"-c {name}={value}" for name, value in settings.items())


def _redact_malformed(dsn: str) -> str:
    """A DSN that can't be parsed may have its password anywhere after the word: all of that goes."""
    if "://" in dsn:
        return redact(dsn)
    return re.sub(r"\b((?:ssl)?password\s*=).*", r"\1***", dsn, flags=re.IGNORECASE | re.DOTALL)


def _without_values(text: str) -> str:
    """libpq's sentence; what it quotes stays only where that is an option's name."""
    first = text.strip().splitlines()[0] if text.strip() else "malformed"
    if re.fullmatch(r'invalid (connection option|URI query parameter): ?"\w+"|invalid connection option "\w+"', first):
        return first
    return re.sub(r'"([^"]*)"?', lambda match: match[0] if match[1] == "=" else '"..."', first)
