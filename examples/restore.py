"""What a backup is for: check its archive as a routine, and fill empty tables from it.

    export PGQUEUE_DSN=postgresql:///app
    pgqueue enqueue verify '{"directory": "monday"}' -A examples.restore:q
    pgqueue enqueue restore '{"directory": "monday", "schema": "public", "dsn": "dbname=copy"}' -A examples.restore:q
    pgqueue worker -A examples.restore:q

The archive is one of examples/backup.py, whose jobs this worker runs too. Make the tables yourself, and triggers and
foreign keys when the rows are there. Nothing is loaded unless the whole archive is as its manifest says. Each table is
a step and a transaction of its own: however the job is interrupted, by kill -9 too, a table has all its rows or none.
Sequences that belong to a column go on after its highest value.

A step that is committed in another database may run again, if the worker is killed before that is remembered. So it
looks first: a table that has exactly the archive's rows is done; one that has others is an error, and stays as it is.
"""

from __future__ import annotations

from pathlib import Path

import psycopg
from psycopg import sql

from examples.archive import CHUNK, Part, Tally, check_file, feed, path_of, read_manifest
from examples.backup import columns_of, connected, exactly, names, q, read, table_query
from pgqueue import Context, Discard, Retry


@q.task(queue="backup", retry=Retry(max_attempts=10))
def verify(ctx: Context, directory: str) -> int:
    """Compare an archive with its manifest; says how many rows it has."""
    return sum(part.stamp.rows for part in checked(ctx, Path(directory)))


@q.task(queue="backup", retry=Retry(max_attempts=10), checkpoint_every=2)
def restore(ctx: Context, directory: str, schema: str, *, dsn: str | None = None) -> int:
    """Fill the tables of a schema; says how many rows they have."""
    parts = checked(ctx, Path(directory))
    with connected(ctx, dsn) as conn:
        for part in parts:
            ctx.progress("restoring", table=part.table)
            ctx.step(f"restore {part.table}", fill, ctx, conn, Path(directory), schema, part)
    return sum(part.stamp.rows for part in parts)


def checked(ctx: Context, home: Path) -> list[Part]:
    """The parts of an archive, each file a step."""
    parts = read_manifest(home)
    for part in parts:
        ctx.progress("verifying", table=part.table)
        ctx.step(f"check {part.table}", check_file, ctx, home, part)
    return parts


def fill(ctx: Context, conn: psycopg.Connection, home: Path, schema: str, part: Part) -> None:
    """All rows of a table, or none."""
    columns_of(conn, schema, part.table)  # is there such a table?
    table = sql.Identifier(schema, part.table)
    with exactly(conn):
        conn.execute(sql.SQL("lock table {} in exclusive mode").format(table))
        if conn.execute(sql.SQL("select from only {} limit 1").format(table)).fetchone() is None:
            into = sql.SQL("copy {} ({}) from stdin").format(table, names(part.columns))
            with path_of(home, part.table).open("rb") as file, conn.cursor().copy(into) as copy:
                feed(ctx, lambda: file.read(CHUNK), copy.write)
        tally = Tally()
        read(ctx, conn, table_query(schema, part), tally.add)
        if tally.stamp != part.stamp:
            raise Discard(f"{schema}.{part.table} has {tally.stamp}, the archive {part.stamp}: was the table empty?")
        for column in part.columns:
            advance_sequence(conn, table, column)


def advance_sequence(conn: psycopg.Connection, table: sql.Identifier, column: str) -> None:
    """The next value of a serial or identity column is one that no row has."""
    query = "select pg_get_serial_sequence(%s, %s)"
    (sequence,) = conn.execute(query, [table.as_string(conn), column]).fetchone() or (None,)
    if sequence is not None:
        highest = sql.SQL("select setval({}, max({})) from {} having max({}) is not null")
        name = sql.Identifier(column)
        conn.execute(highest.format(sequence, name, table, name))
