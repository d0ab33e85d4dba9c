"""Claim: an idle worker hardly troubles the database."""

from __future__ import annotations

import contextlib
import time

import psycopg

from benchmarks.harness import Bench
from benchmarks.processes import worker
from benchmarks.report import Figure, Report
from pgqueue import PgQueue

BAR = 40
PROCESSOR_BAR = 0.5
SETTLE = 12.0  # a backend publishes its counts when it has been idle for ten seconds, or ends
COMMITS = "select xact_commit + xact_rollback from pg_stat_database where datname = %s"


def measure(bench: Bench) -> Report:
    seconds = float(bench.sized(60, 30))
    bench.announce("idle", 1.5)
    report = Report(
        "idle",
        f"Transactions in the database of a worker without jobs, over {seconds:.0f} s (pg_stat_database, looked at from"
        " another database), each statement of an idle worker being one; and the processor time of its process."
        f" {bench.rounds} workers, each on a database of its own, at the same time.",
    )
    counts, shares = zip(*_idle(bench, seconds), strict=True)
    statements = Figure([count * 60 / seconds for count in counts], "statements a minute", 0)
    processor = Figure([share * 100 for share in shares], "% of a core", 2)
    report.figures |= {"statements": statements, "processor time of the worker": processor}
    report.at_most("An idle worker sends {}", statements, BAR)
    if any(shares):
        report.at_most("It takes {}", processor, PROCESSOR_BAR)
    return report


def _idle(bench: Bench, seconds: float) -> list[tuple[int, float]]:
    """Of each worker: transactions in that time, and the share of a core that it took."""
    with contextlib.ExitStack() as stack:
        conn = stack.enter_context(psycopg.connect(bench.dsn, autocommit=True))
        databases = [stack.enter_context(bench.database()) for _ in range(bench.rounds)]
        workers = [stack.enter_context(worker(dsn)) for dsn in databases]
        names = [str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]) for dsn in databases]
        time.sleep(SETTLE)
        before = [(_count(conn, name), process.seconds()) for name, process in zip(names, workers, strict=True)]
        time.sleep(seconds)
        after = [(_count(conn, name), process.seconds()) for name, process in zip(names, workers, strict=True)]
        for dsn in databases:
            if [each.state for each in PgQueue(dsn).workers()] != ["active"]:
                raise RuntimeError("the idle worker is not alive: there is nothing to measure")
    return [(now[0] - then[0], (now[1] - then[1]) / seconds) for then, now in zip(before, after, strict=True)]


def _count(conn: psycopg.Connection[tuple[object, ...]], name: str) -> int:
    row = conn.execute(COMMITS, [name]).fetchone()
    assert row is not None
    return int(str(row[0]))
