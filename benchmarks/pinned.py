"""Claim: a transaction that pins the xmin horizon while half a million jobs flow slows nothing down."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from benchmarks.drain import pinning
from benchmarks.harness import POLL, Bench, completed, fill
from benchmarks.processes import worker
from benchmarks.report import Figure, Report, interleave
from pgqueue import PgQueue
from pgqueue.bench.figures import percentile

RATE_BAR, CLAIM_BAR = 0.9, 2.0
WITHIN = 300.0
CHUNKS, ALONE = "enqueued in bulk", "enqueued one by one"
FREE, PINNED = "", ", xmin pinned"
# As `enqueue_one` leaves them, every job in a chunk of its own: half a million calls of it would take minutes.
SINGLES = """
with job as (
  insert into pgqueue.job (kind, args, queue, priority, max_attempts)
  select 'noop', jsonb_build_object('user_id', n, 'action', 'send_email', 'n', 1), 'default', 0, 20
  from generate_series(1, %s) n returning id, kind, args, queue, priority)
insert into pgqueue.ready (queue, priority, kind, ids, bytes)
select queue, priority, kind, array[id], pg_column_size(args) from job order by id
"""
CLAIM = re.compile(r"duration: ([0-9.]+) ms  (bind|execute|statement|parse) ?[^\n]*?-- Lease up to")
LOGGED = {"log_min_duration_statement": "0", "log_parameter_max_length": "0"}


@dataclass(frozen=True, slots=True)
class Flow:
    """Jobs a second of the last tenth; milliseconds of the claims, [] if the server's log isn't here."""

    rate: float
    last: float
    claims: list[float]


def measure(bench: Bench) -> Report:
    count = bench.sized(500_000, 50_000)
    report = Report(
        "pinned",
        f"Drains, as in `drain`, of {count:,} no-op jobs by one worker process, beside a transaction that holds a"
        f" snapshot from before the first claim, and without one; the last {count // 10:,} are told apart. Jobs one by"
        " one are inserted by SQL as `enqueue_one` would leave them. A claim's time is what the server logs for it"
        " (log_min_duration_statement = 0, which all runs pay for).",
    )
    bench.announce("pinned", 8)
    ways = {
        f"{way}{pin}": partial(_flow, bench, count, alone=way == ALONE, pinned=pin == PINNED)
        for way in (CHUNKS, ALONE)
        for pin in (FREE, PINNED)
    }
    runs = interleave(bench.rounds, ways)
    for name, samples in runs.items():
        report.figures[f"{name}: all"] = Figure([each.rate for each in samples], "jobs/s")
        report.figures[f"{name}: the last tenth"] = Figure([each.last for each in samples], "jobs/s")
        if all(each.claims for each in samples):
            for what, share in (("p50", 0.5), ("p99", 0.99)):
                report.figures[f"{name}: claim {what}"] = Figure(
                    [percentile(each.claims, share) for each in samples], "ms", 2
                )
    for way in (CHUNKS, ALONE):
        _judge(report, way)
    return report


def _judge(report: Report, way: str) -> None:
    last = [report.figures[f"{way}{pin}: the last tenth"] for pin in (PINNED, FREE)]
    report.at_least(
        f"Jobs {way}: pinned, the last tenth is completed at {{}} of the rate", last[0].over(last[1]), RATE_BAR
    )
    claims = [report.figures.get(f"{way}{pin}: claim p99") for pin in (PINNED, FREE)]
    if claims[0] is not None and claims[1] is not None:
        report.at_most("99 of 100 claims take {} times as long, or less", claims[0].over(claims[1]), CLAIM_BAR)


def _flow(bench: Bench, count: int, *, alone: bool, pinned: bool) -> Flow:
    with bench.database() as dsn, contextlib.ExitStack() as stack:
        _fill(dsn, count, alone=alone)
        log = _logging(bench, dsn)
        place = log.stat().st_size if log else 0
        q = PgQueue(dsn)
        stack.callback(q.close)
        q.pause("default")
        stack.enter_context(worker(dsn))
        if pinned:
            stack.enter_context(pinning(dsn))
        conn = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        conn.execute("set log_min_duration_statement = -1")
        time.sleep(0.5)
        started = time.monotonic()
        q.resume("default")
        late, there = _until(conn, count * 9 // 10), _until(conn, count)
        claims = list(_claims(log, place)) if log else []
    return Flow(count / (there - started), count / 10 / (there - late), claims)


def _fill(dsn: str, count: int, *, alone: bool) -> None:
    if not alone:
        fill(dsn, count)
        return
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("checkpoint")
        conn.execute(SINGLES, [count])
        conn.execute("analyze")


def _until(conn: psycopg.Connection[tuple[object, ...]], count: int) -> float:
    deadline = time.monotonic() + WITHIN
    while completed(conn) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{completed(conn)} of {count} jobs completed after {WITHIN:.0f} s")
        time.sleep(POLL)
    return time.monotonic()


def _logging(bench: Bench, dsn: str) -> Path | None:
    """Let the server log how long the statements of new connections take; where, or None if it is elsewhere."""
    if bench.server is None:
        return None
    with psycopg.connect(dsn, autocommit=True) as conn:
        (directory,) = conn.execute("show data_directory").fetchone() or ("",)
        for name, value in LOGGED.items():
            conn.execute(f"alter database {conninfo_to_dict(dsn)['dbname']} set {name} = {value}".encode())
    return Path(str(directory)).parent / "server.log"


def _claims(log: Path, place: int) -> Iterator[float]:
    """The time of each claim: what it took to plan it and to run it."""
    with log.open("rb") as file:
        file.seek(place)
        text = file.read().decode(errors="replace")
    planned = 0.0
    for found in CLAIM.finditer(text):
        if found[2] in {"parse", "bind"}:
            planned += float(found[1])
        else:
            yield planned + float(found[1])
            planned = 0.0
