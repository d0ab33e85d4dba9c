"""Claim: at a steady pace nothing but history grows, hour after hour: `python -m benchmarks soak --minutes 60`.

Prints one line of JSON a minute, so that a run that is cut short has told what it saw.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg

from benchmarks.harness import Bench, completed
from benchmarks.machine import process_seconds, resident_mb
from benchmarks.processes import Stamps, WorkerProcess, python, say, stamps, told, worker
from benchmarks.report import Figure, Report
from pgqueue.bench.figures import percentile

PACE, THREADS = 500, 4
MINUTES = 60.0
KEPT_BAR, MEMORY_BAR = 0.99, 1.05
TABLES = ("job", "ready", "lease", "tally", "worker")

PRESENT = """
select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint, (select last_value from pgqueue.job_id_seq)
"""
SIZES = """
select relname, pg_table_size(relid) / 1048576.0, pg_indexes_size(relid) / 1048576.0, n_dead_tup, autovacuum_count
from pg_stat_user_tables where schemaname = 'pgqueue' and relname = any (%s) order by relname
"""

Row = dict[str, float]


@dataclass(frozen=True, slots=True)
class Reading:
    """What counters show at one moment, since they began.

    wal     bytes
    worker  processor seconds, as those of the server
    """

    at: float
    enqueued: int
    completed: int
    wal: int
    worker: float
    server: float


def measure(bench: Bench) -> Report:
    every, lines = (10.0, 3) if bench.quick else (60.0, max(2, round(bench.minutes or MINUTES)))
    report = Report(
        "soak",
        f"{THREADS} producers enqueue {PACE} jobs a second one by one, a worker process runs them; one line each"
        f" {every:.0f} s. Latency: from the call of enqueue to the first line of the task. WAL includes the full-page"
        " images that a checkpoint entails. Autovacuum is on, as pgqueue's tables ask for it.",
    )
    bench.announce("soak", every * lines / 60 + 0.5)
    rows = list(_watched(bench, every, lines))
    _judge(report, rows)
    return report


def _judge(report: Report, rows: list[Row]) -> None:
    samples = {name: [row[name] for row in rows] for name in rows[0]}
    report.figures |= {name: Figure(values, digits=1) for name, values in samples.items()}
    quarter = max(1, len(rows) // 4)

    def later(name: str) -> Figure:
        first, last = (Figure(part).median for part in (samples[name][:quarter], samples[name][-quarter:]))
        return Figure([last / first], digits=2)

    kept = sum(samples["rate"]) / len(rows) / PACE
    report.at_least("Over all, {} of the pace was kept", Figure([kept], digits=2), KEPT_BAR)
    if all(samples["memory_mb"]):
        report.at_most("Its memory in the last quarter was {} of that in the first", later("memory_mb"), MEMORY_BAR)
    for name, what in (("p50_ms", "Median latency"), ("p99_ms", "99 % latency"), ("wal_bytes_per_job", "WAL per job")):
        report.tell(f"{what} in the last quarter was {{}} of that in the first", later(name))


def _watched(bench: Bench, every: float, lines: int) -> Iterator[Row]:
    with (
        bench.database() as dsn,
        stamps() as file,
        worker(dsn, stamps=file) as process,
        psycopg.connect(dsn, autocommit=True) as conn,
        python("paced", dsn, str(THREADS), str(every * (lines + 1)), str(PACE)) as producer,
    ):
        try:
            told(producer, "ready")
            say(producer)
            time.sleep(every / 4)  # warm
            yield from _lines(bench, conn, process, file, every, lines)
        finally:
            _end(producer)


def _end(producer: subprocess.Popen[str]) -> None:
    producer.terminate()
    producer.wait()


def _lines(
    bench: Bench, conn: psycopg.Connection, process: WorkerProcess, file: Stamps, every: float, lines: int
) -> Iterator[Row]:
    started = time.monotonic()
    before, place = _reading(bench, conn, process), file.size()
    for number in range(1, lines + 1):
        time.sleep(max(0.0, started + number * every - time.monotonic()))
        now, here = _reading(bench, conn, process), file.size()
        latencies = [(entered - sent / 1e9) * 1000 for sent, entered in file.read(place, here)]
        row = {"minute": round((now.at - started) / 60, 2)} | _rates(before, now) | _spread(latencies)
        row |= {"memory_mb": round(resident_mb(process.pid) or 0.0, 1), "load": round(os.getloadavg()[0], 1)}
        for name, heap, indexes, dead, vacuums in conn.execute(SIZES, [list(TABLES)]).fetchall():
            row |= {f"{name}_mb": round(float(heap + indexes), 1), f"{name}_dead": dead, f"{name}_vacuums": vacuums}
        print(json.dumps(row), flush=True)
        yield row
        before, place = now, here


def _reading(bench: Bench, conn: psycopg.Connection, process: WorkerProcess) -> Reading:
    wal, enqueued = conn.execute(PRESENT).fetchone() or (0, 0)
    spent = process_seconds(process.pid) or 0.0
    return Reading(time.monotonic(), enqueued, completed(conn), wal, spent, bench.server_seconds() or 0.0)


def _rates(before: Reading, now: Reading) -> Row:
    seconds, jobs = now.at - before.at, max(1, now.completed - before.completed)
    return {
        "rate": round(jobs / seconds, 1),
        "backlog": now.enqueued - now.completed,
        "wal_bytes_per_job": round((now.wal - before.wal) / jobs),
        "worker_core_percent": round(100 * (now.worker - before.worker) / seconds, 1),
        "server_core_percent": round(100 * (now.server - before.server) / seconds, 1),
    }


def _spread(latencies: list[float]) -> Row:
    shares = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
    return {name: round(percentile(latencies, share), 2) for name, share in shares.items()}
