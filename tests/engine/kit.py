"""What the engine's tests share: a worker for the length of a block, and waiting for what a session does."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Unpack

import psycopg

from pgqueue import Job, PgQueue, Worker
from pgqueue.worker import WorkerSettings

PATIENCE = 30.0  # seconds after which something that should have happened has not


@contextlib.contextmanager
def working(
    q: PgQueue, queues: Mapping[str, int] | Sequence[str] | str = "default", **settings: Unpack[WorkerSettings]
) -> Iterator[Worker]:
    """A worker in a thread, closed at the end; it gives what still runs then two seconds."""
    settings.setdefault("grace", 2.0)
    worker = q.worker(queues, **settings)
    worker.start()
    try:
        yield worker
    finally:
        worker.close()


def done(q: PgQueue, *ids: int, timeout: float = PATIENCE) -> list[Job]:
    """These jobs, once they are final."""
    return [q.wait(id, timeout) for id in ids]


def run_alone(q: PgQueue, id: int) -> Job:
    """The job, once a worker for the queue `default` has brought it to its end."""
    with working(q):
        return q.wait(id, PATIENCE)


def awaited(event: threading.Event) -> None:
    """Wait until `event` is set; a failure if it never is."""
    assert event.wait(PATIENCE), "what the test waits for did not happen"


def value(conn: psycopg.Connection, query: str, *params: object) -> object:
    """The one value that `query` gives."""
    row = conn.execute(query, params).fetchone()
    return None if row is None else row[0]


def until(conn: psycopg.Connection, query: str, *params: object) -> object:
    """What `query` gives, once that is neither null nor false. The server does the waiting."""
    pause = threading.Event()
    for _ in range(int(PATIENCE * 100)):
        found = value(conn, query, *params)
        if found:
            return found
        pause.wait(0.01)
    raise AssertionError(f"never true: {query} {params}")


def errors_of(job: Job) -> list[tuple[object, object]]:
    """The type and the message of each attempt that failed."""
    return [(error["type"], error["message"]) for error in job.errors]
