"""Claim: waking sleeping workers costs those who enqueue almost nothing, however many they are."""

from __future__ import annotations

import contextlib
import subprocess
from functools import partial

import psycopg

from benchmarks.harness import Bench
from benchmarks.processes import python, worker
from benchmarks.report import Figure, Report, interleave

PROCESSES, THREADS = 8, 4
BODIES = {"no NOTIFY": "''", "NOTIFY every time": "pg_notify('pgqueue.ready', queue_name)::text"}
REPLACE = "create or replace function pgqueue.wake(queue_name text) returns text language sql return {}"
SHIPPED = "as shipped"


def measure(bench: Bench) -> Report:
    report = Report(
        "wake",
        f"{PROCESSES * THREADS} producers ({PROCESSES} processes) that enqueue single jobs and commit, while a worker"
        " that was idle takes them; beside the same with a pgqueue.wake() that does nothing, and with one that always"
        " notifies.",
    )
    runs = interleave(bench.rounds, {name: partial(_rate, bench, name) for name in (SHIPPED, *BODIES)})
    rates = {name: Figure(samples, "jobs/s") for name, samples in runs.items()}
    report.figures |= rates
    report.tell(
        "Enqueuing by 32 at once runs at {} of the rate without NOTIFY", rates[SHIPPED].over(rates["no NOTIFY"])
    )
    report.tell(
        "With a NOTIFY in every transaction it would be {}", rates["NOTIFY every time"].over(rates["no NOTIFY"])
    )
    return report


def _rate(bench: Bench, variant: str) -> float:
    """Jobs a second that were committed."""
    seconds = bench.sized(5, 2)
    with bench.database() as dsn, contextlib.ExitStack() as stack:
        if variant in BODIES:
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute(REPLACE.format(BODIES[variant]).encode())
        stack.enter_context(worker(dsn))
        producers = [stack.enter_context(python("producer", dsn, str(THREADS), str(seconds))) for _ in range(PROCESSES)]
        for producer in producers:
            _expect(producer, "ready")
        for producer in producers:
            assert producer.stdin is not None
            producer.stdin.write("\n")
            producer.stdin.flush()
        return sum(int(_expect(producer)) for producer in producers) / seconds


def _expect(process: subprocess.Popen[str], line: str | None = None) -> str:
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    if not said or (line is not None and said != line):
        raise RuntimeError(f"a producer said {said!r} and ended")
    return said
