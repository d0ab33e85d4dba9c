"""Time-outs, cancel and stop: what an attempt sees of them, and what its job becomes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from uuid import UUID

import psycopg
import pytest

from pgqueue import AsyncContext, Cancel, Context, LeaseLost, PgQueue, Retry, State
from pgqueue.context import RunningJob
from pgqueue.core.job import Claimed
from pgqueue.extension import Here, Leftover, Lent
from tests.engine.kit import PATIENCE, awaited, done, errors_of, until, value, working

ONCE = Retry(max_attempts=1)


class Signals:
    """Events that a task and its test share."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.go = threading.Event()
        self.ended = threading.Event()


@pytest.fixture
def signals() -> Signals:
    return Signals()


def look_until(asked: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE * 100)):
        if asked():
            return
        pause.wait(0.01)
    raise AssertionError("was not asked to end")


def test_a_coroutine_that_takes_too_long_is_cancelled_and_fails(q: PgQueue, signals: Signals) -> None:
    @q.task(retry=ONCE, timeout=0.1)
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            signals.ended.set()

    with working(q):
        job = q.wait(slow.enqueue().id)

    assert signals.ended.is_set()
    assert (job.state, job.attempt) == (State.DISCARDED, 1)
    assert errors_of(job) == [("Timeout", "took longer than its time-out of 0.1 s")]


def test_the_jobs_own_timeout_wins_and_its_attempts_are_retried(q: PgQueue) -> None:
    @q.task(retry=Retry(max_attempts=2, cap=0), timeout=3600)
    async def slow() -> None:
        await asyncio.Event().wait()

    with working(q):
        job = q.wait(slow.using(timeout=0.05).enqueue().id)

    assert errors_of(job) == [("Timeout", "took longer than its time-out of 0.05 s")] * 2


def test_a_function_that_takes_too_long_keeps_its_slot_and_is_not_retried_before_it_ends(
    q: PgQueue, admin: psycopg.Connection, signals: Signals
) -> None:
    attempts: list[int] = []

    @q.task(retry=Retry(max_attempts=2, cap=0), timeout=0.1)
    def slow(ctx: Context) -> str:
        attempts.append(ctx.attempt)
        if ctx.attempt == 2:
            return "in time"
        signals.running.set()
        awaited(signals.go)
        ctx.raise_if_cancelled()
        raise AssertionError("not reached")

    @q.task(queue="default")
    def waits_for_the_slot() -> None:
        signals.ended.set()

    with working(q, {"default": 1, "other": 1}):
        first = slow.enqueue()
        awaited(signals.running)
        second = waits_for_the_slot.enqueue()
        # Several heartbeats later: the time-out has struck long ago.
        seen = value(admin, "select max(seen_at) from pgqueue.worker")
        until(admin, "select max(seen_at) > %s + interval '3 seconds' from pgqueue.worker", seen)
        assert q.job(first.id).state is State.RUNNING
        assert not signals.ended.is_set()
        assert attempts == [1]
        signals.go.set()
        job, _ = done(q, first.id, second.id)

    assert (job.state, job.result, job.attempt) == (State.COMPLETED, "in time", 2)
    assert errors_of(job) == [("Timeout", "took longer than its time-out of 0.1 s")]


@pytest.mark.parametrize("call", ["raise_if_cancelled", "connection"])
def test_after_the_timeout_the_context_of_a_function_raises(q: PgQueue, signals: Signals, call: str) -> None:
    raised: list[BaseException] = []

    @q.task(retry=ONCE, timeout=0.05)
    def slow(ctx: Context) -> None:
        try:
            look_until(lambda: _raises(ctx))
            if call == "connection":
                with ctx.connection():
                    pass
            else:
                ctx.raise_if_cancelled()
        except Cancel as error:
            raised.append(error)
            raise

    def _raises(ctx: Context) -> bool:
        try:
            ctx.raise_if_cancelled()
        except Cancel:
            return True
        return False

    with working(q):
        job = q.wait(slow.enqueue().id)

    assert len(raised) == 1
    assert [type for type, _ in errors_of(job)] == ["Timeout"]


def test_what_succeeds_after_its_timeout_has_succeeded(q: PgQueue, signals: Signals) -> None:
    @q.task(timeout=0.05)
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "saved what I had"
        return "never"

    with working(q):
        job = q.wait(stubborn.enqueue().id)

    assert (job.state, job.result, job.errors) == (State.COMPLETED, "saved what I had", [])


