"""Claim: a step costs next to nothing, and a cursor in the caller's transaction one small row."""

from __future__ import annotations

import time

import psycopg

from benchmarks.harness import Bench
from benchmarks.report import Figure, Report
from pgqueue import Context, PgQueue

STEPS, CURSORS = 5_000, 1_000
STEP_BAR_US = 20.0
WAL = "select pg_current_wal_insert_lsn()"
LATER = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)::float8"
LEFT = """
select n_dead_tup, pg_relation_size(relid) / 1024 from pg_stat_user_tables
where schemaname = 'pgqueue' and relname = 'checkpoint'
"""


def measure(bench: Bench) -> Report:
    report = Report(
        "steps",
        f"One job in a worker's thread: {STEPS:,} steps that do nothing, as many cursors in memory; then {CURSORS:,}"
        " transactions that insert a row, without and with set_step_cursor_tx.",
    )
    samples: dict[str, list[float]] = {}
    for _ in range(bench.rounds):
        for name, value in _one_run(bench).items():
            samples.setdefault(name, []).append(value)
    report.figures |= {name: Figure(values, name.partition(", ")[2], 2) for name, values in samples.items()}
    report.at_most("A step that does nothing costs {}", report.figures["step, us"], STEP_BAR_US)
    marked, plain = report.figures["marked transaction, ms"], report.figures["plain transaction, ms"]
    report.tell("A transaction of one insert takes {} times as long with set_step_cursor_tx", marked.over(plain))
    report.tell("A cursor in the caller's transaction writes {} of WAL more", report.figures["a cursor's WAL, bytes"])
    report.tell(f"{CURSORS:,} of them leave {{}} row versions behind", report.figures["left behind, dead"])
    return report


def _one_run(bench: Bench) -> dict[str, float]:
    with bench.database() as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("create table work (n int)")
        q = PgQueue(dsn)

        @q.task(checkpoint_every=None)
        def measured(ctx: Context) -> dict[str, float]:
            return _steps(ctx) | _cursors(ctx) | _transactions(ctx)

        worker = q.worker()
        worker.start()
        try:
            found: dict[str, float] = q.result(measured.enqueue().id, timeout=300)  # type: ignore[assignment]
        finally:
            worker.close()
            q.close()
    return found


def _nothing() -> None:
    pass


def _steps(ctx: Context) -> dict[str, float]:
    names = [f"step {number}" for number in range(STEPS)]
    started = time.perf_counter()
    for name in names:
        ctx.step(name, _nothing)
    return {"step, us": (time.perf_counter() - started) / STEPS * 1e6}


def _cursors(ctx: Context) -> dict[str, float]:
    def load(cursor: int | None) -> float:
        started = time.perf_counter()
        for number in range(STEPS):
            ctx.set_cursor(number)
        return time.perf_counter() - started

    return {"set_cursor, us": ctx.step_cursor("cursors", load) / STEPS * 1e6}


def _transactions(ctx: Context) -> dict[str, float]:
    def plain(cursor: int | None) -> list[float]:
        return _insert(ctx, marks=False)

    def marked(cursor: int | None) -> list[float]:
        return _insert(ctx, marks=True)

    seconds, wal = ctx.step_cursor("plain", plain)
    marked_seconds, marked_wal = ctx.step_cursor("marked", marked)
    with ctx.connection() as conn:
        conn.execute("select pg_stat_force_next_flush()")
        time.sleep(1.1)  # statistics are told once a second
        dead, kilobytes = conn.execute(LEFT).fetchall()[0]
    return {
        "plain transaction, ms": seconds / CURSORS * 1e3,
        "marked transaction, ms": marked_seconds / CURSORS * 1e3,
        "a cursor's WAL, bytes": (marked_wal - wal) / CURSORS,
        "left behind, dead": float(dead),
        "size of all, kB": float(kilobytes),
    }


def _insert(ctx: Context, *, marks: bool) -> list[float]:
    """Seconds and bytes of WAL."""
    with ctx.connection() as conn:
        (before,) = conn.execute(WAL).fetchone() or (None,)
        started = time.perf_counter()
        for number in range(CURSORS):
            with conn.transaction():
                conn.execute("insert into work values (%s)", [number])
                if marks:
                    ctx.set_step_cursor_tx(conn, number)
        seconds = time.perf_counter() - started
        (wal,) = conn.execute(LATER, [before]).fetchone() or (0.0,)
    return [seconds, float(wal)]
