"""Claim: an idle worker hardly troubles the database."""

from __future__ import annotations

import time

import psycopg

from benchmarks.harness import Bench
from benchmarks.machine import process_seconds
from benchmarks.processes import worker
from benchmarks.report import Figure, Report
from pgqueue import PgQueue

BAR = 40
SETTLE = 12.0  # a backend publishes its counts when it has been idle for ten seconds, or ends
COMMITS = "select xact_commit + xact_rollback from pg_stat_database where datname = %s"


def measure(bench: Bench) -> Report:
    seconds = float(bench.sized(30, 10))
    report = Report(
        "idle",
        f"Transactions in the database of a worker without jobs, over {seconds:.0f} s (pg_stat_database, looked at from"
        " another database); each statement of an idle worker is one.",
    )
    counts, processor = zip(*(_idle(bench, seconds) for _ in range(bench.rounds)), strict=True)
    figure = Figure([count * 60 / seconds for count in counts], "statements a minute", 0)
    report.figures["statements"] = figure
    report.figures["processor time of the worker"] = Figure([share * 1000 for share in processor], "ms a second", 1)
    report.at_most("An idle worker sends {}", figure, BAR)
    return report


def _idle(bench: Bench, seconds: float) -> tuple[int, float]:
    """Transactions in that time, and the share of a core that the worker took."""
    with bench.database() as dsn, worker(dsn) as process, psycopg.connect(bench.dsn, autocommit=True) as conn:
        name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
        time.sleep(SETTLE)
        before, spent = _count(conn, str(name)), process_seconds(process.pid) or 0.0
        time.sleep(seconds)
        after, now = _count(conn, str(name)), process_seconds(process.pid) or 0.0
        if [each.state for each in PgQueue(dsn).workers()] != ["active"]:
            raise RuntimeError("the idle worker is not alive: there is nothing to measure")
    return after - before, (now - spent) / seconds


def _count(conn: psycopg.Connection[tuple[object, ...]], name: str) -> int:
    row = conn.execute(COMMITS, [name]).fetchone()
    assert row is not None
    return int(str(row[0]))