@pytest.mark.parametrize(("verb", "state"), [("cancel", State.CANCELLED), ("stop", State.STOPPED)])
def test_a_job_that_waits_ends_at_once_and_never_runs(q: PgQueue, verb: str, state: State) -> None:
    ran = threading.Event()

    @q.task
    def never() -> None:
        ran.set()

    @q.task
    def after() -> None: ...

    id = never.enqueue().id
    assert getattr(q, verb)(id, reason="changed my mind") == state
    assert getattr(q, verb)(id) == f"already {state}"
    with working(q, {"default": 1}):
        q.wait(after.enqueue().id)

    assert not ran.is_set()
    assert [message for _, message in errors_of(q.job(id))] == ["changed my mind"]


@pytest.mark.parametrize(("verb", "state"), [("cancel", State.CANCELLED), ("stop", State.STOPPED)])
def test_a_running_coroutine_is_cancelled(q: PgQueue, signals: Signals, verb: str, state: State) -> None:
    seen: list[tuple[bool, bool]] = []

    @q.task
    async def long(ctx: AsyncContext) -> None:
        signals.running.set()
        try:
            await asyncio.Event().wait()
        finally:
            seen.append((ctx.cancel_requested, ctx.stop_requested))

    with working(q):
        id = long.enqueue().id
        awaited(signals.running)
        assert getattr(q, verb)(id) == "requested"
        job = q.wait(id)

    assert (job.state, job.attempt, job.request) == (state, 0, None)
    assert seen == [(verb == "cancel", verb == "stop")]


@pytest.mark.parametrize(("verb", "state"), [("cancel", State.CANCELLED), ("stop", State.STOPPED)])
def test_a_running_function_sees_that_it_should_end(q: PgQueue, signals: Signals, verb: str, state: State) -> None:
    @q.task
    def long(ctx: Context) -> None:
        signals.running.set()
        look_until(lambda: ctx.cancel_requested or ctx.stop_requested)
        ctx.raise_if_cancelled()

    with working(q):
        id = long.enqueue().id
        awaited(signals.running)
        assert getattr(q, verb)(id) == "requested"
        job = q.wait(id)

    assert job.state is state


@pytest.mark.parametrize("verb", ["cancel", "stop"])
def test_an_attempt_that_succeeds_all_the_same_ends_completed(q: PgQueue, signals: Signals, verb: str) -> None:
    @q.task
    def long(ctx: Context) -> str:
        signals.running.set()
        look_until(lambda: ctx.cancel_requested or ctx.stop_requested)
        return "done"

    @q.task
    async def along(ctx: AsyncContext) -> str:
        signals.ended.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            assert ctx.cancel_requested or ctx.stop_requested
        return "done"

    with working(q):
        first, second = long.enqueue().id, along.enqueue().id
        awaited(signals.running)
        awaited(signals.ended)
        assert [getattr(q, verb)(id) for id in (first, second)] == ["requested"] * 2
        jobs = done(q, first, second)

    assert [(job.state, job.result) for job in jobs] == [(State.COMPLETED, "done")] * 2


def test_a_cancelled_attempt_that_fails_is_not_retried(q: PgQueue, signals: Signals) -> None:
    @q.task(retry=Retry(cap=0))
    def long(ctx: Context) -> None:
        signals.running.set()
        look_until(lambda: ctx.cancel_requested)
        raise OSError("by the way")

    with working(q):
        id = long.enqueue().id
        awaited(signals.running)
        q.cancel(id)
        job = q.wait(id)

    assert job.state is State.CANCELLED
    assert len(job.errors) == 1


@pytest.mark.parametrize(("verb", "state"), [("cancel", State.CANCELLED), ("stop", State.STOPPED)])
def test_a_claimed_job_that_has_not_started_ends_without_running(
    q: PgQueue, admin: psycopg.Connection, signals: Signals, verb: str, state: State
) -> None:
    ran: list[int] = []

    @q.task
    def quick(n: int) -> None:
        ran.append(n)
        if n == 100:
            signals.running.set()
            awaited(signals.go)

    # Short jobs make the worker claim ahead; the one in their middle then blocks the only slot.
    jobs = quick.enqueue_many([(n,) for n in range(2000)])
    with working(q, {"default": 1}):
        awaited(signals.running)
        held = until(
            admin,
            """select max(u) from pgqueue.lease, unnest(ids) u
               where u > (select id from pgqueue.job where args = '{"n": 100}')""",
        )
        assert isinstance(held, int)
        assert getattr(q, verb)(held) == "requested"
        assert q.wait(held).state is state
        signals.go.set()
        until(admin, "select count(*) = 2000 from pgqueue.job where status > 0")

    assert held - jobs[0].id not in ran
    assert sorted([*ran, held - jobs[0].id]) == list(range(2000))


