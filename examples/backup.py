"""A resumable backup: the tables of a schema go into a directory, are verified there, and compared with the database.

    export PGQUEUE_DSN=postgresql:///app
    pgqueue migrate
    pgqueue enqueue backup '{"schema": "public", "directory": "monday"}' -A examples.backup:q
    pgqueue worker -A examples.backup:q

Each table is a file (examples/archive.py has the format, examples/restore.py reads it again) and a step, copied by
batches in the order of its primary key; the cursor says how much of the file is true. An error, a cancellation, a
time-out or a deploy costs the batch that was under way; kill -9 also what is newer than `checkpoint_every`. What the
file has beyond the cursor is cut off, and what it has before is checked. A table without a primary key is copied in one
go, so an interruption costs all of it.

It is no snapshot: each batch has what is committed at its time. A row that changes while the job runs is archived as it
was or as it is, one whose key changes twice or not at all: where that matters, use pg_dump. Only rows are archived: no
DDL, no views, no large objects. `dsn` names another database than the queue's; arguments are kept with the job, so
leave passwords to ~/.pgpass. `compare` reads every table once more, to say which ones have other rows by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
from psycopg import sql

from examples.archive import NOTHING, Part, PartWriter, Stamp, Tally, check_file, feed, owned, write_manifest
from pgqueue import Context, Discard, PgQueue, Retry

q = PgQueue(pool_size=10)  # each job keeps a connection, and a worker runs ten at once

# What the text of a value depends on, so that it means the same where it is restored; and no limit of time.
EXACTLY = """set local client_encoding to utf8; set local datestyle to iso; set local intervalstyle to postgres;
set local timezone to utc; set local extra_float_digits to 1; set local bytea_output to hex;
set local search_path to ''; set local lc_monetary to 'C'; set local row_security to off;
set local statement_timeout to 0"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What became of a backup.

    changed  tables whose rows in the database were others at the end
    """

    tables: int
    rows: int
    changed: list[str]


@q.task(queue="backup", retry=Retry(max_attempts=10), checkpoint_every=2)
def backup(
    ctx: Context, schema: str, directory: str, *, dsn: str | None = None, batch: int = 10_000, compare: bool = True
) -> Summary:
    """Archive all tables of a schema."""
    parts: list[Part] = []
    changed: list[str] = []
    with owned(ctx, Path(directory)) as home, connected(ctx, dsn) as conn:
        for table in ctx.step("tables", begin, conn, home, schema):
            parts.append(copy_table(ctx, conn, home, schema, table, batch))
        ctx.step("manifest", write_manifest, home, parts)
        for part in parts:
            ctx.progress("verifying", table=part.table)
            ctx.step(f"check {part.table}", check_file, ctx, home, part)
            if compare and ctx.step(f"compare {part.table}", stamp_of, ctx, conn, schema, part) != part.stamp:
                changed.append(part.table)
    return Summary(tables=len(parts), rows=sum(part.stamp.rows for part in parts), changed=changed)


def begin(conn: psycopg.Connection, home: Path, schema: str) -> list[str]:
    """The plain tables, partitions among them. It is remembered: a table that is made later isn't in the archive."""
    (home / "manifest.json").unlink(missing_ok=True)  # of the same job, which was told to start over
    query = """select relname::text from pg_class c join pg_namespace n on n.oid = relnamespace
               where nspname = %s and relkind = 'r' order by relname"""
    if not (tables := [name for (name,) in conn.execute(query, [schema])]):
        raise Discard(f"database {conn.info.dbname} has no table in a schema {schema!r}: is the name right?")
    return tables


