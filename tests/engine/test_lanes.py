"""What runs next, and how much at once: concurrency, order, kinds, pauses, and jobs that do not see each other."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time

import psycopg
import pytest

from pgqueue import AsyncContext, Context, PgQueue, Retry, State
from pgqueue.engine import marks
from tests.engine.kit import awaited, done, errors_of, until, value, working


class Gauge:
    """Counts how many are inside at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.inside = 0
        self.most = 0
        self.total = 0

    def __enter__(self) -> None:
        with self._lock:
            self.inside += 1
            self.total += 1
            self.most = max(self.most, self.inside)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self.inside -= 1


def test_a_queue_never_runs_more_than_its_limit_whatever_executors_its_tasks_need(
    q: PgQueue, admin: psycopg.Connection
) -> None:
    one, other = Gauge(), Gauge()

    @q.task(queue="one")
    async def in_loop(n: int) -> None:
        with one:
            await asyncio.sleep(0.001 * (n % 3))

    @q.task(queue="one")
    def in_thread(n: int) -> None:
        with one:
            time.sleep(0.001 * (n % 3))

    @q.task(queue="other")
    async def elsewhere(n: int) -> None:
        with other:
            await asyncio.sleep(0.001)

    for start in range(0, 300, 10):
        rows = [(n,) for n in range(start, start + 10)]
        for task in (in_loop, in_thread, elsewhere):
            task.enqueue_many(rows)
    with working(q, {"one": 3, "other": 2}):
        until(admin, "select count(*) = 900 from pgqueue.job where status = 1")

    assert (one.total, one.most, one.inside) == (600, 3, 0)
    assert (other.total, other.most, other.inside) == (300, 2, 0)
    assert value(admin, "select count(*) from pgqueue.lease") == 0


def test_higher_priorities_run_first_and_equal_ones_as_enqueued(q: PgQueue, admin: psycopg.Connection) -> None:
    order: list[int] = []

    @q.task
    async def note(n: int) -> None:
        order.append(n)

    for n, priority in enumerate([0, 5, -3, 5, 0, 32767, -32768, -3]):
        note.using(priority=priority).enqueue(n)
    with working(q, {"default": 1}):
        until(admin, "select count(*) = 8 from pgqueue.job where status = 1")

    assert order == [5, 1, 3, 0, 4, 2, 7, 6]