def test_a_coroutine_that_swallows_its_cancellation_is_not_the_end_of_the_others(q: PgQueue, signals: Signals) -> None:
    @q.task(retry=ONCE)
    async def deaf() -> None:
        signals.running.set()
        for _ in range(3):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                signals.ended.set()
                while not signals.go.is_set():  # noqa: ASYNC110 - set by another thread
                    await asyncio.sleep(0.01)
                raise ValueError("at last") from None

    @q.task
    async def other() -> str:
        return "fine"

    with working(q, {"default": 2}):
        id = deaf.enqueue().id
        awaited(signals.running)
        q.cancel(id)
        awaited(signals.ended)
        assert q.result(other.enqueue().id) == "fine"
        assert q.job(id).state is State.RUNNING
        signals.go.set()
        assert q.wait(id).state is State.CANCELLED
        assert q.result(other.enqueue().id) == "fine"


def test_a_coroutine_that_cancels_itself_fails_and_its_cancellation_hits_nobody_else(q: PgQueue) -> None:
    @q.task(retry=ONCE)
    async def waits() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    @q.task(retry=ONCE)
    async def returns() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "cancelled after I am gone"

    @q.task(retry=ONCE)
    async def innocent() -> str:
        await asyncio.sleep(0)
        return "fine"

    # Many, so that they are claimed ahead and follow each other in one asyncio task.
    ids: dict[object, list[int]] = {}
    for _ in range(150):
        for task in (returns, innocent, waits):
            ids.setdefault(task, []).append(task.enqueue().id)
    with working(q, {"default": 1}):
        cancelled = done(q, *ids[waits])
        others = done(q, *ids[returns], *ids[innocent])

    assert {job.state for job in cancelled} == {State.DISCARDED}
    assert {type for job in cancelled for type, _ in errors_of(job)} == {"asyncio.exceptions.CancelledError"}
    assert {job.state for job in others} == {State.COMPLETED}


def test_lost_leases_are_told_apart_from_cancellations() -> None:
    class Lost:
        reason = "lost"

    class Asked:
        reason = "stop"

    class Nobody:
        leftover: Leftover | None = None
        lent: Lent | None = None

    claimed = Claimed(
        id=1, claim=0, kind="k", args="{}", metadata=None, attempt=0, max_attempts=None, crashes=0, timeout=None,
        expires_at=None, tenant=None, priority=0,
    )  # fmt: skip
    here = Here(job=claimed, lease=1, install=UUID(int=0), schema="pgqueue", keeper=Nobody())
    job = RunningJob(id=1, kind="k", queue="q", attempt=1, priority=0, tenant=None, metadata={})
    with pytest.raises(LeaseLost):
        Context(job, Lost(), here, lend=lambda: psycopg.connect()).raise_if_cancelled()
    with pytest.raises(Cancel, match="stop"):
        Context(job, Asked(), here, lend=lambda: psycopg.connect()).raise_if_cancelled()


def test_a_shutdown_is_seen_and_costs_no_attempt(q: PgQueue, admin: psycopg.Connection, signals: Signals) -> None:
    seen: list[bool] = []

    @q.task
    def long(ctx: Context) -> None:
        signals.running.set()
        look_until(lambda: ctx.stop_requested)
        seen.append(True)
        ctx.raise_if_cancelled()

    @q.task
    async def along() -> None:
        signals.ended.set()
        await asyncio.Event().wait()

    with working(q, grace=0):
        ids = [long.enqueue().id, along.enqueue().id]
        awaited(signals.running)
        awaited(signals.ended)

    assert seen == [True]
    rows = admin.execute(
        "select state, attempt, crashes, errors from pgqueue.jobs where id = any(%s)", [ids]
    ).fetchall()
    assert rows == [("available", 0, 0, None)] * 2
    assert value(admin, "select count(*) from pgqueue.lease") == 0
