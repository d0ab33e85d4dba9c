"""A worker beside other code: it starts, stops, fails aloud, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import warnings

import psycopg
import pytest

from pgqueue import PgQueue, State
from pgqueue.engine.completer import Completer
from pgqueue.errors import ConfigError, SchemaMismatch
from tests.engine.kit import PATIENCE, until, value, working

SESSIONS = """select array_agg(application_name order by 1) from pg_stat_activity
where datname = current_database() and application_name like 'pgqueue %%' and application_name <> 'pgqueue client'"""


def test_closing_leaves_no_connection_no_thread_and_no_warning(q: PgQueue, admin: psycopg.Connection) -> None:
    @q.task
    async def in_loop() -> None:
        await asyncio.sleep(0)

    @q.task
    def in_thread() -> None: ...

    before = set(threading.enumerate())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with working(q, {"default": 4}):
            until(admin, SESSIONS + " having count(*) >= 3")
            for id in [task.enqueue().id for task in (in_loop, in_thread) for _ in range(10)]:
                q.wait(id)
        until(admin, f"select ({SESSIONS}) is null")
        q.close()  # its pool has threads as well
        left = set(threading.enumerate()) - before
        for thread in left:
            thread.join(PATIENCE)
        gc.collect()

    assert [thread for thread in left if thread.is_alive()] == []
    assert [str(warning.message) for warning in caught] == []
    assert value(admin, "select state from pgqueue.workers") == "stopped"
    assert value(admin, "select count(*) from pgqueue.lease") == 0


async def test_arun_in_the_applications_loop_leaves_no_task_behind(fresh_db: str, admin: psycopg.Connection) -> None:
    q = PgQueue(fresh_db)

    @q.task
    async def quick(n: int) -> int:
        return n

    before = asyncio.all_tasks()
    worker = q.worker()
    working = asyncio.create_task(worker.arun())
    assert await q.aresult((await quick.aenqueue(7)).id) == 7
    worker.stop()
    await asyncio.wait_for(working, PATIENCE)

    await q.aclose()
    assert asyncio.all_tasks() == before
    until(admin, f"select ({SESSIONS}) is null")


async def test_cancelling_arun_stops_it_at_once_and_gives_running_jobs_back(
    fresh_db: str, admin: psycopg.Connection
) -> None:
    q = PgQueue(fresh_db)
    running = asyncio.Event()

    @q.task
    async def long() -> None:
        running.set()
        await asyncio.Event().wait()

    job = await long.aenqueue()
    working = asyncio.create_task(q.worker(grace=3600).arun())
    await asyncio.wait_for(running.wait(), PATIENCE)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(working, PATIENCE)

    found = await q.ajob(job.id)
    assert (found.state, found.attempt, found.crashes, found.errors) == (State.AVAILABLE, 0, 0, [])
    until(admin, f"select ({SESSIONS}) is null")
    await q.aclose()


def test_wait_says_whether_it_has_ended(q: PgQueue) -> None:
    @q.task
    async def quick() -> None: ...

    worker = q.worker()
    assert worker.wait(0)
    worker.start()
    assert not worker.wait(0.01)
    worker.stop()
    assert worker.wait(PATIENCE)
    worker.close()


def test_start_raises_what_keeps_it_from_starting(q: PgQueue, empty_db: str) -> None:
    with pytest.raises(ConfigError, match="no tasks"):
        q.worker().start()

    unmigrated = PgQueue(empty_db)

    @unmigrated.task
    async def quick() -> None: ...

    with pytest.raises(SchemaMismatch, match="migrate"):
        unmigrated.worker().start()


def test_a_worker_that_waits_for_its_database_can_be_closed() -> None:
    q = PgQueue("postgresql://nobody@127.0.0.1:1/nothing")

    @q.task
    async def quick() -> None: ...

    worker = q.worker()
    starting = threading.Thread(target=worker.start, daemon=True)
    starting.start()
    worker.stop()
    starting.join(PATIENCE)

    assert not starting.is_alive()
    assert worker.wait(PATIENCE)


def test_what_ends_a_running_worker_is_not_hidden(
    q: PgQueue, admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(self: Completer) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(Completer, "_write", broken)

    @q.task
    async def quick() -> None: ...

    worker = q.worker()
    worker.start()
    quick.enqueue()
    with caplog.at_level(logging.CRITICAL, "pgqueue"), pytest.raises(ExceptionGroup) as raised:
        worker.wait(PATIENCE)

    assert raised.group_contains(ZeroDivisionError)
    until(admin, f"select ({SESSIONS}) is null")


def test_two_workers_share_a_queue_and_run_each_job_once(q: PgQueue, admin: psycopg.Connection) -> None:
    lock = threading.Lock()
    ran: list[int] = []

    @q.task
    def note(n: int) -> None:
        with lock:
            ran.append(n)

    for start in range(0, 2000, 50):
        note.enqueue_many([(n,) for n in range(start, start + 50)])
    with working(q, {"default": 5}), working(q, {"default": 5}):
        until(admin, "select count(*) = 2000 from pgqueue.job where status = 1")

    assert sorted(ran) == list(range(2000))
    assert value(admin, "select sum(jobs) from pgqueue.tally") == 2000


def test_closing_while_jobs_stream_runs_each_job_once_and_loses_none(q: PgQueue, admin: psycopg.Connection) -> None:
    """Whatever has been run is recorded, whatever has not is handed back, at every one of many moments."""
    ran: dict[int, int] = {}
    enough = threading.Event()

    @q.task
    async def note(n: int) -> None:
        ran[n] = ran.get(n, 0) + 1
        if n % 331 == 0:
            enough.set()

    note.enqueue_many([(n,) for n in range(3000)])
    while value(admin, "select count(*) from pgqueue.job where status = 0"):
        enough.clear()
        with working(q, {"default": 3}):
            enough.wait(1)

    assert ran == dict.fromkeys(range(3000), 1)
    assert value(admin, "select max(attempt) + max(crashes) from pgqueue.job") == 0
    assert value(admin, "select count(*) from pgqueue.suspect") == 0


def test_a_changed_table_does_not_stop_a_running_worker(q: PgQueue, admin: psycopg.Connection) -> None:
    """A prepared statement whose result type changed fails for ever on its connection: "cached plan must not ..."."""

    @q.task
    async def quick(n: int) -> int:
        return n

    with working(q):
        assert q.result(quick.enqueue(1).id) == 1
        views = value(
            admin,
            """select string_agg(oid::regclass::text, ',') from pg_class
               where relkind = 'v' and relnamespace = 'pgqueue'::regnamespace""",
        )
        admin.execute(f"drop view {views}")
        admin.execute("alter table pgqueue.job alter tenant type varchar(200)")
        id = quick.enqueue(2).id
        until(admin, "select status = 1 from pgqueue.job where id = %s", id)


def test_a_refused_statement_is_tried_again_until_it_is_allowed(q: PgQueue, admin: psycopg.Connection) -> None:
    """No error of the database ends a loop, not even one that is nobody's outage."""

    @q.task
    async def quick(n: int) -> int:
        return n

    with working(q):
        assert q.result(quick.enqueue(1).id) == 1
        admin.execute("alter table pgqueue.tally rename to hidden")
        id = quick.enqueue(2).id
        until(admin, "select count(*) = 1 from pgqueue.lease where claims <> '{}'")
        admin.execute("alter table pgqueue.hidden rename to tally")
        assert q.result(id) == 2
