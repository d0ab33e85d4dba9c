"""The database's schema: which version is there, whether this release can work with it, and how to change it.

Guarantees: migrate() may be run by many at once, killed at any moment and run again; each migration is one transaction
that holds both its changes and its version; it waits for a lock only briefly, then steps back and tries again, so that
the application goes on. It needs no superuser, no extension and no particular search_path. It leaves nothing behind in
a session that is others' too: a pooler is found out before a lock or a setting is made.
Never: imports Alembic or SQLAlchemy unless there is something to migrate; touches anything outside its schema.
"""

from __future__ import annotations

import hashlib
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg import errors, sql

from pgqueue.db.connect import connect_direct, resolve_dsn, way_around
from pgqueue.errors import ConfigError, MigrationError, SchemaMismatch
from pgqueue.store.statement import SCHEMA, Row, Statement, check_schema

if TYPE_CHECKING:  # lazy: they cost two seconds, and workers never need them
    from alembic.config import Config
    from sqlalchemy import Connection

SCHEMA_MIN = "0003"  # this release works with a database from here
SCHEMA_MAX = "0004"  # to here
OLDEST_SERVER = 15
TRIES = 5
TURN = timedelta(minutes=10)

_REVISION_FILE = re.compile(r"(\d{4})_\w+\.py")
_VERSION = """
select substring(obj_description(c.oid, 'pg_class') from '^version (.+)$')
from pg_catalog.pg_namespace n
join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = 'schema_version'
where n.nspname = %(schema)s
"""
# Who may be in the way: holders of locks on our relations first, then the oldest snapshots, for indexes wait for those.
_BLOCKERS = """
select a.pid, a.usename, coalesce(nullif(a.application_name, ''), '?'), coalesce(a.state, a.backend_type),
  extract(epoch from clock_timestamp() - a.xact_start)::int, left(regexp_replace(a.query, '\\s+', ' ', 'g'), 80)
from pg_stat_activity a
cross join lateral (
  select exists (select from pg_locks l join pg_class c on c.oid = l.relation
    where l.pid = a.pid and l.granted and c.relnamespace = to_regnamespace(%s)) as ours
) held
where a.datname = current_database() and a.pid <> pg_backend_pid() and a.xact_start is not null
  and (held.ours or a.backend_xmin is not null)
order by held.ours desc, a.xact_start
limit 5
"""
_in_this_process = threading.Lock()  # Alembic keeps the running migration in module globals


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """What is installed (None: nothing) and what this release would bring."""

    current: str | None
    head: str

    @property
    def is_current(self) -> bool:
        return self.current == self.head


@dataclass(frozen=True, slots=True)
class _Plan:
    """One call of migrate()."""

    dsn: str = field(repr=False)
    schema: str
    target: str | None
    scripts: Path
    lock_timeout: timedelta
    tell: Callable[[str], None]


def direct_dsn(dsn: str | None, direct: str | None, *, pooled: bool) -> str:
    """The DSN that migrate() can use, of what somebody has configured.

    raises  ConfigError if that is a way through a pooler only, or malformed
    """
    direct = way_around(dsn, direct)
    if pooled and not direct:
        raise ConfigError(
            "pooled is set, and a migration needs a session of its own: give direct_dsn "
            "(on the command line --direct-dsn or PGQUEUE_DIRECT_DSN), a way around the pooler"
        )
    return resolve_dsn(direct or dsn)


def installed_version(schema: str = SCHEMA) -> Statement[str | None]:
    """The version of the schema in the database, None without one.

    One SELECT that can't fail and needs no privilege: the version stands in the comment of its table, written by
    every migration in its own transaction.
    """
    return Statement(_VERSION, {"schema": check_schema(schema)}, _first_value)


def gate(version: str | None, *, schema: str = SCHEMA) -> None:
    """Let a release work only with a schema it knows. Pure.

    raises  SchemaMismatch with the command to run
    """
    command = "pgqueue migrate" if schema == SCHEMA else f"pgqueue migrate --schema {schema}"
    if version is None:
        raise SchemaMismatch(f"schema {schema!r} is not installed in this database: run `{command}`")
    window = SCHEMA_MIN if SCHEMA_MIN == SCHEMA_MAX else f"{SCHEMA_MIN} to {SCHEMA_MAX}"
    if version < SCHEMA_MIN:
        raise SchemaMismatch(f"schema {schema!r} is at version {version}, this release needs {window}: run `{command}`")
    if version > SCHEMA_MAX:
        raise SchemaMismatch(
            f"schema {schema!r} is at version {version}, this release knows {window}: "
            "run `pip install --upgrade pgqueue-jobs`"
        )


