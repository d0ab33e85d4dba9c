"""Claim: with producers and a worker at work at once, jobs start soon after they were enqueued."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from functools import partial

import psycopg

from benchmarks.harness import Bench, completed, use, wait_until_completed
from benchmarks.processes import python, say, stamps, told, worker
from benchmarks.report import Figure, Report, interleave
from pgqueue.bench.figures import percentile

PACE = 2_000  # jobs a second
KEPT_BAR = 0.95
FULL = 0
PROCESSES, THREADS = 4, 4
SHARES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
WITHIN = 120.0
FINISHED = """
select percentile_cont(array[0.5, 0.9, 0.99, 1]) within group (order by extract(epoch from finalized_at - created_at))
from pgqueue.job where kind = 'stamp' and status = 1
"""


@dataclass(frozen=True, slots=True)
class Mix:
    """One run. Rates in jobs a second, latencies in ms: to the task's first line, to its end.

    late  seconds from the end of enqueuing to the last completion
    """

    enqueued: float
    completed: float
    entered: dict[str, float]
    finished: dict[str, float]
    late: float


def measure(bench: Bench) -> Report:
    seconds = float(bench.sized(20, 5))
    bench.announce("mixed", 2.5)
    report = Report(
        "mixed",
        f"{PROCESSES * THREADS} producers ({PROCESSES} processes) enqueue single jobs for {seconds:.0f} s, {PACE:,} a"
        " second and as fast as they can, while one worker process runs them, in a"
        " database that has been in use. Entered: from the call of enqueue, COMMIT"
        " included, to the first line of the task. Finished: from insertion to the task's end, as the job's row says.",
    )
    runs = interleave(bench.rounds, {pace: partial(_mix, bench, pace, seconds) for pace in (PACE, FULL)})
    for pace, samples in runs.items():
        name = f"{pace:,}/s" if pace else "full speed"
        report.figures[f"{name}: enqueued"] = Figure([each.enqueued for each in samples], "jobs/s")
        report.figures[f"{name}: completed meanwhile"] = Figure([each.completed for each in samples], "jobs/s")
        for what, _ in SHARES:
            report.figures[f"{name}: entered, {what}"] = Figure([each.entered[what] for each in samples], "ms", 1)
        for what, _ in SHARES:
            report.figures[f"{name}: finished, {what}"] = Figure([each.finished[what] for each in samples], "ms", 1)
        report.figures[f"{name}: last completion after the last enqueue"] = Figure(
            [each.late for each in samples], "s", 2
        )
    kept = Figure([each.enqueued / PACE for each in runs[PACE]], digits=2)
    report.at_least(
        f"The producers keep {{}} of the {PACE:,} jobs a second asked for, beside the worker", kept, KEPT_BAR
    )
    for name, what in ((f"{PACE:,}/s", "Of these"), ("full speed", "At full speed")):
        report.tell(f"{what} half are entered within {{}}", report.figures[f"{name}: entered, p50"])
        report.tell("99 of 100 within {}", report.figures[f"{name}: entered, p99"])
    return report


def _mix(bench: Bench, pace: int, seconds: float) -> Mix:
    with bench.database() as dsn, stamps() as file, contextlib.ExitStack() as stack:
        before = use(dsn)
        stack.enter_context(worker(dsn, stamps=file))
        conn = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        wait_until_completed(dsn, before, within=WITHIN)
        arguments = (dsn, str(THREADS), str(seconds), str(pace / PROCESSES))
        producers = [stack.enter_context(python("paced", *arguments)) for _ in range(PROCESSES)]
        for producer in producers:
            told(producer, "ready")
        started = time.monotonic()
        for producer in producers:
            say(producer)
        count = sum(int(told(producer)) for producer in producers)
        ended, done = time.monotonic(), completed(conn) - before
        last = wait_until_completed(dsn, before + count, within=WITHIN)
        latencies = [(entered - sent / 1e9) * 1000 for sent, entered in file.read()]
        (finished,) = conn.execute(FINISHED).fetchone() or ([],)
    return Mix(
        enqueued=count / (ended - started),
        completed=done / (ended - started),
        entered={name: percentile(latencies, share) for name, share in SHARES},
        finished={name: value * 1000 for (name, _), value in zip(SHARES, finished, strict=True)},
        late=max(0.0, last - ended),
    )
