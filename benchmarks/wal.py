"""Claim: a job writes little WAL from its enqueuing to its completion."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

import psycopg

from benchmarks.app import letter
from benchmarks.harness import FILL_BATCH, Bench, wait_until_completed
from benchmarks.processes import worker
from benchmarks.report import Figure, Report, interleave

BULK_BAR, SINGLE_BAR = 550.0, 850.0
TEXT = "x" * 87  # {"text":"..."} is 100 bytes of JSON
BULK, SINGLE, LIVE = "10,000 at once", "one by one", "one by one, a worker taking them as they come"
WITHIN = 180.0
PRESENT = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"


def measure(bench: Bench) -> Report:
    many, few = bench.sized(100_000, 20_000), bench.sized(20_000, 2_000)
    bench.announce("wal", 2.5)
    report = Report(
        "wal",
        "Bytes of WAL of the whole server (nothing else runs on it) from before the first enqueue until the last job is"
        f" completed, per job of 100 bytes of arguments; {many:,} jobs, {few:,} one by one. A checkpoint is made right"
        " before and none meanwhile, and the tables are new: of full-page images only a few pages' are in it. What"
        " autovacuum writes is.",
    )
    runs = interleave(
        bench.rounds,
        {
            BULK: partial(_bytes, bench, many, _bulk, idle=False),
            SINGLE: partial(_bytes, bench, few, _singly, idle=False),
            LIVE: partial(_bytes, bench, few, _singly, idle=True),
        },
    )
    figures = {name: Figure(samples, "bytes/job") for name, samples in runs.items()}
    report.figures |= figures
    report.at_most("A job that is enqueued in bulk writes {} of WAL in its life", figures[BULK], BULK_BAR)
    report.at_most("One that is enqueued singly, and waits among others, {}", figures[SINGLE], SINGLE_BAR)
    report.at_most("One that is enqueued singly, and taken at once, {}", figures[LIVE], SINGLE_BAR)
    return report


def _bytes(bench: Bench, count: int, enqueue: Callable[[str, int], None], *, idle: bool) -> float:
    """`idle`: a worker waits for the jobs; else it is started when all are there."""
    with bench.database() as dsn, psycopg.connect(dsn, autocommit=True) as conn, contextlib.ExitStack() as stack:
        if idle:
            stack.enter_context(worker(dsn))
        conn.execute("checkpoint")
        before = _wal(conn)
        enqueue(dsn, count)
        if not idle:
            stack.enter_context(worker(dsn))
        wait_until_completed(dsn, count, within=WITHIN)
        return (_wal(conn) - before) / count


def _bulk(dsn: str, count: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        for _ in range(0, count, FILL_BATCH):
            letter.using(conn).enqueue_many([(TEXT,)] * FILL_BATCH)


def _singly(dsn: str, count: int) -> None:
    with psycopg.connect(dsn) as conn:
        for _ in range(count):
            letter.using(conn).enqueue(TEXT)
            conn.commit()


def _wal(conn: psycopg.Connection[tuple[object, ...]]) -> int:
    row = conn.execute(PRESENT).fetchone()
    assert row is not None
    return int(str(row[0]))
