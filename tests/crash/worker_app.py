"""The worker process of the crash tests: `python -m tests.crash.worker_app`, told by environment variables.

What its tasks do is written to a file that outlives any kill, one line `pid job attempt event` each.
"""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import psycopg

from pgqueue import AsyncContext, Context, PgQueue, Retry
from pgqueue.db import listen
from pgqueue.engine import claimer, heartbeat
from pgqueue.engine import worker as engine

q = PgQueue(os.environ["CRASH_DSN"])
ledger = os.open(os.environ["CRASH_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
gate = Path(os.environ["CRASH_LEDGER"] + ".open")  # while it is missing, `hold` and its kin go on

loop_gate = Path(os.environ["CRASH_LEDGER"] + ".unblock")


def note(ctx: Context | AsyncContext, event: str) -> None:
    os.write(ledger, f"{os.getpid()} {ctx.job.id} {ctx.attempt} {event}\n".encode())


@q.task
def quick(ctx: Context, n: int) -> None:
    note(ctx, "ran")


@q.task
async def aquick(ctx: AsyncContext, n: int) -> None:
    note(ctx, "ran")


@q.task
async def brief(ctx: AsyncContext, n: int) -> int | None:
    """A few milliseconds, now and then a result."""
    note(ctx, "begin")
    await asyncio.sleep(n % 7 / 1000)
    note(ctx, "ran")
    return n if n % 3 == 0 else None


@q.task
async def nap(ctx: AsyncContext, n: int) -> None:
    """Some tens of milliseconds: so few are claimed ahead that a death leaves few suspects behind."""
    note(ctx, "begin")
    await asyncio.sleep(n % 60 / 1000)
    note(ctx, "ran")


@q.task
def tnap(ctx: Context, n: int) -> None:
    """The same in a thread."""
    note(ctx, "begin")
    time.sleep(n % 60 / 1000)
    note(ctx, "ran")


@q.task(retry=Retry(max_attempts=10, base=1, cap=0.2))
def flaky(ctx: Context, n: int) -> None:
    """Fails at its first attempt."""
    note(ctx, "begin")
    time.sleep(0.02)
    if ctx.attempt == 1:
        raise OSError("at first")
    note(ctx, "ran")


@q.task
def hold(ctx: Context) -> str:
    """Runs until it is let go, or is asked to end."""
    note(ctx, "begin")
    while not gate.exists():
        if ctx.stop_requested or ctx.cancel_requested:
            note(ctx, "asked")
        try:
            ctx.raise_if_cancelled()
        except Exception:
            note(ctx, "interrupted")
            raise
        time.sleep(0.01)
    note(ctx, "ran")
    return "held"


@q.task
async def ahold(ctx: AsyncContext) -> str:
    """The same as a coroutine."""
    note(ctx, "begin")
    try:
        while not gate.exists():  # noqa: ASYNC110, ASYNC240 - opened by another process
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        note(ctx, "interrupted")
        raise
    note(ctx, "ran")
    return "held"


@q.task
def stubborn(ctx: Context) -> str:
    """Asks nobody."""
    note(ctx, "begin")
    while not gate.exists():
        time.sleep(0.01)
    note(ctx, "ran")
    return "held"


@q.task
async def hog(ctx: AsyncContext, seconds: float) -> str:
    """Stops the event loop."""
    note(ctx, "begin")
    time.sleep(seconds)  # noqa: ASYNC251 - the point of it
    note(ctx, "ran")
    return "woke up"


@q.task
async def ablock(ctx: AsyncContext) -> None:
    """Stops the event loop until the test lets it go."""
    note(ctx, "begin")
    while not loop_gate.exists():  # noqa: ASYNC240 - it blocks on purpose
        time.sleep(0.01)  # noqa: ASYNC251


@q.task
def imports(ctx: Context, upto: int) -> int:
    """A row and the mark that says so, in one transaction each."""
    note(ctx, "begin")

    def load(last: int | None) -> None:
        with psycopg.connect(os.environ["CRASH_DSN"]) as conn:
            for n in range((last or 0) + 1, upto + 1):
                conn.execute("insert into imported values (%s, %s)", [n, os.getpid()])
                ctx.set_step_cursor_tx(conn, n)
                conn.commit()
                time.sleep(0.001)

    ctx.step("once", note, ctx, "once")
    ctx.step_cursor("load", load)
    return upto


@q.task
def killer(ctx: Context) -> None:
    """Takes its process along."""
    note(ctx, "begin")
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed test run leaves no workers behind
    logging.basicConfig(level=logging.INFO, format="%(process)d %(asctime)s %(name)s %(levelname)s %(message)s")
    settings = json.loads(os.environ.get("CRASH_SETTINGS", "{}"))
    heartbeat.BEAT = settings.pop("beat", heartbeat.BEAT)
    listen.PING_EVERY = settings.pop("ping", listen.PING_EVERY)
    listen.ANSWER_WITHIN = settings.pop("answer", listen.ANSWER_WITHIN)
    claimer.AHEAD_SECONDS = settings.pop("ahead", claimer.AHEAD_SECONDS)
    engine.LOOKS = settings.pop("looks", engine.LOOKS)
    lease = settings.pop("lease", None)
    worker = q.worker(settings.pop("queues", {"default": 4}), **settings)
    if lease is not None:  # shorter than applications may choose: these tests have to wait for it
        worker._options = dataclasses.replace(worker._options, lease=lease, margin=lease / 3)
    worker.run()
    print("the end", flush=True)
