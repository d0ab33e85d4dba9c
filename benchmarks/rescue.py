"""Claim: the job of a worker that was killed starts on another one soon after the lease has run out."""

from __future__ import annotations

from benchmarks.app import hold
from benchmarks.harness import Bench
from benchmarks.processes import stamps, worker
from benchmarks.report import Figure, Report
from pgqueue import PgQueue

SLACK = 2.0
FOR_EVER = 3600.0


def measure(bench: Bench) -> Report:
    lease = float(bench.sized(15, 6))
    report = Report(
        "rescue",
        f"A worker with a lease of {lease:.0f} s runs a job and gets kill -9; from then until the job is entered in"
        " another worker, idle so far.",
    )
    figure = Figure([_rescued_after(bench, lease) for _ in range(bench.rounds)], "s", 1)
    report.figures["kill -9 to the next start"] = figure
    report.at_most("A killed worker's job runs elsewhere after {}", figure, lease + SLACK)
    return report


def _rescued_after(bench: Bench, lease: float) -> float:
    with bench.database() as dsn, stamps() as file, worker(dsn, lease=lease, stamps=file, hold=FOR_EVER) as victim:
        q = PgQueue(dsn)
        job = q.enqueue(hold.name, {"number": 1})
        file.wait(1, within=30)
        with worker(dsn, lease=lease, stamps=file):
            killed = victim.kill()
            entered = file.wait(2, within=4 * lease)[1][1]
            q.wait(job.id, timeout=30)
        q.close()
        return entered - killed
