"""Claim: jobs are enqueued in bulk at a rate of the same order as COPY."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import msgspec
import psycopg
from psycopg.rows import TupleRow

from benchmarks.app import noop
from benchmarks.enqueue_one import BARE
from benchmarks.harness import Bench
from benchmarks.report import Figure, Report, interleave

BAR = 60_000
BATCHES = (1_000, 10_000)

Connection = psycopg.Connection[TupleRow]


def measure(bench: Bench) -> Report:
    count = bench.sized(100_000, 20_000)
    report = Report(
        "enqueue many",
        f"{count:,} jobs of three arguments by enqueue_many, a transaction per batch, checked and encoded meanwhile;"
        " beside COPY of the same JSON into a bare table of the same columns.",
    )
    measurements: dict[tuple[str, int], Callable[[], float]] = {
        (way, batch): _rate_of(bench, copy, batch, count)
        for batch in BATCHES
        for way, copy in (("enqueue_many", False), ("COPY", True))
    }
    rates = {key: Figure(samples, "jobs/s") for key, samples in interleave(bench.rounds, measurements).items()}
    report.figures |= {f"{way}, batches of {batch:,}": figure for (way, batch), figure in rates.items()}
    for batch in BATCHES:
        figure = rates["enqueue_many", batch]
        report.at_least(f"enqueue_many takes {{}} in batches of {batch:,}", figure, BAR)
        report.tell("That is {} of the rate of COPY", figure.over(rates["COPY", batch]))
    return report


def _rate_of(bench: Bench, copy: bool, batch: int, count: int) -> Callable[[], float]:
    def run() -> float:
        with bench.database() as dsn, psycopg.connect(dsn) as conn:
            conn.execute(BARE)
            conn.commit()
            conn.autocommit = True
            conn.execute("checkpoint")
            started = time.perf_counter()
            for rows in _batches(count, batch):
                if copy:
                    _copy(conn, rows)
                else:
                    noop.using(conn).enqueue_many(rows)
            return count / (time.perf_counter() - started)

    return run


def _batches(count: int, size: int) -> Iterator[list[tuple[int, str, int]]]:
    for first in range(0, count, size):
        yield [(number, "send_email", 1) for number in range(first, min(first + size, count))]


def _copy(conn: Connection, rows: list[tuple[int, str, int]]) -> None:
    with conn.cursor() as cursor, cursor.copy("copy bare (kind, queue, args) from stdin") as copy:
        for user_id, action, n in rows:
            args = msgspec.json.encode({"user_id": user_id, "action": action, "n": n}).decode()
            copy.write_row(("noop", "default", args))
