"""From enqueue to start without waiting for a poll.

Where a test says `sleepy`, heartbeats (which poll too) come once an hour, and a worker that lies down does not look
again by itself: only a notification can wake it. The clock is no witness in any of these tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import psycopg
import pytest

from pgqueue import PgQueue, State
from pgqueue.db import listen
from pgqueue.engine import heartbeat, worker
from pgqueue.engine.claimer import Claimer
from tests.crash.kit import Proxy
from tests.db.pooler import Pooler
from tests.engine.kit import PATIENCE, awaited, done, until, value, working

HOUR = 3600.0


@pytest.fixture
def sleepy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT", HOUR)
    monkeypatch.setattr(listen, "PING_EVERY", HOUR)


def asleep(admin: psycopg.Connection, gates: int = 1) -> None:
    """Wait until the worker holds the gates of this many queues: then it sleeps there, and enqueuers notify it."""
    until(admin, _GATES, gates)


_GATES = """select count(*) = %s from pg_locks l join pg_database d on d.oid = l.database
where d.datname = current_database() and locktype = 'advisory' and mode = 'ShareLock' and granted"""


@pytest.mark.usefixtures("sleepy")
def test_a_sleeping_worker_is_woken_by_every_enqueue(q: PgQueue, admin: psycopg.Connection) -> None:
    @q.task
    async def quick(n: int) -> int:
        return n

    with working(q, lease=2 * HOUR):
        for n in range(5):
            asleep(admin)
            assert q.result(quick.enqueue(n).id) == n


@pytest.mark.usefixtures("sleepy")
def test_a_notification_that_comes_while_the_worker_still_looks_is_not_taken_for_answered(
    fresh_db: str, monkeypatch: pytest.MonkeyPatch, admin: psycopg.Connection
) -> None:
    """What it had asked was answered before the second job was there; the answer reaches it afterwards."""
    port = urlsplit(fresh_db).port or 5432
    proxy = Proxy(port)
    through = fresh_db.replace(f":{port}/", f":{proxy.port}/")
    monkeypatch.setattr(worker, "LOOKS", (0.0,))  # those that follow would find it too
    woken = threading.Event()
    wake = Claimer.wake

    def noticed(claimer: Claimer, queue: str) -> None:
        wake(claimer, queue)
        woken.set()

    q = PgQueue(through, direct_dsn=fresh_db)
    with contextlib.closing(proxy), contextlib.closing(q), psycopg.connect(fresh_db, autocommit=True) as conn:

        @q.task
        async def quick(n: int) -> int:
            if n == 1:
                proxy.hold("claim")
            return n

        with working(q, lease=2 * HOUR):
            asleep(admin)
            first = quick.using(conn).enqueue(1)
            until(admin, _LOOKED_SINCE, first.id)
            monkeypatch.setattr(Claimer, "wake", noticed)
            second = quick.using(conn).enqueue(2)
            awaited(woken)
            proxy.thaw("claim")
            assert q.result(second.id, timeout=PATIENCE) == 2


_LOOKED_SINCE = """select exists (select from pg_stat_activity, pgqueue.jobs where datname = current_database()
and application_name like '%% claim' and query like '%%What is there in a queue%%' and pg_stat_activity.state = 'idle'
and id = %s and query_start > created_at)"""


@pytest.mark.usefixtures("sleepy")
def test_a_job_that_comes_after_a_burst_is_found_though_nobody_sleeps(
    q: PgQueue, monkeypatch: pytest.MonkeyPatch, admin: psycopg.Connection
) -> None:
    """So many ends at once make the queue a busy one, which is not slept on: from then on the worker has to look."""
    monkeypatch.setattr(worker, "LOOKS", (0.0,))
    release = asyncio.Event()

    @q.task
    async def waits() -> None:
        await release.wait()

    @q.task
    async def quick() -> str:
        return "found"

    @q.task(queue="other")
    async def go() -> None:
        release.set()

    with working(q, {"default": 1000, "other": 1}, lease=2 * HOUR):
        asleep(admin, 2)
        jobs = waits.enqueue_many([()] * 800)
        until(admin, "select count(*) = 800 from pgqueue.live_jobs where state = 'running'")
        asleep(admin, 2)
        go.enqueue()
        done(q, *[job.id for job in jobs])
        assert q.result(quick.enqueue().id, timeout=PATIENCE) == "found"


@pytest.mark.usefixtures("sleepy")
def test_a_job_from_sql_wakes_it_too(q: PgQueue, admin: psycopg.Connection) -> None:
    @q.task
    async def quick() -> str:
        return "woken"

    with working(q, lease=2 * HOUR):
        asleep(admin)
        id = value(admin, "select pgqueue.enqueue('quick')")
        assert isinstance(id, int)
        assert q.result(id) == "woken"


@pytest.mark.usefixtures("sleepy")
def test_a_long_transaction_wakes_it_when_it_commits(q: PgQueue, admin: psycopg.Connection, fresh_db: str) -> None:
    @q.task
    async def quick(n: int) -> int:
        return n

    with working(q, lease=2 * HOUR), psycopg.connect(fresh_db) as long:
        asleep(admin)
        inside = quick.using(long).enqueue(1)
        for n in range(3):  # the world goes on meanwhile, others sleep and are woken
            assert q.result(quick.enqueue(n).id) == n
            asleep(admin)
        long.commit()
        assert q.result(inside.id) == 1


def test_a_transaction_that_began_while_the_worker_was_busy_is_found_by_its_heartbeat(
    q: PgQueue, admin: psycopg.Connection, fresh_db: str
) -> None:
    """Nobody slept when it enqueued, so it sends nothing when it commits."""
    running, go = threading.Event(), threading.Event()

    @q.task
    def blocks() -> None:
        running.set()
        awaited(go)

    @q.task
    async def quick() -> str:
        return "found"

    with working(q, {"default": 1}), psycopg.connect(fresh_db) as long:
        asleep(admin)
        blocks.enqueue_many([(), ()])
        awaited(running)
        until(admin, _GATES, 0)
        inside = quick.using(long).enqueue()
        go.set()
        asleep(admin)
        long.commit()
        assert q.result(inside.id) == "found"


@pytest.fixture
def other_schema(fresh_db: str) -> Iterator[PgQueue]:
    queue = PgQueue(fresh_db, schema="Other_1")
    queue.migrate()
    yield queue
    queue.close()


@pytest.mark.usefixtures("sleepy")
def test_two_schemas_in_one_database_wake_their_own_workers_only(
    q: PgQueue, other_schema: PgQueue, admin: psycopg.Connection
) -> None:
    @q.task
    async def quick() -> str:
        return "first"

    @other_schema.task(name="quick")
    async def quick_too() -> str:
        return "second"

    with working(other_schema, lease=2 * HOUR):
        asleep(admin)
        alone = quick.enqueue()  # only the worker of the other schema sleeps
        assert other_schema.result(quick_too.enqueue().id) == "second"
        asleep(admin)
        with working(q, lease=2 * HOUR):
            assert q.result(alone.id) == "first"
            asleep(admin, 2)
            assert q.result(quick.enqueue().id) == "first"
            asleep(admin, 2)
            assert other_schema.result(quick_too.enqueue().id) == "second"


@pytest.mark.usefixtures("sleepy")
@pytest.mark.parametrize("times", [3])
def test_a_lost_listen_connection_comes_back_and_looks(q: PgQueue, admin: psycopg.Connection, times: int) -> None:
    @q.task
    async def quick(n: int) -> int:
        return n

    with working(q, lease=2 * HOUR):
        for n in range(times):
            asleep(admin)
            # Enqueued unnoticed: no gate is held while the worker is deaf. Committed at once: no poll helps here.
            with psycopg.connect(q.dsn or "", autocommit=True) as quiet:
                ended = value(
                    admin,
                    """select pid from pg_stat_activity
                       where application_name = 'pgqueue listen' and datname = current_database()""",
                )
                assert value(admin, "select pg_terminate_backend(%s, 5000)", ended)
                unheard = quick.using(quiet).enqueue(n)
            assert q.result(unheard.id) == n
            asleep(admin)
            assert q.result(quick.enqueue(-n).id) == -n


@pytest.mark.usefixtures("sleepy")
def test_a_busy_a_full_or_a_paused_queue_does_not_make_another_deaf(q: PgQueue, admin: psycopg.Connection) -> None:
    running, go = threading.Event(), threading.Event()

    @q.task(queue="full")
    def blocks() -> None:
        running.set()
        awaited(go)

    @q.task(queue="paused")
    def waits() -> None: ...

    @q.task(queue="idle")
    async def quick(n: int) -> int:
        return n

    with working(q, {"full": 1, "paused": 1, "idle": 1}, lease=2 * HOUR):
        asleep(admin, 3)
        q.pause("paused")
        blocks.enqueue_many([()] * 3)
        waits.enqueue_many([()] * 3)
        awaited(running)
        for n in range(4):
            asleep(admin, 1)  # two gates were let go of: there is work
            assert q.result(quick.enqueue(n).id) == n
        go.set()


def test_a_busy_worker_lets_go_of_the_gate(q: PgQueue, admin: psycopg.Connection) -> None:
    """So that enqueuing costs no NOTIFY in a busy system."""
    running, go = threading.Event(), threading.Event()

    @q.task
    def blocks() -> None:
        running.set()
        awaited(go)

    with working(q, {"default": 1}):
        asleep(admin)
        blocks.enqueue_many([()] * 3)
        awaited(running)
        until(admin, _GATES, 0)
        go.set()
        asleep(admin)


def test_without_a_listen_connection_it_polls(q: PgQueue, admin: psycopg.Connection, fresh_db: str) -> None:
    behind_a_pooler = PgQueue(fresh_db, pooled=True)

    @behind_a_pooler.task
    async def quick(n: int) -> int:
        return n

    with working(behind_a_pooler):
        for n in range(2):
            assert behind_a_pooler.result(quick.enqueue(n).id) == n
        sessions = "select count(*) from pg_stat_activity where datname = current_database() and application_name = %s"
        assert value(admin, sessions, "pgqueue listen") == 0
        assert value(admin, sessions, "pgqueue claim") == 1
    behind_a_pooler.close()


def test_where_the_direct_connection_leads_to_a_pooler_it_polls(
    fresh_db: str, admin: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(Pooler(fresh_db, "dropped")) as between:
        q = PgQueue(between.dsn, pooled=True, direct_dsn=between.dsn)

        @q.task
        async def quick(n: int) -> int:
            return n

        with working(q):
            for n in range(2):
                assert q.result(quick.enqueue(n).id) == n
            assert "direct_dsn" in caplog.text
            assert "leads to a pooler: polling instead of LISTEN" in caplog.text
            until(admin, _GATES, 0)
        assert b"advisory" not in between.sent
        q.close()


def test_scheduled_jobs_start_when_they_are_due_and_not_before(q: PgQueue, admin: psycopg.Connection) -> None:
    @q.task
    async def quick() -> None: ...

    now = datetime.now(UTC)
    ids = [
        quick.using(delay=0.3).enqueue().id,
        quick.using(delay=timedelta(seconds=0.6)).enqueue().id,
        quick.using(scheduled_at=now + timedelta(seconds=0.9)).enqueue().id,
        quick.using(scheduled_at=now - timedelta(days=1)).enqueue().id,
    ]
    far = quick.using(delay=3600).enqueue().id
    with working(q):
        jobs = [q.wait(id) for id in ids]

    assert all(job.started_at is not None and job.started_at >= job.scheduled_at for job in jobs)
    assert q.job(far).state is State.SCHEDULED
    assert value(admin, "select bool_and(started_at >= scheduled_at) from pgqueue.job where scheduled_at is not null")


@pytest.mark.usefixtures("sleepy")
def test_cancelling_is_heard_without_a_poll(q: PgQueue, admin: psycopg.Connection) -> None:
    running = threading.Event()

    @q.task
    async def long() -> None:
        running.set()
        await asyncio.Event().wait()

    with working(q, lease=2 * HOUR):
        id = long.enqueue().id
        awaited(running)
        asleep(admin)
        assert q.cancel(id) == "requested"
        assert q.wait(id, PATIENCE).state is State.CANCELLED


@pytest.mark.usefixtures("sleepy")
def test_pausing_and_resuming_are_heard_without_a_poll(q: PgQueue, admin: psycopg.Connection) -> None:
    @q.task
    async def quick() -> str:
        return "resumed"

    with working(q, lease=2 * HOUR):
        asleep(admin)
        q.pause("default")
        id = quick.enqueue().id
        until(admin, "select min(seen_at) > (select paused_at from pgqueue.queue) from pgqueue.worker")
        assert q.job(id).state is State.AVAILABLE
        q.resume("default")
        assert q.result(id) == "resumed"