def copy_table(ctx: Context, conn: psycopg.Connection, home: Path, schema: str, table: str, batch: int) -> Part:
    """The step that archives a table. Its cursor is of the type of its result."""

    def copy(cursor: Part | None) -> Part:
        columns, key = columns_of(conn, schema, table)
        part = cursor or Part(table=table, columns=columns, key=key, last=None, stamp=NOTHING)
        if (part.columns, part.key) != (columns, key):
            raise Discard(f"{schema}.{table} got other columns since the last attempt: start over with --restart")
        with PartWriter(home, table, part.stamp) as file:
            while True:
                with exactly(conn):  # each batch in a transaction of its own: none is open for long
                    last = last_of_batch(conn, schema, part, batch)
                    read(ctx, conn, batch_query(schema, part, last), file.write)
                part = replace(part, last=last, stamp=file.sync())
                if last is None:
                    return part
                ctx.set_cursor(part)
                ctx.progress("copying", table=table, rows=part.stamp.rows)

    return ctx.step_cursor(f"copy {table}", copy, type=Part)


def stamp_of(ctx: Context, conn: psycopg.Connection, schema: str, part: Part) -> Stamp:
    """What an archive of the table would contain now."""
    tally = Tally()
    with exactly(conn):
        read(ctx, conn, table_query(schema, part), tally.add)
    return tally.stamp


def read(ctx: Context, conn: psycopg.Connection, query: sql.Composed, write: Callable[[bytes], object]) -> None:
    with conn.cursor().copy(query) as copy:
        feed(ctx, copy.read, write)


def table_query(schema: str, part: Part) -> sql.Composed:
    return sql.SQL("copy {} ({}) to stdout").format(sql.Identifier(schema, part.table), names(part.columns))


def batch_query(schema: str, part: Part, last: list[str] | None) -> sql.Composed:
    """The rows after the cursor, up to the one that will be the next cursor; or all that are left."""
    if not part.key:
        return table_query(schema, part)
    return sql.SQL("copy (select {} from only {} where {} and {} order by {}) to stdout").format(
        names(part.columns), sql.Identifier(schema, part.table), key_is(">", part, part.last), key_is("<=", part, last),
        names(part.key),
    )  # fmt: skip


def last_of_batch(conn: psycopg.Connection, schema: str, part: Part, batch: int) -> list[str] | None:
    """The primary key of the batch's last row; None if there are fewer rows, or no key."""
    if not part.key:
        return None
    keys = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in part.key)
    query = sql.SQL("select array[{}] from only {} where {} order by {} offset {} limit 1").format(
        keys, sql.Identifier(schema, part.table), key_is(">", part, part.last), names(part.key), batch - 1
    )
    row = conn.execute(query).fetchone()
    return None if row is None else list(row[0])


def key_is(operator: str, part: Part, values: list[str] | None) -> sql.Composable:
    """A comparison of rows, as the index has them. The literals are untyped: they become what the columns are."""
    if values is None:
        return sql.SQL("true")
    literals = sql.SQL(", ").join(map(sql.Literal, values))
    return sql.SQL("({}) {} ({})").format(names(part.key), sql.SQL(operator), literals)


def names(columns: list[str]) -> sql.Composable:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def columns_of(conn: psycopg.Connection, schema: str, table: str) -> tuple[list[str], list[str]]:
    """The columns that aren't generated, and those of the primary key in its order."""
    query = """select array_agg(attname::text order by attnum) filter (where attgenerated = ''),
                      array_agg(attname::text order by array_position(conkey, attnum))
                        filter (where attnum = any(conkey))
               from pg_class c join pg_namespace n on n.oid = relnamespace join pg_attribute on attrelid = c.oid
               left join pg_constraint on conrelid = c.oid and contype = 'p'
               where nspname = %s and relname = %s and relkind = 'r' and attnum > 0 and not attisdropped"""
    columns, key = conn.execute(query, [schema, table]).fetchone() or (None, None)
    if not columns:
        raise Discard(f"database {conn.info.dbname} has no table {schema}.{table} with columns")
    return columns, key or []


def connected(ctx: Context, dsn: str | None) -> AbstractContextManager[psycopg.Connection]:
    return ctx.connection() if dsn is None else psycopg.connect(dsn, autocommit=True)


@contextmanager
def exactly(conn: psycopg.Connection) -> Iterator[None]:
    """A transaction in which the text of values is exact."""
    with conn.transaction():
        conn.execute(EXACTLY)
        yield
