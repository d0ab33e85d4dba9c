"""An application whose jobs run locally; `-A tests.local.deeds:q`. Its database is the one that PGQUEUE_DSN says.

Each job writes into its `home`: `log` gets a line for each step that ran. What it finds in `fault` happens to it at
step 3, so that the same arguments fail once and succeed the next time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path

import psycopg

from pgqueue import AsyncContext, Cancel, Context, Discard, PgQueue, Retry, RetryAfter, Snooze, current_context

q = PgQueue()

STEPS = range(1, 6)
FAULTS = {
    "error": ValueError("no such order"),
    "snooze": Snooze(90),
    "cancel": Cancel("not wanted"),
    "discard": Discard("no use"),
    "later": RetryAfter(7),
    "exit": SystemExit(3),
}


def log(home: str, text: object) -> object:
    """A line in the job's log, which is its proof that a step ran."""
    with (Path(home) / "log").open("a") as file:
        print(text, file=file)
    return text


def fault_of(home: str) -> str:
    path = Path(home) / "fault"
    return path.read_text() if path.exists() else ""


def meet(home: str) -> None:
    """What `fault` says, unless it is for the task itself."""
    fault = fault_of(home)
    if fault in FAULTS:
        raise FAULTS[fault]
    if fault == "die":
        os.kill(os.getpid(), signal.SIGKILL)


def hang(ctx: Context) -> None:
    """Until it is asked to end."""
    print("hanging", flush=True)
    pause = threading.Event()
    while True:
        ctx.raise_if_cancelled()
        pause.wait(0.01)


def _walk(ctx: Context, home: str) -> list[object]:
    found = []
    for number in STEPS:
        if number == 3:
            meet(home)
            if fault_of(home) == "hang":
                hang(ctx)
            if fault_of(home) == "stuck":
                print("hanging", flush=True)
                threading.Event().wait()
        found.append(ctx.step(f"step {number}", log, home, number))
        ctx.save(reached=number)
    log(home, f"{ctx.mode} {ctx.attempt}")
    return found


@q.task(retry=Retry(max_attempts=2))
def threaded(ctx: Context, home: str) -> list[object]:
    return _walk(ctx, home)


@q.task(executor="process", retry=Retry(max_attempts=2))
def process(ctx: Context, home: str) -> list[object]:
    return _walk(ctx, home)


@q.task(retry=Retry(max_attempts=2))
async def coroutine(ctx: AsyncContext, home: str) -> list[object]:
    found: list[object] = []
    for number in STEPS:
        if number == 3:
            meet(home)
            if fault_of(home) == "hang":
                print("hanging", flush=True)
                await asyncio.Event().wait()
            while fault_of(home) == "stuck":
                print("hanging", flush=True)
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    continue
        found.append(await ctx.step(f"step {number}", log, home, number))
        ctx.save(reached=number)
    log(home, f"{ctx.mode} {ctx.attempt}")
    return found


@q.task(timeout=0.2)
def timed(ctx: Context, home: str) -> list[object]:
    return _walk(ctx, home)


@q.task
def counting(ctx: Context, upto: int) -> int:
    """A cursor step that lasts until it is killed, the first time."""

    def count(cursor: int | None) -> int:
        print(f"from {cursor}", flush=True)
        reached = cursor or 0
        pause = threading.Event()
        while cursor is None or reached < upto:
            reached += 1
            ctx.set_cursor(reached)
            pause.wait(0.001)
        return reached

    return ctx.step_cursor("count", count)


@q.task
async def blocking(ctx: AsyncContext, upto: int) -> None:
    """A coroutine that never lets the event loop on."""
    pause = threading.Event()
    for number in range(upto):
        await ctx.step(str(number), pause.wait, 0.01)
    print("still blocking", flush=True)
    threading.Event().wait()


@q.task
def wide(ctx: Context, home: str) -> int:
    """Its result is short, but long if each number has a line of its own."""
    found = ctx.step("numbers", numbers)
    meet(home)
    return int(str(ctx.step("next", log, home, len(found))))


def numbers() -> list[list[int]]:
    return [[0] * 20_000 for _ in range(5)]


@q.task(executor="process")
def remote_pid() -> int:
    return os.getpid()


# --- *_tx -------------------------------------------------------------------------------------------------------------


def insert(conn: psycopg.Connection, text: str) -> None:
    conn.execute("insert into deed values (%s)", [text])


def _mark(ctx: Context, home: str) -> str:
    """Marks a step in a transaction, which ends as `fault` says."""
    fault = fault_of(home)

    def work() -> None:
        with ctx.connection() as conn, conn.transaction():
            insert(conn, "step")
            if fault == "savepoint":
                with conn.transaction(force_rollback=True):
                    ctx.set_step_tx(conn, result="lost")
            else:
                ctx.set_step_tx(conn, result="kept")
            if fault == "rollback":
                raise ValueError("rolled back")
        if fault == "killed after commit":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hang after commit":
            hang(ctx)

    ctx.step("work", work)
    meet(home)
    return "done"


@q.task
def marking(ctx: Context, home: str) -> str:
    return _mark(ctx, home)


@q.task(executor="process")
def marking_remotely(ctx: Context, home: str) -> str:
    return _mark(ctx, home)


@q.task
async def marking_coroutine(ctx: AsyncContext, home: str) -> str:
    async def work() -> None:
        async with ctx.connection() as conn, conn.transaction():
            await conn.execute("insert into deed values ('step')")
            await ctx.set_step_tx(conn)

    await ctx.step("work", work)
    meet(home)
    return "done"


@q.task
def loading(ctx: Context, home: str, upto: int) -> int:
    """A cursor that commits with each row."""

    def load(cursor: int | None) -> int:
        reached = cursor or 0
        while reached < upto:
            reached += 1
            with ctx.connection() as conn, conn.transaction():
                insert(conn, str(reached))
                ctx.set_step_cursor_tx(conn, reached)
            if reached == upto // 2:
                meet(home)
        return reached

    return ctx.step_cursor("load", load)


@q.task
def completing(ctx: Context, home: str) -> str:
    """Completes itself in a transaction, which ends as `fault` says."""
    ctx.save(seen=True)
    with ctx.connection() as conn, conn.transaction():
        insert(conn, "all")
        ctx.complete_tx(conn, result={"all": 1})
        if fault_of(home) == "rollback":
            raise psycopg.Rollback
    meet(home)
    return "what it returns doesn't matter"


leaked: list[psycopg.Connection] = []


@q.task
def leaking(dsn: str) -> None:
    """Completes itself in a transaction that it forgets."""
    ctx = current_context()
    assert isinstance(ctx, Context)
    conn = psycopg.connect(dsn)
    leaked.append(conn)
    insert(conn, "leaked")
    ctx.complete_tx(conn, result="late")


@q.task
def elsewhere(ctx: Context, dsn: str) -> None:
    """Marks a step in a database that isn't the queue's."""

    def work() -> None:
        with psycopg.connect(dsn) as conn:
            ctx.set_step_tx(conn)

    ctx.step("work", work)


@q.task
def slow_commit(ctx: Context) -> None:
    """Its COMMIT lasts as long as a lock that somebody else has."""

    def work() -> None:
        with ctx.connection() as conn, conn.transaction():
            insert(conn, "slow")
            ctx.set_step_tx(conn)
            print("committing", flush=True)

    ctx.step("work", work)
