"""Import a CSV file exactly once per line, however often the worker dies; lines that can't be imported are kept apart.

    export PGQUEUE_DSN=postgresql:///app
    pgqueue migrate
    python -m examples.import_orders orders.csv     # makes the tables, and a file to try it with
    pgqueue enqueue import_orders '{"path": "orders.csv"}' -A examples.import_orders:q
    pgqueue worker -A examples.import_orders:q

The file is one that the worker sees, in UTF-8, a record per line, the first line with the names of the columns. It is
read once to count and to hash it, then batch by batch: orders, rejects and the cursor (byte offset and line) are one
transaction, so after any interruption, kill -9 too, the job goes on behind the last line that is in the database. A
file that is another one by then is an error. The last transaction has the import's own row and completes the job.

A bad line costs no other: it goes to `order_reject` with its number and the reason. Values are checked here first; what
only the database can know (an id that is there already) fails inside a savepoint.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import sys
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path

import psycopg

from pgqueue import Context, Discard, PgQueue, Retry

q = PgQueue()

COLUMNS = ["id", "customer", "amount", "placed_at"]
TABLES = """
create table if not exists orders (
  id bigint primary key, customer text not null, amount numeric(12, 2) not null, placed_at timestamptz not null);
create table if not exists order_reject (
  job_id bigint, line int, reason text not null, content text not null, primary key (job_id, line));
create table if not exists order_import (
  job_id bigint primary key, path text not null, sha256 text not null, imported int not null, rejected int not null,
  finished_at timestamptz not null default now())"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The file as it was when the import began."""

    lines: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The cursor: everything before it is in the database."""

    offset: int = 0
    line: int = 0
    imported: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class Order:
    """A line that is an order."""

    id: int
    customer: str
    amount: Decimal
    placed_at: datetime


@q.task(queue="import", retry=Retry(max_attempts=10))
def import_orders(ctx: Context, path: str, *, batch: int = 500) -> None:
    """Import a file; the job's result says how many lines were imported and rejected."""
    source = ctx.step("inspect", inspect, path)

    def load(place: Place | None) -> Place:
        if place is None:
            place = Place()
        elif inspect(path) != source:
            raise Discard(f"{path} was changed since the import began: {place.imported} orders of it are imported")
        with Path(path).open("rb") as file, ctx.connection() as conn:
            file.seek(place.offset)
            while lines := list(islice(file, batch)):
                ctx.raise_if_cancelled()
                with conn.transaction():
                    place = store(conn, ctx.job.id, place, lines)
                    ctx.set_step_cursor_tx(conn, place)
                ctx.progress("importing", line=place.line, lines=source.lines, rejected=place.rejected)
        return place

    place = ctx.step_cursor("load", load, type=Place)
    if (place.offset, place.line) != (source.size_bytes, source.lines):
        raise Discard(f"{path} was changed while it was imported: it ended at line {place.line} of {source.lines}")
    with ctx.connection() as conn, conn.transaction():
        conn.execute(
            "insert into order_import (job_id, path, sha256, imported, rejected) values (%s, %s, %s, %s, %s)",
            [ctx.job.id, path, source.sha256, place.imported, place.rejected],
        )
        ctx.complete_tx(conn, result=asdict(place))


def inspect(path: str) -> Source:
    """A step: what file is it?"""
    lines, size, digest = 0, 0, hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            if (first := file.readline().decode("utf-8-sig", "replace").strip()) != ",".join(COLUMNS):
                raise Discard(f"{path}: its first line has to be {','.join(COLUMNS)}, it is {first!r:.100}")
            file.seek(0)
            for line in file:
                lines, size = lines + 1, size + len(line)
                digest.update(line)
    except OSError as error:
        raise Discard(f"can't read {path}: {error.strerror}") from error
    return Source(lines=lines, size_bytes=size, sha256=digest.hexdigest())


def store(conn: psycopg.Connection, job: int, place: Place, lines: list[bytes]) -> Place:
    """Bring one batch into the tables; the place after it."""
    orders: dict[int, Order] = {}
    rejects: dict[int, str] = {}
    for number, line in enumerate(lines, start=place.line + 1):
        if number > 1:  # not the names of the columns
            try:
                orders[number] = parse(line)
            except ValueError as error:
                rejects[number] = str(error)
    rejects |= insert(conn, orders)
    with conn.cursor() as cursor:
        cursor.executemany(
            "insert into order_reject (job_id, line, reason, content) values (%s, %s, %s, %s)",
            [[job, number, rejects[number], text_of(lines[number - place.line - 1])] for number in sorted(rejects)],
        )
    return Place(
        offset=place.offset + sum(map(len, lines)),
        line=place.line + len(lines),
        imported=place.imported + len(orders.keys() - rejects.keys()),
        rejected=place.rejected + len(rejects),
    )


def parse(line: bytes) -> Order:
    """The order in a line. Raises ValueError that says what is wrong."""
    try:
        (values,) = csv.reader([line.decode().rstrip("\r\n")], strict=True)
    except csv.Error as error:
        raise ValueError(f"no CSV: {error}") from error
    if len(values) != len(COLUMNS):
        raise ValueError(f"{len(values)} values instead of {len(COLUMNS)}")
    id, customer, amount, placed_at = values
    if not re.fullmatch(r"\d{1,10}(\.\d\d?)?", amount):  # the table would round others, and not tell
        raise ValueError(f"no amount: {amount!r}")
    order = Order(int(id), customer, Decimal(amount), datetime.fromisoformat(placed_at))
    if order.placed_at.tzinfo is None:
        raise ValueError(f"placed_at without a time zone: {placed_at!r}")
    return order


def insert(conn: psycopg.Connection, orders: dict[int, Order]) -> dict[int, str]:
    """All at once; if the database refuses one, each by itself. The lines that it refused, and why."""
    query = "insert into orders (id, customer, amount, placed_at) values (%s, %s, %s, %s)"
    rows = {number: [each.id, each.customer, each.amount, each.placed_at] for number, each in orders.items()}
    try:
        with conn.transaction(), conn.cursor() as cursor:
            cursor.executemany(query, list(rows.values()))
        return {}
    except (psycopg.DataError, psycopg.IntegrityError):
        refused = {}
    for number, row in rows.items():
        try:
            with conn.transaction():
                conn.execute(query, row)
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            refused[number] = " ".join(
                filter(None, [error.diag.message_primary or str(error), error.diag.message_detail])
            )
    return refused


def text_of(line: bytes) -> str:
    """The line as PostgreSQL can keep it."""
    return line.decode(errors="replace").rstrip("\r\n").replace("\0", "\ufffd")


if __name__ == "__main__":
    with psycopg.connect(os.environ["PGQUEUE_DSN"]) as conn:
        conn.execute(TABLES)
    with Path(sys.argv[1]).open("w", encoding="utf-8") as file:
        print(*COLUMNS, sep=",", file=file)
        for n in range(1, 5001):
            print(
                n, f"customer {n % 97}", "a lot" if n % 1000 == 0 else n / 100, "2026-01-31T12:00Z", sep=",", file=file
            )
