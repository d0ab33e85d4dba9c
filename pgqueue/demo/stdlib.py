"""The application that `pgqueue demo` runs: an index of this Python's standard library, in tables of its own.

Guarantees: a file's row and its jobs commit together; every task may run again after a crash, for it replaces what an
earlier attempt wrote, or (the import) goes on behind it. A file that Python itself can't parse is a real failure.
Never: runs the code that it reads. Workers take its jobs with `pgqueue worker -A pgqueue.demo.stdlib:q`.
"""

from __future__ import annotations

import ast
import asyncio
import os
import sysconfig
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pgqueue import AsyncContext, Context, PgQueue, Retry, Snooze
from pgqueue.db.pool import Connection

SCHEMA = """
create schema app;
create table app.package (
  name text primary key,
  files integer, lines bigint, words bigint, classes integer, functions integer
);
create table app.file (
  path text primary key,
  package text not null,
  words integer,
  lines integer
);
create table app.symbol (
  path text not null references app.file on delete cascade,
  line integer not null,
  sort text not null check (sort in ('class', 'function', 'import')),
  name text not null
);
create index on app.symbol (path);
create table app.rolled_back (path text primary key);
comment on table app.rolled_back is 'Files whose transaction was rolled back, noted afterwards: the check on the rest';
create table app.import (total integer not null);
create table app.character (
  n integer not null,
  code text not null,
  name text not null,
  worker text not null,
  written bigint generated always as identity
);
comment on table app.character is 'Nothing in it is unique, on purpose: a row that came twice would be there twice';
comment on column app.character.written is 'From a sequence, which no rollback sets back';
"""
LIBRARY = Path(sysconfig.get_path("stdlib"))
TOP = "(top level)"
BATCH = 100  # characters in one transaction
_ADD_CHARACTER = "insert into app.character (n, code, name, worker) values (%s, %s, %s, %s)"
_NOT_OURS = {"site-packages", "dist-packages", "__pycache__"}
_CODES = range(0x2000)  # the alphabets; behind them stand punctuation, symbols and Chinese

q = PgQueue()  # the database that PGQUEUE_DSN names; pgqueue demo sets it for its workers


class Symbol(NamedTuple):
    """A class, a function or an imported module, and the line where it stands."""

    line: int
    sort: str
    name: str


def source_files() -> list[str]:
    """The paths of the library's source files, relative to it, sorted."""
    found = []
    for directory, below, names in os.walk(LIBRARY):
        below[:] = [each for each in below if each not in _NOT_OURS]
        found += [Path(directory, each).relative_to(LIBRARY).as_posix() for each in names if each.endswith(".py")]
    return sorted(found)


def package_of(path: str) -> str:
    """The top package that a file belongs to."""
    first, inside, _ = path.partition("/")
    return first if inside else TOP


def add_file(conn: Connection, path: str) -> None:
    """Insert a file's row and its two jobs, in the transaction open on `conn`; nothing if it is there already."""
    added = conn.execute(
        "insert into app.file (path, package) values (%s, %s) on conflict do nothing", [path, package_of(path)]
    )
    if added.rowcount:
        index_file.using(conn).enqueue(path)
        count_words.using(conn).enqueue(path)


def add_package(conn: Connection, name: str) -> None:
    """Insert a package's row and the job that sums it up, in the open transaction; nothing if it is there already."""
    if conn.execute("insert into app.package (name) values (%s) on conflict do nothing", [name]).rowcount:
        summarise_package.using(conn, delay=2).enqueue(name)


def characters() -> list[tuple[str, str]]:
    """The code points that have a name, in order, with their names: ("U+0020", "SPACE"), ..."""
    names = ((point, unicodedata.name(chr(point), "")) for point in _CODES)
    return [(f"U+{point:04X}", name) for point, name in names if name]


def add_import(conn: Connection) -> int:
    """Insert the job that imports the characters, in the open transaction, if there is none yet; its id."""
    there = conn.execute("select id from pgqueue.jobs where kind = 'import_characters'").fetchall()
    return int(there[0][0]) if there else import_characters.using(conn).enqueue().id


