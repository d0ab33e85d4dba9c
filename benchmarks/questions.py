"""Claim: the ten questions of README are answered at once, beside five million finished jobs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psycopg

from benchmarks import past
from benchmarks.app import noop
from benchmarks.harness import FILL_BATCH, Bench
from benchmarks.report import Figure, Report

BAR_MS = 50.0
WARM = 5
LIVE, LATER, RUNNING = "mail", "later", 500
README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```sql\n((?:(?!^```).)*?-- 10\..*?)^```", re.MULTILINE | re.DOTALL)
CLAIMED = """
with taken as (
  update pgqueue.ready set taken = taken + 50 where ctid = any (array(
    select ctid from pgqueue.ready where queue = %s order by seq limit %s)) returning ids[1 : 50] as ids)
insert into pgqueue.lease (id, worker_id, ids, claims)
select 1, 1, array_agg(id), array_agg(0) from taken, unnest(ids) id
"""


def measure(bench: Bench) -> Report:
    jobs, live = bench.sized(5_000_000, 200_000), bench.sized(100_000, 10_000)
    report = Report(
        "questions",
        f"The SQL of README, as it stands there, in a database with {jobs:,} finished jobs of {past.DAYS} days"
        f" (past.py), {live:,} available, {live // 10:,} scheduled and {RUNNING} running ones; cold: the first time"
        f" on a new connection; then the median of {WARM}. Rows are fetched. No worker runs.",
    )
    bench.announce("questions", 2)
    dsn = bench.shared("past", partial(past.make, jobs=jobs))
    with psycopg.connect(dsn, autocommit=True) as conn:
        _enliven(conn, live)
    slowest = 0.0
    for name, statement in questions():
        cold, warm, rows = _asked(dsn, statement)
        report.figures[f"{name}  [{rows} rows]"] = Figure(warm, "ms", 1)
        report.figures[f"  {name.partition('.')[0]}, cold"] = Figure([cold], "ms", 1)
        report.at_most(f"Question {name} takes {{}}", Figure(warm, "ms", 1), BAR_MS)
        slowest = max(slowest, cold)
    report.tell("The first time none takes more than {}", Figure([slowest], "ms", 1))
    return report


def questions() -> Iterator[tuple[str, str]]:
    found = BLOCK.search(README.read_text(encoding="utf-8"))
    if found is None:
        raise RuntimeError(f"{README}: the block with the ten questions was not found")
    for part in found[1].split(";\n"):
        if part.strip():
            title = part.strip().splitlines()[0]
            yield title.removeprefix("-- "), part


def _asked(dsn: str, statement: str) -> tuple[float, list[float], int]:
    """Milliseconds of the first answer and of the later ones, and the number of rows."""
    times = []
    rows = 0
    with psycopg.connect(dsn, autocommit=True) as conn:
        for _ in range(1 + WARM):
            started = time.perf_counter()
            rows = len(conn.execute(statement.encode(), prepare=False).fetchall())
            times.append((time.perf_counter() - started) * 1000)
    return times[0], times[1:], rows


def _enliven(conn: psycopg.Connection[tuple[object, ...]], count: int) -> None:
    """Jobs that are not final, of a tenant that README asks for; `running` ones have a lease, as a claim leaves it."""
    for first in range(0, count, FILL_BATCH):
        rows = [(number, "send_email", 1) for number in range(first, first + FILL_BATCH)]
        noop.using(conn, queue=LIVE, tenant="acme").enqueue_many(rows)
    soon = [(number, "send_email", 1) for number in range(count // 10)]
    noop.using(conn, queue=LATER, delay=1800).enqueue_many(soon)
    conn.execute(CLAIMED, [LIVE, RUNNING // 50])
    conn.execute("analyze")
