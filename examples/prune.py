"""Delete old rows in small transactions, gently: a batch, a pause, and exactly how many it was in the end.

    export PGQUEUE_DSN=postgresql:///app
    pgqueue migrate
    pgqueue enqueue prune '{"table": "event", "days": 90}' -A examples.prune:q
    pgqueue worker -A examples.prune:q

With `"dry_run": true` it only counts. The table is in the queue's own database and wants an index on `column`. Each
batch commits together with the cursor, which has the number of rows deleted so far: whatever interrupts the job, kill
-9 too, what was deleted was counted, and what was counted was deleted. "Old" is decided once: a job that is stopped
for a week goes on with its first date. A row that was being changed when its batch was deleted may be left out then,
so a last pass looks again from the start. Deleting waits for rows that others have locked. For partitioned tables
drop partitions instead.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg
from psycopg import sql

from pgqueue import Context, Discard, PgQueue, Retry

q = PgQueue()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """The cursor.

    since  the newest time deleted in this pass, as text: nothing before it is left to see; None at the start of a pass
    """

    rows: int = 0
    since: str | None = None


@q.task(queue="prune", retry=Retry(max_attempts=10))
def prune(
    ctx: Context,
    table: str,
    days: float,
    *,
    column: str = "created_at",
    schema: str = "public",
    batch: int = 1000,
    pause: float = 0.1,
    dry_run: bool = False,
) -> int:
    """Delete the rows whose `column` is more than so many days ago; says how many, or with `dry_run` how many it would.

    pause  seconds after each batch
    """
    if not (0 <= days <= 100_000 and batch >= 1 and pause >= 0):
        raise Discard(f"days {days}, batch {batch}, pause {pause}: 0 to 100,000 days, a row at least, no less than 0 s")
    with ctx.connection() as conn:
        old = find_column(conn, schema, table, column)
    cutoff = ctx.step("cutoff", days_ago, days)
    if dry_run:
        return count(ctx, old, cutoff)

    def delete(cursor: Pruned | None) -> int:
        pruned = cursor or Pruned()
        while True:
            ctx.raise_if_cancelled()
            with ctx.connection() as conn, conn.transaction():
                rows, newest = delete_batch(conn, old, cutoff, since=pruned.since, batch=batch)
                if not rows and pruned.since is None:  # a whole pass that found nothing
                    return pruned.rows
                pruned = Pruned(rows=pruned.rows + rows, since=newest)
                ctx.set_step_cursor_tx(conn, pruned)
            ctx.progress("deleting", rows=pruned.rows, since=pruned.since, cutoff=cutoff)
            rest(ctx, pause)

    # The step itself isn't remembered as done, since its cursor is in transactions: an attempt that comes after the
    # last batch runs it again, finds nothing more, and gets the number from the cursor.
    return ctx.step_cursor("delete", delete, type=Pruned)


def days_ago(days: float) -> datetime:
    """A step, so that all attempts mean the same time."""
    return datetime.now(UTC) - timedelta(days=days)


@dataclass(frozen=True, slots=True)
class Column:
    """The column that says how old a row is."""

    table: sql.Identifier
    name: sql.Identifier
    type: str


def delete_batch(
    conn: psycopg.Connection, old: Column, cutoff: datetime, *, since: str | None, batch: int
) -> tuple[int, str | None]:
    """Delete the oldest rows. Beginning at `since` spares the index's dead entries of those before."""
    query = sql.SQL(
        """with gone as (
             delete from only {table} where ctid = any(array(
               select ctid from only {table}
               where {column} < %(cutoff)s and {column} >= cast(coalesce(%(since)s, '-infinity') as {type})
               order by {column} limit %(batch)s))
             returning {column})
           select count(*), max({column})::text from gone"""
    ).format(table=old.table, column=old.name, type=sql.SQL(old.type))
    row = conn.execute(query, {"since": since, "cutoff": cutoff, "batch": batch}).fetchone()
    return row or (0, None)


def count(ctx: Context, old: Column, cutoff: datetime) -> int:
    """How many rows are old now."""
    query = sql.SQL("select count(*) from only {} where {} < %s").format(old.table, old.name)
    with ctx.connection() as conn, conn.transaction():
        conn.execute("set local statement_timeout = 0")
        (rows,) = conn.execute(query, [cutoff]).fetchone() or (0,)
    return int(rows)


def find_column(conn: psycopg.Connection, schema: str, table: str, name: str) -> Column:
    """Say what is wrong before anything is done, and once: trying again wouldn't help."""
    query = """select format_type(atttypid, null) from pg_attribute
               join pg_class c on c.oid = attrelid join pg_namespace n on n.oid = relnamespace
               where nspname = %s and relname = %s and attname = %s and relkind = 'r' and not attisdropped"""
    (type,) = conn.execute(query, [schema, table, name]).fetchone() or (None,)
    if type not in ("date", "timestamp without time zone", "timestamp with time zone"):
        found = "there is none" if type is None else f"it is of type {type}"
        raise Discard(f"prune wants a plain table {schema}.{table} with a time or date in {name!r}: {found}")
    return Column(sql.Identifier(schema, table), sql.Identifier(name), type)


def rest(ctx: Context, seconds: float) -> None:
    """Let others have the disk; but a worker that is told to stop isn't kept waiting."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        ctx.raise_if_cancelled()
        time.sleep(min(left, 0.1))
