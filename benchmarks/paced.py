"""Producers that keep a pace: `python -m benchmarks.paced DSN THREADS SECONDS RATE`.

Each thread enqueues single `stamp` jobs on a connection of its own, one transaction each, at its share of RATE jobs a
second (0: as fast as it can). A job's number is the moment at which its producer began to enqueue it. The program says
"ready", waits for a line, and prints how many jobs were committed.

Never: makes up for a pause by a burst of more than a second's jobs.
"""

from __future__ import annotations

import sys
import threading
import time

import psycopg

from benchmarks.app import stamp
from benchmarks.producer import run

BURST = 1.0  # seconds


def produce(dsn: str, ready: threading.Barrier, seconds: float, pace: float, counts: list[int]) -> None:
    """Enqueue one by one for that long once all are ready."""
    count = 0
    with psycopg.connect(dsn) as conn:
        ready.wait()
        ready.wait()
        due = time.monotonic()
        deadline = due + seconds
        while (now := time.monotonic()) < deadline:
            if pace:
                due = max(due + 1 / pace, now - BURST)
                time.sleep(max(0.0, due - now))
            stamp.using(conn).enqueue(time.monotonic_ns())
            conn.commit()
            count += 1
    counts.append(count)


def main(dsn: str, threads: int, seconds: float, rate: float) -> None:
    run(threads, lambda ready, counts: produce(dsn, ready, seconds, rate / threads, counts))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
