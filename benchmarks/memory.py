"""Claim: a worker's memory is small and does not grow with the jobs it has run."""

from __future__ import annotations

import time

import psycopg

from benchmarks.harness import POLL, Bench, completed, fill
from benchmarks.machine import resident_mb
from benchmarks.processes import WorkerProcess, worker
from benchmarks.report import Figure, Report

BAR_MB = 90.0
GROWTH_BAR = 1.05
SAMPLES = 10
WITHIN = 600.0


def measure(bench: Bench) -> Report:
    count = bench.sized(2_000_000, 200_000)
    bench.announce("memory", 1.5)
    report = Report(
        "memory", f"Resident memory of one worker process while it completes {count:,} no-op jobs, {SAMPLES} samples."
    )
    with bench.database() as dsn:
        fill(dsn, count)
        with worker(dsn) as process:
            samples = _sampled(dsn, process, count)
    if not samples:
        report.method += " Not measured: there is no /proc here."
        return report
    for number, sample in enumerate(samples, 1):
        report.figures[f"after {number * count // SAMPLES:,} jobs"] = Figure([sample], "MB", 1)
    report.at_most("A worker takes at most {} of memory", Figure([max(samples)], "MB", 1), BAR_MB)
    growth = Figure([samples[-1] / samples[0]], digits=2)
    report.at_most(f"After {count:,} jobs it takes {{}} times what it took after a tenth of them", growth, GROWTH_BAR)
    return report


def _sampled(dsn: str, process: WorkerProcess, count: int) -> list[float]:
    """Resident megabytes after each tenth of the jobs."""
    samples: list[float] = []
    deadline = time.monotonic() + WITHIN
    with psycopg.connect(dsn, autocommit=True) as conn:
        for number in range(1, SAMPLES + 1):
            while (done := completed(conn)) < number * count // SAMPLES:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{done} of {count} jobs completed after {WITHIN:.0f} s")
                time.sleep(POLL)
            sample = resident_mb(process.pid)
            if sample is not None:
                samples.append(sample)
    return samples