def test_a_later_job_of_higher_priority_passes_those_not_claimed_yet(
    q: PgQueue, admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The time for which a worker is content with the priorities that it knows.
    monkeypatch.setattr(marks, "FULL_EVERY", 0.0)
    monkeypatch.setattr(marks, "FULL_SHARE", 0)
    order: list[int] = []
    running, go = threading.Event(), threading.Event()

    @q.task
    def note(n: int) -> None:
        order.append(n)
        running.set()
        awaited(go)

    note.enqueue_many([(n,) for n in range(3)])
    with working(q, {"default": 1}):
        awaited(running)
        note.using(priority=1).enqueue(99)
        go.set()
        until(admin, "select count(*) = 4 from pgqueue.job where status = 1")

    assert order == [0, 99, 1, 2]


def test_a_job_of_a_new_priority_does_not_wait_until_a_long_queue_is_empty(
    q: PgQueue, admin: psycopg.Connection
) -> None:
    order: list[int] = []
    running = threading.Event()

    @q.task
    async def note(n: int) -> None:
        order.append(n)
        if n == 50:
            running.set()
        await asyncio.sleep(0.002)

    note.enqueue_many([(n,) for n in range(2000)])
    with working(q, {"default": 1}):
        awaited(running)
        urgent = note.using(priority=7).enqueue(-1)
        q.wait(urgent.id)

    assert len(order) < 1500


def test_kinds_without_a_task_here_are_left_alone(q: PgQueue, admin: psycopg.Connection) -> None:
    @q.task
    def known() -> str:
        return "ran"

    strangers = [q.enqueue("of.another.release", {"n": n}).id for n in range(3)]
    with working(q):
        assert q.result(known.enqueue().id) == "ran"
        assert q.result(known.enqueue().id) == "ran"

    rows = admin.execute("select state, attempt, errors from pgqueue.jobs where id = any(%s)", [strangers]).fetchall()
    assert rows == [("available", 0, None)] * 3


def test_a_worker_takes_from_its_queues_only(q: PgQueue) -> None:
    @q.task(queue="mine")
    def mine() -> None: ...

    @q.task(queue="theirs")
    def theirs() -> None: ...

    other = theirs.enqueue().id
    with working(q, "mine"):
        q.wait(mine.enqueue().id)

    assert q.job(other).state is State.AVAILABLE


def test_a_paused_queue_gives_its_claimed_jobs_back_and_goes_on_when_resumed(
    q: PgQueue, admin: psycopg.Connection
) -> None:
    running, go = threading.Event(), threading.Event()
    ran: list[int] = []

    @q.task
    def quick(n: int) -> None:
        ran.append(n)
        if n == 100:
            running.set()
            awaited(go)

    quick.enqueue_many([(n,) for n in range(1500)])
    with working(q, {"default": 1}):
        awaited(running)
        until(admin, "select count(*) > 1 from pgqueue.lease, unnest(ids) where claims <> '{}'")
        assert q.pause("default")
        # All that it has not started goes back: the leases end, but for the one with the job that runs.
        until(
            admin,
            """select count(*) = 1 from pgqueue.jobs where state = 'running'""",
        )
        go.set()
        until(admin, "select count(*) = 0 from pgqueue.jobs where state = 'running'")
        assert ran == list(range(101))
        assert q.resume("default")
        until(admin, "select count(*) = 1500 from pgqueue.job where status = 1")

    assert ran == list(range(1500))
    assert value(admin, "select max(attempt) + max(crashes) from pgqueue.job") == 0


def test_a_queue_paused_before_the_start_is_not_worked(q: PgQueue) -> None:
    @q.task(queue="off")
    def off() -> str:
        return "ran"

    @q.task(queue="on")
    def on() -> str:
        return "ran"

    q.pause("off")
    waits = off.enqueue().id
    with working(q, ["off", "on"]):
        assert q.result(on.enqueue().id) == "ran"
        assert q.job(waits).state is State.AVAILABLE
        q.resume("off")
        assert q.result(waits) == "ran"


leaky: contextvars.ContextVar[int] = contextvars.ContextVar("leaky", default=0)


@pytest.mark.parametrize("limit", [1, 4])
def test_context_variables_do_not_leak_from_job_to_job(q: PgQueue, limit: int) -> None:
    @q.task
    async def in_loop(n: int) -> int:
        seen = leaky.get()
        leaky.set(n)
        await asyncio.sleep(0)
        return seen

    @q.task
    def in_thread(n: int) -> int:
        seen = leaky.get()
        leaky.set(n)
        return seen

    @q.task
    async def swallows(n: int) -> int:
        seen = leaky.get()
        leaky.set(n)
        raise ValueError(seen)

    ids = [task.enqueue(n).id for n in range(1, 10) for task in (in_loop, in_thread)]
    bad = [swallows.using(max_attempts=1).enqueue(n).id for n in range(1, 4)]
    with working(q, {"default": limit}):
        assert [job.result for job in done(q, *ids)] == [0] * 18
        assert {message for job in done(q, *bad) for _, message in errors_of(job)} == {"0"}


class Wicked:
    def __eq__(self, other: object) -> bool:
        raise ValueError("not to be compared")

    __hash__ = None  # type: ignore[assignment]


def test_a_context_variable_whose_value_can_not_be_compared_harms_nobody(q: PgQueue) -> None:
    variable: contextvars.ContextVar[object] = contextvars.ContextVar("wicked")

    @q.task
    async def sets(n: int) -> None:
        assert variable.get(None) is None
        variable.set(Wicked())

    jobs = sets.enqueue_many([(n,) for n in range(200)])
    with working(q, {"default": 2}):
        assert all(job.state is State.COMPLETED for job in done(q, *[job.id for job in jobs]))


def test_asyncio_tasks_that_a_job_leaves_behind_run_on_without_disturbing_others(q: PgQueue) -> None:
    left: list[asyncio.Task[None]] = []
    ended = threading.Event()

    async def straggler() -> None:
        await asyncio.sleep(0.01)
        ended.set()

    @q.task
    async def leaves() -> str:
        left.append(asyncio.create_task(straggler()))
        return "gone"

    @q.task
    async def after() -> str:
        await asyncio.sleep(0)
        return "fine"

    with working(q, {"default": 1}):
        assert q.result(leaves.enqueue().id) == "gone"
        assert q.result(after.enqueue().id) == "fine"
        awaited(ended)


def test_a_running_coroutine_is_not_lost_to_the_garbage_collector(q: PgQueue) -> None:
    running = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    futures: list[int] = []

    @q.task
    async def waits() -> str:
        loop = asyncio.get_running_loop()
        loops.append(loop)
        future: asyncio.Future[str] = loop.create_future()
        futures.append(id(future))
        loop.call_later(0.2, future.set_result, "still here")
        running.set()
        return await future

    with working(q):
        job = waits.enqueue().id
        awaited(running)
        for _ in range(5):
            gc.collect()
        assert q.result(job) == "still here"


def test_a_thread_and_a_coroutine_see_their_own_job(q: PgQueue) -> None:
    @q.task
    def in_thread(ctx: Context, n: int) -> list[int]:
        time.sleep(0.002)
        return [ctx.job.id, n]

    @q.task
    async def in_loop(ctx: AsyncContext, n: int) -> list[int]:
        await asyncio.sleep(0.002)
        return [ctx.job.id, n]

    jobs = [(task.enqueue(n).id, n) for n in range(20) for task in (in_thread, in_loop)]
    with working(q, {"default": 8}):
        for id, n in jobs:
            assert q.result(id) == [id, n]


def test_jobs_that_snooze_or_fail_leave_their_slot_to_others(q: PgQueue, admin: psycopg.Connection) -> None:
    @q.task(retry=Retry(max_attempts=3, base=1000))
    def fails() -> None:
        raise OSError("later")

    @q.task
    def quick() -> None: ...

    fails.enqueue_many([()] * 30)
    with working(q, {"default": 1}):
        q.wait(quick.enqueue().id)
        until(admin, "select count(*) = 30 from pgqueue.jobs where state = 'retryable'")


def test_a_job_row_that_somebody_holds_locked_delays_only_its_own_end(
    q: PgQueue, admin: psycopg.Connection, fresh_db: str
) -> None:
    """The lock of a transaction that a timed-out thread or a forgotten session left open (R2)."""
    running, go = threading.Event(), threading.Event()

    @q.task
    def quick(n: int) -> int | None:
        if n == 0:
            running.set()
            awaited(go)
            return -1
        return n if n % 2 else None

    with working(q, {"default": 4}), psycopg.connect(fresh_db) as forgotten:
        held = quick.enqueue(0).id
        awaited(running)
        forgotten.execute("select from pgqueue.job where id = %s for update", [held])
        go.set()
        ids = [quick.enqueue(n).id for n in range(1, 200)]
        until(admin, "select count(*) = 199 from pgqueue.job where status = 1 and id = any(%s)", ids)
        assert q.job(held).state is State.RUNNING
        forgotten.rollback()
        job = q.wait(held)

    assert (job.state, job.attempt, job.crashes, job.result) == (State.COMPLETED, 1, 0, -1)
    assert value(admin, "select count(*) from pgqueue.lease") == 0


def test_a_locked_row_of_a_claimed_job_does_not_stop_a_pause(
    q: PgQueue, admin: psycopg.Connection, fresh_db: str
) -> None:
    running, go = threading.Event(), threading.Event()

    @q.task
    def quick(n: int) -> None:
        if n == 100:
            running.set()
            awaited(go)

    @q.task(queue="other")
    def elsewhere() -> None: ...

    quick.enqueue_many([(n,) for n in range(1000)])
    with working(q, {"default": 1, "other": 1}), psycopg.connect(fresh_db) as forgotten:
        awaited(running)
        held = until(
            admin,
            """select max(u) from pgqueue.lease, unnest(ids) u
            where u > (select id from pgqueue.job where args = '{"n": 100}')""",
        )
        forgotten.execute("select from pgqueue.job where id = %s for update", [held])
        q.pause("default")
        # All others go back; besides the locked one only the one that runs is left.
        until(admin, "select count(*) = 2 from pgqueue.jobs where state = 'running'")
        # Many outcomes of another queue are written meanwhile.
        for _ in range(10):
            assert q.wait(elsewhere.enqueue().id, 5).state is State.COMPLETED
        forgotten.rollback()
        go.set()
        q.resume("default")
        until(admin, "select count(*) = 1000 from pgqueue.job where kind = 'quick' and status = 1")
