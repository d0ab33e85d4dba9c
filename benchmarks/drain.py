"""Claim: one worker process completes no-op jobs at a rate set by durable storage, even while an old transaction
pins the xmin horizon."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import psycopg

from benchmarks.app import noop, noop_in_thread
from benchmarks.harness import Bench, completed, fill, wait_until_completed
from benchmarks.processes import python, worker
from benchmarks.report import Figure, Report, interleave
from pgqueue import PgQueue
from pgqueue.tasks.task import Task

RATE_BAR = 30_000
FLOOR_BAR = 0.4
WITHIN = 180.0
PLAIN = "default=20"
SETTLE = 0.5  # seconds from a worker's readiness to the start

ASYNC, PINNED, THREADS, TWO = "async", "async, xmin pinned", "threads", "async, 2 processes"
FLOOR, FLOOR_PINNED = "floor", "floor, xmin pinned"


@dataclass(frozen=True, slots=True)
class Drain:
    """One drain: jobs a second, and processor microseconds per job in the workers and in the server."""

    rate: float
    client_us: float
    server_us: float


def measure(bench: Bench) -> Report:
    count = bench.sized(100_000, 20_000)
    report = Report(
        "drain",
        f"{count:,} no-op jobs, enqueued before. From q.resume(queue), for which idle workers wait, until all"
        " completions are seen committed (looked up every 5 ms); history is kept. The floor is the smallest loop that"
        " claims and durably completes (floor.py), in one process, from its first claim to its last commit.",
    )
    measurements: dict[str, Callable[[], Drain]] = {
        FLOOR: partial(_floor, bench, count),
        ASYNC: partial(filled_and_drained, bench, count),
        PINNED: partial(filled_and_drained, bench, count, pinned=True),
        FLOOR_PINNED: partial(_floor, bench, count, pinned=True),
        THREADS: partial(filled_and_drained, bench, count, noop_in_thread),
        TWO: partial(filled_and_drained, bench, count, workers=(PLAIN, PLAIN)),
    }
    _judge(report, interleave(bench.rounds, measurements))
    return report


def state(report: Report, drains: Mapping[str, list[Drain]]) -> dict[str, Figure]:
    """Put all figures of some drains into a report; returns the rates."""
    rates = {name: Figure([drain.rate for drain in samples], "jobs/s") for name, samples in drains.items()}
    report.figures |= rates
    for name, samples in drains.items():
        report.figures[f"{name}: processor, worker"] = Figure([drain.client_us for drain in samples], "µs/job", 1)
        if all(drain.server_us for drain in samples):
            report.figures[f"{name}: processor, server"] = Figure([drain.server_us for drain in samples], "µs/job", 1)
    return rates


def _judge(report: Report, drains: dict[str, list[Drain]]) -> None:
    rates = state(report, drains)
    report.at_least("One worker process completes {}", rates[ASYNC], RATE_BAR)
    report.at_least("That is {} of the floor", rates[ASYNC].over(rates[FLOOR]), FLOOR_BAR)
    report.at_least("While a transaction pins the xmin horizon it completes {}", rates[PINNED], RATE_BAR)
    report.at_least("That is {} of the floor under the same", rates[PINNED].over(rates[FLOOR_PINNED]), FLOOR_BAR)
    report.tell("With plain functions in threads it completes {}", rates[THREADS])
    report.tell("Two worker processes complete {}", rates[TWO])
    report.tell("That is {} of one", rates[TWO].over(rates[ASYNC]))


def drained(bench: Bench, dsn: str, count: int, *, workers: Sequence[str] = (PLAIN,), pinned: bool = False) -> Drain:
    """Start workers of these queues, which are paused; from their resumption until `count` more jobs are completed.

    workers  the queues of each, as `pgqueue worker -q` takes them
    """
    with contextlib.ExitStack() as stack:
        q = PgQueue(dsn)
        stack.callback(q.close)
        queues = sorted({part.partition("=")[0] for each in workers for part in each.split(",")})
        for queue in queues:
            q.pause(queue)
        running = [stack.enter_context(worker(dsn, queues=each)) for each in workers]
        if pinned:
            stack.enter_context(pinning(dsn))
        time.sleep(SETTLE)
        with psycopg.connect(dsn, autocommit=True) as conn:
            before = completed(conn)
        client, server = sum(each.seconds() for each in running), bench.server_seconds()
        started = time.monotonic()
        for queue in queues:
            q.resume(queue)
        seconds = wait_until_completed(dsn, before + count, within=WITHIN) - started
        spent = sum(each.seconds() for each in running) - client
        return Drain(count / seconds, spent / count * 1e6, _spent(bench, server) / count * 1e6)


def filled_and_drained(
    bench: Bench,
    count: int,
    task: Task[[int, str, int], object] = noop,
    *,
    workers: Sequence[str] = (PLAIN,),
    pinned: bool = False,
) -> Drain:
    """The same in a fresh database with so many jobs, all of them."""
    with bench.database() as dsn:
        fill(dsn, count, task)
        drain = drained(bench, dsn, count, workers=workers, pinned=pinned)
        _check(dsn, count)
        return drain


def _floor(bench: Bench, count: int, *, pinned: bool = False) -> Drain:
    with bench.database() as dsn, contextlib.ExitStack() as stack:
        process = stack.enter_context(python("floor", dsn, str(count)))
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the floor could not be prepared")
        if pinned:
            stack.enter_context(pinning(dsn))
        time.sleep(SETTLE)
        server = bench.server_seconds()
        process.stdin.write("\n")
        process.stdin.flush()
        said = json.loads(process.stdout.readline())
        spent = _spent(bench, server)
        process.stdin.close()
        return Drain(count / said["seconds"], said["cpu"] / count * 1e6, spent / count * 1e6)


@contextlib.contextmanager
def pinning(dsn: str) -> Iterator[None]:
    """An open transaction with a snapshot: nothing that dies from now on can be vacuumed away."""
    with psycopg.connect(dsn) as conn:
        conn.execute("set transaction isolation level repeatable read")
        conn.execute("select count(*) from pg_class")
        yield
        conn.rollback()


def _spent(bench: Bench, before: float | None) -> float:
    now = bench.server_seconds()
    return 0.0 if before is None or now is None else now - before


def _check(dsn: str, count: int) -> None:
    """All jobs are in the history, completed."""
    with psycopg.connect(dsn) as conn:
        rows = conn.execute("select state, count(*) from pgqueue.jobs group by state").fetchall()
    if rows != [("completed", count)]:
        raise RuntimeError(f"after the drain the jobs are {rows}, not all completed")
