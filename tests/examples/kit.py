"""What the examples' tests share: a job run to its end, broken off in the middle, or its worker killed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg

from pgqueue import Job, PgQueue, State
from tests.cli.commands import REPOSITORY, Running
from tests.engine.kit import PATIENCE, until, working

LEASE = "6"  # seconds, the least there is
# A session that waits for what the test has locked.
WAITS = "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' limit 1"


def ended(q: PgQueue, id: int) -> Job:
    """The job, once a worker has brought it to its end."""
    with working(q, sorted({task.queue for task in q.tasks})):
        return q.wait(id, PATIENCE)


def refusal(q: PgQueue, id: int) -> str:
    """Why a job gave up: by one error, at its first attempt."""
    job = ended(q, id)
    assert job.state is State.DISCARDED, job
    (error,) = job.errors
    return str(error["message"])


@contextlib.contextmanager
def locked(dsn: str, query: str) -> Iterator[psycopg.Connection]:
    """A transaction that has executed `query` and holds what it locks until the end of the block."""
    with psycopg.connect(dsn) as conn:
        conn.execute(query)
        yield conn
        if not conn.closed:
            conn.rollback()


def grows(path: Path) -> None:
    """Wait until there is something in that file."""
    pause = threading.Event()
    for _ in range(int(PATIENCE * 100)):
        if path.exists() and path.stat().st_size:
            return
        pause.wait(0.01)
    raise AssertionError(f"there never was anything in {path}")


def broken_off(q: PgQueue, id: int, admin: psycopg.Connection) -> None:
    """Cut the connection of a job that waits for a lock, and leave it between two attempts."""
    session = until(admin, WAITS)
    q.pause(q.job(id).queue)
    admin.execute("select pg_terminate_backend(%s)", [session])
    until(admin, "select state = 'retryable' from pgqueue.jobs where id = %s", id)


def gone_on(q: PgQueue, id: int) -> Job:
    """The job's end, now that it may go on."""
    q.resume(q.job(id).queue)
    q.retry(id)
    return q.wait(id, PATIENCE)


def checkpoint(admin: psycopg.Connection, id: int) -> dict[str, dict[str, object]]:
    """What is stored of a job's steps."""
    row = admin.execute("select metadata -> 'pgqueue' from pgqueue.jobs where id = %s", [id]).fetchone()
    assert row is not None
    return row[0] or {}


@contextlib.contextmanager
def worker_of(example: str, dsn: str) -> Iterator[Running]:
    """A worker in a process of its own."""
    arguments = ["-A", f"examples.{example}:q", "--lease", LEASE, "--grace", "1"]
    with Running("worker", *arguments, dsn=dsn, cwd=REPOSITORY) as running:
        running.wait_for("takes from")
        yield running


def killed(worker: Running) -> None:
    """kill -9, and it is gone."""
    worker.process.kill()
    assert worker.process.wait() == -9
