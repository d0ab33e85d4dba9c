"""Claim: a job that is enqueued in the caller's transaction costs little more than the row that it is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import psycopg
from psycopg.rows import TupleRow

from benchmarks.app import noop
from benchmarks.harness import Bench
from benchmarks.machine import thread_seconds
from benchmarks.report import Figure, Report

BAR = 0.85
BLOCK = 50
BARE = """
create table bare (like pgqueue.job including defaults including identity, primary key (id)) with (fillfactor = 50)
"""
INSERT = "insert into bare (kind, queue, args) values (%s, %s, %s::text::jsonb) returning id"

Connection = psycopg.Connection[TupleRow]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one job took: seconds by the clock, and of processors in the client and in the server's process."""

    wall: float
    client: float
    server: float


def measure(bench: Bench) -> Report:
    report = Report(
        "enqueue one",
        "task.using(conn).enqueue(...) and COMMIT per job, beside INSERT ... RETURNING id and COMMIT into a bare table"
        " of the same columns, on the same psycopg connection, in alternating blocks of 50.",
    )
    count = bench.sized(3000, 500)
    with bench.database() as dsn, psycopg.connect(dsn) as conn:
        conn.execute(BARE)
        conn.commit()
        for warm_up in (_enqueue, _insert):
            _timed(conn, warm_up, count // 4)
        pairs = [_pair(conn, count) for _ in range(bench.sized(5, 3))]
    _judge(report, [ours for ours, _ in pairs], [bare for _, bare in pairs])
    return report


def _judge(report: Report, ours: list[Cost], bare: list[Cost]) -> None:
    rates = {name: Figure([1 / cost.wall for cost in costs], "/s") for name, costs in (("ours", ours), ("bare", bare))}
    cpu = {
        name: Figure([(cost.client + cost.server) * 1e6 for cost in costs], "µs", 1)
        for name, costs in (("ours", ours), ("bare", bare))
    }
    report.figures |= {
        "enqueue + COMMIT": rates["ours"],
        "bare INSERT + COMMIT": rates["bare"],
        "processor time, enqueue": cpu["ours"],
        "processor time, bare INSERT": cpu["bare"],
        "  of it in the client, enqueue": Figure([cost.client * 1e6 for cost in ours], "µs", 1),
        "  of it in the client, bare INSERT": Figure([cost.client * 1e6 for cost in bare], "µs", 1),
    }
    report.at_least(
        "Enqueuing one job in a transaction reaches {} of the rate of a bare INSERT",
        rates["ours"].over(rates["bare"]),
        BAR,
    )
    if all(cost.server for cost in ours + bare):
        report.tell("By processor time, client and server together, it is {}", cpu["bare"].over(cpu["ours"]))


def _pair(conn: Connection, count: int) -> tuple[Cost, Cost]:
    """The costs of one enqueue and of one INSERT, in alternating blocks: they meet the same disturbances."""
    ours: list[Cost] = []
    bare: list[Cost] = []
    for number in range(count // BLOCK):
        steps = [(ours, _enqueue), (bare, _insert)]
        for costs, do in steps if number % 2 else reversed(steps):
            costs.append(_timed(conn, do, BLOCK))
    return _mean(ours), _mean(bare)


def _mean(costs: list[Cost]) -> Cost:
    count = len(costs)
    return Cost(
        sum(cost.wall for cost in costs) / count,
        sum(cost.client for cost in costs) / count,
        sum(cost.server for cost in costs) / count,
    )


def _timed(conn: Connection, do: Callable[[Connection, int], object], count: int) -> Cost:
    backend, us = conn.info.backend_pid, os.getpid()
    client, server = thread_seconds(us) or 0.0, thread_seconds(backend) or 0.0
    started = time.perf_counter()
    for number in range(count):
        do(conn, number)
    wall = time.perf_counter() - started
    spent = (thread_seconds(us) or 0.0) - client, (thread_seconds(backend) or 0.0) - server
    return Cost(wall / count, spent[0] / count, spent[1] / count)


def _enqueue(conn: Connection, number: int) -> None:
    noop.using(conn).enqueue(number, "send_email", 1)
    conn.commit()


def _insert(conn: Connection, number: int) -> None:
    args = msgspec.json.encode({"user_id": number, "action": "send_email", "n": 1}).decode()
    conn.execute(INSERT, ("noop", "default", args)).fetchone()
    conn.commit()