@q.task(queue="index", retry=Retry(max_attempts=3, base=1, cap=1))
def index_file(ctx: Context, path: str) -> dict[str, int]:
    """Parse a file and store its classes, functions and imports. A plain function: it runs in a thread."""
    source = (LIBRARY / path).read_bytes()
    tree = ast.parse(source, filename=path)  # raises SyntaxError: this attempt has failed
    symbols = list(find_symbols(tree))
    lines = source.count(b"\n")
    with ctx.connection() as conn, conn.transaction():
        conn.execute("update app.file set lines = %s where path = %s", [lines, path])
        conn.execute("delete from app.symbol where path = %s", [path])  # of an earlier attempt
        conn.execute(
            "insert into app.symbol select %s, * from unnest(%s::integer[], %s::text[], %s::text[])",
            [path, *(list(column) for column in zip(*symbols, strict=True))] if symbols else [path, [], [], []],
        )
    return {"lines": lines, "symbols": len(symbols)}


@q.task(queue="words", retry=Retry(max_attempts=3, base=1, cap=1))
async def count_words(ctx: AsyncContext, path: str) -> int:
    """Count a file's words. A coroutine: it runs on the worker's event loop."""
    source = await asyncio.to_thread((LIBRARY / path).read_bytes)
    words = len(source.split())
    async with ctx.connection() as conn:
        await conn.execute("update app.file set words = %s where path = %s", [words, path])
    return words


@q.task(queue="summary", priority=10)
def summarise_package(ctx: Context, name: str) -> dict[str, int]:
    """Sum up a package once no job of its files is left; until then snooze: no failure, and it costs no attempt."""
    with ctx.connection() as conn:
        left = conn.execute(
            """select from pgqueue.live_jobs j join app.file f on f.path = j.args ->> 'path'
               where f.package = %s limit 1""",
            [name],
        ).rowcount
        if left:
            raise Snooze(2)
        conn.execute(
            """update app.package p
               set (files, lines, words) = (
                     select count(*), sum(f.lines), sum(f.words) from app.file f where f.package = p.name),
                   (classes, functions) = (
                     select count(*) filter (where s.sort = 'class'), count(*) filter (where s.sort = 'function')
                     from app.file f join app.symbol s using (path) where f.package = p.name)
               where p.name = %s""",
            [name],
        )
        row = conn.execute("select files, classes, functions from app.package where name = %s", [name]).fetchall()[0]
    return dict(zip(("files", "classes", "functions"), row, strict=True))


@q.task(queue="import", retry=Retry(max_attempts=3, base=1, cap=1))
def import_characters(ctx: Context) -> dict[str, int]:
    """Insert every character with its name. Whenever its worker is killed, another goes on behind the last commit."""
    found = characters()

    def prepare() -> None:
        with ctx.connection() as conn, conn.transaction():
            conn.execute("insert into app.import (total) values (%s)", [len(found)])
            ctx.set_step_tx(conn)  # once in the life of the job, whoever is killed

    def load(last: int | None) -> None:
        worker = _worker_of(ctx)
        for begin in range(last or 0, len(found), BATCH):
            with ctx.connection() as conn, conn.transaction():
                for n, character in enumerate(found[begin : begin + BATCH], start=begin + 1):
                    conn.execute(_ADD_CHARACTER, [n, *character, worker])
                ctx.set_step_cursor_tx(conn, n)  # commits with the rows, or not at all

    ctx.step("prepare", prepare)
    ctx.step_cursor("load", load)
    return {"rows": len(found)}


def _worker_of(ctx: Context) -> str:
    with ctx.connection() as conn:
        return str(conn.execute("select worker from pgqueue.jobs where id = %s", [ctx.job.id]).fetchall()[0][0])


def find_symbols(tree: ast.Module) -> Iterator[Symbol]:
    """Every class, function and import, wherever it stands, in no particular order. Pure."""
    found: list[ast.AST] = [tree]
    while found:
        node = found.pop()
        match node:
            case ast.ClassDef():
                yield Symbol(node.lineno, "class", node.name)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield Symbol(node.lineno, "function", node.name)
            case ast.Import():
                yield from (Symbol(node.lineno, "import", each.name) for each in node.names)
            case ast.ImportFrom():
                yield Symbol(node.lineno, "import", "." * node.level + (node.module or ""))
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):  # statements only: expressions hold none
            below = getattr(node, block, ())
            if isinstance(below, list):  # of a lambda or an `a if b else c` it is an expression
                found.extend(below)