def check(dsn: str, schema: str = SCHEMA) -> SchemaStatus:
    """Say what is installed and what this release would bring; changes nothing."""
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as conn:
        return SchemaStatus(_current(conn, schema), _revisions(_scripts())[-1])


def migrate(
    dsn: str,
    *,
    schema: str = SCHEMA,
    target: str = "head",
    lock_timeout: timedelta = timedelta(seconds=3),
    on_step: Callable[[str], None] | None = None,
    scripts: Path | None = None,
) -> str | None:
    """Bring the schema to `target`, up or down, and return its version; None when nothing is left.

    dsn           leads to the server itself: a pooler can't hold the lock that keeps others out
    target        "head", "base" (remove everything, jobs too), or a version such as "0001"
    lock_timeout  how long one try may hold up the application behind it; there are five, with growing pauses
    on_step       called with one line of text about each version reached and each wait
    scripts       another directory of migrations than the package's own
    raises        MigrationError naming who is in the way, or what PostgreSQL said; SchemaMismatch for a schema newer
                  than this release or a server that is too old; ConfigError for an unknown target, or a pooler
    """
    home = scripts or _scripts()
    plan = _Plan(dsn, check_schema(schema), _resolve(target, home), home, lock_timeout, on_step or _say_nothing)
    with _in_this_process, _connect(dsn) as conn:
        check_server(conn.info.server_version)
        if _current(conn, plan.schema) != plan.target:
            _take_turn(conn, plan)
            _create_schema(conn, plan)
            _move(conn, plan)
        return plan.target


def migration_sql(schema: str = SCHEMA, target: str = "head", *, start: str = "base") -> str:
    """The SQL that migrate() would run from version `start` to `target`, for psql or another tool.

    Each migration is a transaction of its own; run it with `psql -v ON_ERROR_STOP=1`.
    """
    from alembic import command  # lazy

    home = _scripts()
    first, last = _resolve(start, home), _resolve(target, home)
    printed = StringIO()
    config = _config(home, check_schema(schema), output=printed)
    with _in_this_process:
        step = command.upgrade if (last or "") >= (first or "") else command.downgrade
        step(config, f"{first or 'base'}:{last or 'base'}", sql=True)
    return printed.getvalue()


def check_server(version: int) -> None:
    """Refuse a server that lacks what the schema needs. Pure.

    version  as libpq gives it: 150004 is 15.4
    """
    if version < OLDEST_SERVER * 10000:
        raise SchemaMismatch(
            f"PostgreSQL {version // 10000}.{version % 10000} is too old: "
            f"pgqueue needs {OLDEST_SERVER} or newer, upgrade the server"
        )


def _take_turn(conn: psycopg.Connection, plan: _Plan) -> None:
    """Wait until no other process migrates this schema; the lock ends with the connection.

    Polled: a session blocked in pg_advisory_lock holds a snapshot, for which the other one's CREATE INDEX CONCURRENTLY
    would wait: a deadlock. Advisory locks are per database already, so the key is made of the schema's name.
    """
    key = int.from_bytes(hashlib.sha256(f"pgqueue migrate {plan.schema}".encode()).digest()[:8], "big", signed=True)
    deadline = time.monotonic() + TURN.total_seconds()
    pause = 0.05
    while not _first_value(conn.execute("select pg_try_advisory_lock(%s)", [key]).fetchall()):
        if time.monotonic() > deadline:
            raise MigrationError(f"another migration of schema {plan.schema!r} has been running for {TURN}: see to it")
        if pause == 0.05:
            plan.tell("another migration is running, waiting for it")
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(pause * 2, 1)


def _create_schema(conn: psycopg.Connection, plan: _Plan) -> None:
    # IF NOT EXISTS alone asks for the right to create schemas even when there is nothing to create.
    if _first_value(conn.execute("select to_regnamespace(%s)::text", [f'"{plan.schema}"']).fetchall()) is None:
        try:
            conn.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(plan.schema)))
        except errors.InsufficientPrivilege as error:
            raise MigrationError(
                f"role {conn.info.user!r} may not create schema {plan.schema!r} in database {conn.info.dbname!r}: let "
                f'its owner run `create schema "{plan.schema}" authorization "{conn.info.user}"`, then migrate again'
            ) from error


