"""Many producers: `python -m benchmarks.producer DSN THREADS SECONDS`.

Each thread enqueues single jobs on a connection of its own, one transaction each. The program says "ready", waits for
a line, and prints how many jobs were committed in that time.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

import psycopg

from benchmarks.app import noop


def produce(dsn: str, ready: threading.Barrier, seconds: float, counts: list[int]) -> None:
    """Enqueue one by one for that long once all are ready."""
    count = 0
    with psycopg.connect(dsn) as conn:
        ready.wait()
        ready.wait()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            noop.using(conn).enqueue(count, "send_email", 1)
            conn.commit()
            count += 1
    counts.append(count)


def run(threads: int, produce: Callable[[threading.Barrier, list[int]], None]) -> None:
    """Let so many produce at once, when we are told to, and print what they have counted."""
    counts: list[int] = []
    ready = threading.Barrier(threads + 1)
    producers = [threading.Thread(target=produce, args=(ready, counts)) for _ in range(threads)]
    for producer in producers:
        producer.start()
    ready.wait()
    print("ready", flush=True)
    sys.stdin.readline()
    ready.wait()
    for producer in producers:
        producer.join()
    print(sum(counts), flush=True)


def main(dsn: str, threads: int, seconds: float) -> None:
    run(threads, lambda ready, counts: produce(dsn, ready, seconds, counts))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
