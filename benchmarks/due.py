"""How soon a flood of jobs that come due at one instant is done, and what an ordinary job notices of it."""

from __future__ import annotations

import datetime as dt
import time

import psycopg

from benchmarks.app import noop, stamp
from benchmarks.harness import FILL_BATCH, Bench, completed, wait_until_completed
from benchmarks.processes import Stamps, stamps, worker
from benchmarks.report import Figure, Report
from pgqueue.bench.figures import percentile

SAME, OTHER = "default", "aside"
PACE = 100  # ordinary jobs a second, one in each queue after the other
BEFORE = 5.0  # seconds from the last preparation to the instant, at least
WITHIN = 120.0


def measure(bench: Bench) -> Report:
    count = bench.sized(50_000, 10_000)
    report = Report(
        "due",
        f"{count:,} no-op jobs scheduled for the same instant, one worker process that is idle until then: from that"
        f" instant until all are completed. Meanwhile {PACE} jobs a second are enqueued, half of them into another"
        " queue that the same worker serves: from COMMIT to their first line.",
    )
    samples: dict[str, list[float]] = {}
    for _ in range(bench.rounds):
        for name, value in _flood(bench, count).items():
            samples.setdefault(name, []).append(value)
    for name, values in samples.items():
        what, _, unit = name.rpartition(", ")
        report.figures[what] = Figure(values, unit, 2)
    report.tell(f"{count:,} jobs that come due at once are done after {{}}", report.figures["all completed"])
    for name, queue in (("of the same queue", SAME), ("of another queue of that worker", OTHER)):
        report.tell(f"Meanwhile half of the jobs {name} start within {{}}", report.figures[f"{queue}: p50"])
        report.tell("99 of 100 within {}", report.figures[f"{queue}: p99"])
    return report


def _flood(bench: Bench, count: int) -> dict[str, float]:
    with bench.database() as dsn, stamps() as file:
        with psycopg.connect(dsn, autocommit=True) as conn:
            instant = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=BEFORE + count / 8_000)
            for first in range(0, count, FILL_BATCH):
                rows = [(number, "send_email", 1) for number in range(first, first + FILL_BATCH)]
                noop.using(conn, scheduled_at=instant).enqueue_many(rows)
            conn.execute("analyze")
        with worker(dsn, queues=f"{SAME}=20,{OTHER}=20", stamps=file), psycopg.connect(dsn) as conn:
            left = (instant - dt.datetime.now(dt.UTC)).total_seconds()
            if left < 0:
                raise RuntimeError(f"the jobs came due {-left:.1f} s before the worker was ready: nothing to measure")
            time.sleep(left)
            return _watch(dsn, conn, file, count)


def _watch(dsn: str, conn: psycopg.Connection[tuple[object, ...]], file: Stamps, count: int) -> dict[str, float]:
    started = time.monotonic()
    committed: list[float] = []
    first: float | None = None
    while (done := completed(conn)) < count or len(committed) < 2:
        if done and first is None:
            first = time.monotonic() - started
        stamp.using(conn, queue=(SAME, OTHER)[len(committed) % 2]).enqueue(len(committed))
        conn.commit()
        committed.append(time.monotonic())
        if committed[-1] - started > WITHIN:
            raise TimeoutError(f"{done} of {count} jobs were completed after {WITHIN:.0f} s")
        time.sleep(max(0.0, started + len(committed) / PACE - time.monotonic()))
    last = wait_until_completed(dsn, count + len(committed), within=WITHIN)
    entered = dict(file.wait(len(committed), within=30))
    figures = {
        "first completed, s": first if first is not None else last - started,
        "all completed, s": last - started,
    }
    for place, queue in enumerate((SAME, OTHER)):
        latencies = [(entered[number] - committed[number]) * 1000 for number in range(place, len(committed), 2)]
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
            figures[f"{queue}: {name}, ms"] = percentile(latencies, share)
    return figures