def _move(conn: psycopg.Connection, plan: _Plan) -> None:
    """Try until the target is reached; what one try has finished the next doesn't repeat."""
    for tries in range(1, TRIES + 1):
        try:
            return _run_alembic(conn, plan)
        except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
            blockers = _blockers(conn, plan.schema)
            if tries == TRIES:
                raise MigrationError(
                    f"schema {plan.schema!r}: no lock within {plan.lock_timeout} in {TRIES} tries. "
                    f"In the way: {blockers}. End those transactions or migrate at a quieter time; nothing is half done"
                ) from error
            pause = plan.lock_timeout.total_seconds() * 2 ** (tries - 2) * random.uniform(0.5, 1)
            plan.tell(f"waiting {pause:.1f} s, then trying again: {blockers}")
            time.sleep(pause)
        except psycopg.Error as error:
            raise MigrationError(f"schema {plan.schema!r}: {str(error).strip()}") from error


def _run_alembic(guard: psycopg.Connection, plan: _Plan) -> None:
    from alembic import command  # lazy
    from sqlalchemy import NullPool, create_engine, exc

    engine = create_engine("postgresql+psycopg://", creator=lambda: _for_alembic(plan.dsn), poolclass=NullPool)
    try:
        with engine.connect() as connection:
            current = _recorded(guard, plan)
            step = command.upgrade if (plan.target or "") >= (current or "") else command.downgrade
            step(_config(plan.scripts, plan.schema, connection=connection, plan=plan), plan.target or "base")
    except exc.DBAPIError as error:
        raise (error.orig or error) from None  # its text repeats the whole SQL file
    _rewrite_comment(guard, plan)


def _connect(dsn: str) -> psycopg.Connection:
    return connect_direct(dsn, role="migrate", settings={"search_path": "pg_catalog"})


def _for_alembic(dsn: str) -> psycopg.Connection:
    conn = _connect(dsn)
    conn.autocommit = False
    return conn


def _config(
    scripts: Path,
    schema: str,
    *,
    output: StringIO | None = None,
    connection: Connection | None = None,
    plan: _Plan | None = None,
) -> Config:
    """Alembic's configuration, made here so that no ini file is needed."""
    from alembic.config import Config  # lazy

    config = Config(output_buffer=output, stdout=StringIO())
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.attributes["schema"] = schema
    if plan is not None:
        config.attributes["connection"] = connection
        config.attributes["lock_timeout"] = plan.lock_timeout
        config.attributes["on_version"] = [lambda version: plan.tell(f"schema is at {version or 'base'}")]
    return config


def _recorded(conn: psycopg.Connection, plan: _Plan) -> str | None:
    """The version as Alembic's table has it.

    raises  SchemaMismatch if this release doesn't know it
    """
    table = sql.Identifier(plan.schema, "schema_version")
    if _first_value(conn.execute("select to_regclass(%s)::text", [table.as_string(conn)]).fetchall()) is None:
        return None
    found = conn.execute(sql.SQL("select version_num from {}").format(table)).fetchall()
    current = _first_value(found)
    if current is not None and current not in _revisions(plan.scripts):
        raise SchemaMismatch(
            f"schema {plan.schema!r} is at version {current}, which this release doesn't know: "
            "run `pip install --upgrade pgqueue-jobs`"
        )
    return current


def _rewrite_comment(conn: psycopg.Connection, plan: _Plan) -> None:
    """Comments are lost by `pg_dump --no-comments`; without it the version gate would never open again."""
    if _current(conn, plan.schema) != plan.target:
        text = None if plan.target is None else f"version {plan.target}"
        table = sql.Identifier(plan.schema, "schema_version")
        conn.execute(sql.SQL("comment on table {} is {}").format(table, sql.Literal(text)))


def _blockers(conn: psycopg.Connection, schema: str) -> str:
    found = conn.execute(_BLOCKERS, [f'"{schema}"']).fetchall()
    lines = [
        f"pid {pid} ({user}, {application}, {state}, transaction open for {age} s: {query})"
        for pid, user, application, state, age, query in found
    ]
    return "; ".join(lines) or "nobody any more"


def _current(conn: psycopg.Connection, schema: str) -> str | None:
    version = installed_version(schema)
    return version.decode(conn.execute(version.sql, version.params).fetchall())


def _first_value(rows: Sequence[Row]) -> str | None:
    value = rows[0][0] if rows else None
    return None if value is None or value is False else str(value)


def _resolve(target: str, scripts: Path) -> str | None:
    known = _revisions(scripts)
    if target == "base":
        return None
    if target == "head":
        return known[-1]
    if target not in known:
        raise ConfigError(f"schema version {target!r} is unknown: use head, base or one of {', '.join(known)}")
    return target


def _revisions(scripts: Path) -> list[str]:
    names = (_REVISION_FILE.fullmatch(each.name) for each in (scripts / "versions").iterdir())
    return sorted(name[1] for name in names if name)


def _scripts() -> Path:
    """Where the migrations are: in the installed package, or in the repository of an editable install."""
    package = Path(__file__).parents[1]
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def _say_nothing(line: str) -> None:
    pass
