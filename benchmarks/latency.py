"""Claim: an idle worker starts a job within milliseconds of its commit."""

from __future__ import annotations

import time
from functools import partial

import psycopg

from benchmarks.app import stamp
from benchmarks.harness import Bench
from benchmarks.processes import stamps, worker
from benchmarks.report import Figure, Report, interleave
from pgqueue.bench.figures import percentile

P50_BAR_MS = 3.0
P99_BAR_MS = 10.0
SLOW, FAST = 20, 500  # jobs a second
WARM_UP = 20


def measure(bench: Bench) -> Report:
    report = Report(
        "latency",
        "From the return of COMMIT in the enqueuing process to the first line of the task in a worker process, by the"
        " clock they share; one worker, async task, one producer at an even pace.",
    )
    counts = {SLOW: bench.sized(300, 60), FAST: bench.sized(2000, 500)}
    runs = interleave(bench.rounds, {pace: partial(_latencies, bench, pace, counts[pace]) for pace in (SLOW, FAST)})
    for pace, rounds in runs.items():
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)):
            samples = [percentile(latencies, share) for latencies, _ in rounds]
            report.figures[f"{pace}/s, {name}"] = Figure(samples, "ms", 2)
        report.figures[f"{pace}/s, really enqueued"] = Figure([rate for _, rate in rounds], "/s", 1)
    report.at_most(
        f"An idle worker picks half of the jobs at {SLOW}/s up within {{}}",
        report.figures[f"{SLOW}/s, p50"],
        P50_BAR_MS,
    )
    report.at_most("99 of 100 within {}", report.figures[f"{SLOW}/s, p99"], P99_BAR_MS)
    report.tell(f"At {FAST}/s half are picked up within {{}}", report.figures[f"{FAST}/s, p50"])
    report.tell("99 of 100 within {}", report.figures[f"{FAST}/s, p99"])
    return report


def _latencies(bench: Bench, pace: int, count: int) -> tuple[list[float], float]:
    """Milliseconds per job, and the pace that was kept."""
    with bench.database() as dsn, stamps() as file, worker(dsn, stamps=file), psycopg.connect(dsn) as conn:
        _enqueue(conn, SLOW, WARM_UP, first=-WARM_UP)
        file.wait(WARM_UP, within=30)
        time.sleep(1)
        committed = _enqueue(conn, pace, count, first=0)
        entered = dict(file.wait(WARM_UP + count, within=60))
    kept = (count - 1) / (committed[count - 1] - committed[0])
    return [(entered[number] - instant) * 1000 for number, instant in committed.items()], kept


def _enqueue(conn: psycopg.Connection[tuple[object, ...]], pace: int, count: int, *, first: int) -> dict[int, float]:
    """Enqueue at an even pace; number -> when its COMMIT had been acknowledged."""
    committed = {}
    started = time.monotonic()
    for place in range(count):
        time.sleep(max(0.0, started + place / pace - time.monotonic()))
        stamp.using(conn).enqueue(first + place)
        conn.commit()
        committed[first + place] = time.monotonic()
    return committed
