"""Claim: waking sleeping workers costs those who enqueue almost nothing, however many they are."""

from __future__ import annotations

import contextlib
from functools import partial

import psycopg

from benchmarks.harness import Bench, use, wait_until_completed
from benchmarks.processes import python, say, told, worker
from benchmarks.report import Figure, Report, interleave

BAR = 0.75
MANY = 32
SHAPES = {1: (1, 1), 8: (4, 2), MANY: (8, 4)}  # producers -> processes, threads in each
SHIPPED, SILENT, LOUD = "as shipped", "no NOTIFY", "NOTIFY every time"
BODIES = {SILENT: "''", LOUD: "pg_notify('pgqueue.ready', queue_name)::text"}
REPLACE = "create or replace function pgqueue.wake(queue_name text) returns text language sql return {}"


def measure(bench: Bench) -> Report:
    bench.announce("wake", 3)
    report = Report(
        "wake",
        "1, 8 and 32 producers (in 1, 4 and 8 processes) that enqueue single jobs and commit, while a worker that was"
        " idle takes them, in a database that has been in use; beside the same with a pgqueue.wake() that does nothing,"
        " so that the worker looks every two seconds only, and with one that always notifies.",
    )
    ways = [(count, way) for count in SHAPES for way in (SHIPPED, SILENT)] + [(MANY, LOUD)]
    runs = interleave(bench.rounds, {(count, way): partial(_rate, bench, count, way) for count, way in ways})
    rates = {key: Figure(samples, "jobs/s") for key, samples in runs.items()}
    report.figures |= {f"{count} producers, {way}": figure for (count, way), figure in rates.items()}
    for count in SHAPES:
        ratio = rates[count, SHIPPED].over(rates[count, SILENT])
        report.at_least(f"Enqueuing by {count} at once runs at {{}} of the rate without NOTIFY", ratio, BAR)
    loud = rates[MANY, LOUD].over(rates[MANY, SILENT])
    report.tell(f"With a NOTIFY in every transaction of {MANY} it would be {{}}", loud)
    return report


def _rate(bench: Bench, count: int, way: str) -> float:
    """Jobs a second that were committed."""
    seconds = bench.sized(5, 2)
    processes, threads = SHAPES[count]
    with bench.database() as dsn, contextlib.ExitStack() as stack:
        if way in BODIES:
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute(REPLACE.format(BODIES[way]).encode())
        before = use(dsn)
        stack.enter_context(worker(dsn))
        wait_until_completed(dsn, before, within=60)
        producers = [stack.enter_context(python("producer", dsn, str(threads), str(seconds))) for _ in range(processes)]
        for producer in producers:
            told(producer, "ready")
        for producer in producers:
            say(producer)
        return sum(int(told(producer)) for producer in producers) / seconds
