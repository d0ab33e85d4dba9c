"""How attempts end: results, failures and signals, and what the job becomes because of it."""

from __future__ import annotations

import asyncio
import sys
import threading
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from pgqueue import AsyncContext, Cancel, Context, Discard, PgQueue, Retry, RetryAfter, Snooze, State
from pgqueue.context import current_context
from pgqueue.engine import completer
from tests.engine.kit import awaited, done, errors_of, run_alone, until, value, working

ONCE = Retry(max_attempts=1)
AT_ONCE = Retry(max_attempts=3, cap=0)


def test_a_coroutine_and_a_function_run_and_their_results_are_kept_as_json(q: PgQueue) -> None:
    @q.task
    async def in_loop(n: int) -> dict[str, object]:
        await asyncio.sleep(0)
        return {"n": n, "list": [1, None, "ä"], "thread": threading.current_thread().name}

    @q.task
    def in_thread(n: int) -> dict[str, object]:
        return {"n": n, "thread": threading.current_thread().name}

    first, second = in_loop.enqueue(1), in_thread.enqueue(2)
    with working(q):
        looped, threaded = q.result(first.id), q.result(second.id)

    assert looped == {"n": 1, "list": [1, None, "ä"], "thread": "pgqueue-worker"}
    assert isinstance(threaded, dict)
    assert threaded["n"] == 2
    assert threaded["thread"] != "pgqueue-worker"


def test_nothing_returned_is_no_result(q: PgQueue) -> None:
    @q.task
    def quiet() -> None: ...

    job = run_alone(q, quiet.enqueue().id)

    assert (job.state, job.result, job.attempt, job.errors) == (State.COMPLETED, None, 1, [])
    assert job.started_at is not None
    assert job.finalized_at is not None
    assert job.created_at <= job.started_at <= job.finalized_at
    assert job.duration == job.finalized_at - job.started_at


def test_every_failed_attempt_is_recorded_with_the_traceback_of_the_users_code_only(q: PgQueue) -> None:
    @q.task(retry=AT_ONCE)
    async def fails(ctx: AsyncContext) -> None:
        raise LookupError(f"no such thing {ctx.attempt}")

    job = run_alone(q, fails.enqueue().id)

    assert job.state is State.DISCARDED
    assert job.attempt == 3
    assert errors_of(job) == [("LookupError", f"no such thing {n}") for n in (1, 2, 3)]
    assert [error["attempt"] for error in job.errors] == [1, 2, 3]
    assert [error["state"] for error in job.errors] == ["retryable", "retryable", "discarded"]
    for error in job.errors:
        text = str(error["traceback"])
        assert "raise LookupError" in text
        assert text.startswith("Traceback (most recent call last):")
        assert "pgqueue/engine" not in text


def test_the_traceback_of_a_function_in_a_thread_shows_its_cause_and_not_our_frames(q: PgQueue) -> None:
    @q.task(retry=ONCE)
    def fails() -> None:
        try:
            int("x")
        except ValueError as error:
            raise RuntimeError("outer") from error

    (error,) = run_alone(q, fails.enqueue().id).errors

    assert "invalid literal" in str(error["traceback"])
    assert "direct cause" in str(error["traceback"])
    assert "pgqueue/engine" not in str(error["traceback"])


def test_a_job_that_fails_at_first_succeeds_later(q: PgQueue) -> None:
    @q.task(retry=Retry(max_attempts=5, base=1, cap=0.05, jitter=0))
    def third_time_lucky(ctx: Context) -> int:
        if ctx.attempt < 3:
            raise OSError("not yet")
        return ctx.attempt

    job = run_alone(q, third_time_lucky.enqueue().id)

    assert (job.state, job.result, job.attempt) == (State.COMPLETED, 3, 3)
    assert errors_of(job) == [("OSError", "not yet")] * 2


def test_a_failed_job_waits_as_long_as_its_retry_policy_says(q: PgQueue, admin: psycopg.Connection) -> None:
    @q.task(retry=Retry(max_attempts=5, base=40, jitter=0))
    def fails() -> None:
        raise OSError("no")

    with working(q):
        id = fails.enqueue().id
        until(admin, "select state = 'retryable' from pgqueue.jobs where id = %s", id)

    job = q.job(id)
    assert job.attempt == 1
    assert timedelta(seconds=39) < job.scheduled_at - datetime.now(UTC) <= timedelta(seconds=40)


def test_the_jobs_own_number_of_attempts_wins_over_its_tasks(q: PgQueue) -> None:
    @q.task(retry=AT_ONCE)
    def fails() -> None:
        raise OSError("no")

    job = run_alone(q, fails.using(max_attempts=2).enqueue().id)

    assert (job.state, len(job.errors)) == (State.DISCARDED, 2)


def test_snoozing_costs_no_attempt(q: PgQueue) -> None:
    naps: list[int] = []

    @q.task(retry=ONCE)
    def sleepy(ctx: Context) -> int:
        naps.append(ctx.attempt)
        if len(naps) < 4:
            raise Snooze(0.01)
        return ctx.attempt

    job = run_alone(q, sleepy.enqueue().id)

    assert naps == [1, 1, 1, 1]
    assert (job.state, job.result, job.attempt, job.errors) == (State.COMPLETED, 1, 1, [])


def test_a_task_can_end_its_job_and_say_why(q: PgQueue) -> None:
    @q.task
    def called_off() -> None:
        raise Cancel("customer left")

    @q.task
    async def hopeless() -> None:
        raise Discard("no such account")

    with working(q):
        cancelled, discarded = done(q, called_off.enqueue().id, hopeless.enqueue().id)

    assert (cancelled.state, errors_of(cancelled)) == (State.CANCELLED, [("Cancel", "customer left")])
    assert (discarded.state, errors_of(discarded)) == (State.DISCARDED, [("Discard", "no such account")])


def test_retry_after_replaces_the_delay_and_costs_an_attempt(q: PgQueue) -> None:
    @q.task(retry=Retry(max_attempts=2, base=1000, jitter=0))
    def busy() -> None:
        raise RetryAfter(0.01, "rate limited")

    job = run_alone(q, busy.enqueue().id)

    assert (job.state, job.attempt) == (State.DISCARDED, 2)
    assert [message for _, message in errors_of(job)] == ["rate limited"] * 2


@pytest.mark.parametrize(
    "result",
    ["nul \0", float("nan"), "x" * (2 << 20), "\ud800", {"a": object()}, 10**5000],
    ids=["NUL", "NaN", "2 MiB", "surrogate", "object", "digits"],
)
def test_a_result_that_cannot_be_stored_fails_that_job_only(q: PgQueue, result: object) -> None:
    @q.task(retry=ONCE)
    def returns(good: bool) -> object:
        return "good" if good else result

    ids = [returns.enqueue(good).id for good in (True, False, True)]
    with working(q):
        first, bad, last = done(q, *ids)

    assert (first.result, last.result) == ("good", "good")
    assert bad.state is State.DISCARDED
    assert bad.errors[0]["type"] == "pgqueue.errors.InvalidJob"
    assert str(bad.errors[0]["message"]).startswith("result")


def test_a_coroutine_whose_result_cannot_be_stored_fails(q: PgQueue) -> None:
    @q.task(retry=ONCE)
    async def returns() -> object:
        return {"when": object()}

    assert run_alone(q, returns.enqueue().id).state is State.DISCARDED


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("I will not say")


class Abyss(Exception):
    def __str__(self) -> str:
        raise SystemExit(7)


class HalfASnooze(Snooze):
    def __init__(self) -> None: ...  # never says how long


class HalfARetry(RetryAfter):
    def __init__(self) -> None: ...


class WrongSnooze(Snooze):
    def __init__(self) -> None:
        super().__init__(1)
        self.delay = "soon"  # type: ignore[assignment]


def deep() -> BaseException:
    error: BaseException = ValueError("root")
    for n in range(200):
        outer = ValueError(n)
        outer.__cause__ = error
        error = outer
    return error


NASTY: dict[str, BaseException] = {
    "str raises": Unspeakable(),
    "str exits": Abyss(),
    "SystemExit": SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "GeneratorExit": GeneratorExit(),
    "StopIteration": StopIteration(),
    "StopAsyncIteration": StopAsyncIteration(),
    "group": ExceptionGroup(
        "several", [ValueError(1), ExceptionGroup("more", [OSError("nul \0"), TypeError("\ud800")])]
    ),
    "base group": BaseExceptionGroup("bases", [SystemExit(1), KeyboardInterrupt()]),
    "50 MB": ValueError("x" * 50_000_000),
    "CancelledError": asyncio.CancelledError(),
    "surrogate": ValueError("half \udcff"),
    "NUL": ValueError("nul \0"),
    "NUL in a reason": Cancel("nul \0"),
    "surrogate in a reason": Discard("half \ud800"),
    "a reason that is no text": Discard(12),  # type: ignore[arg-type]
    "50 MB of reason": Cancel("x" * 50_000_000),
    "snooze without delay": HalfASnooze(),
    "snooze for a word": WrongSnooze(),
    "retry without delay": HalfARetry(),
    "deep": deep(),
    "argument that can't be shown": KeyError(Unspeakable()),
}


@pytest.mark.parametrize("executor", ["async", "thread"])
def test_no_exception_is_too_nasty_to_be_recorded_and_the_worker_lives_on(q: PgQueue, executor: str) -> None:
    @q.task(retry=ONCE)
    async def raises_async(name: str) -> None:
        raise NASTY[name]

    @q.task(retry=ONCE)
    def raises_thread(name: str) -> None:
        raise NASTY[name]

    @q.task
    def innocent() -> str:
        return "fine"

    task = raises_async if executor == "async" else raises_thread
    ids = {name: task.enqueue(name).id for name in NASTY}
    with working(q, {"default": 3}):
        found = {name: q.wait(id) for name, id in ids.items()}
        assert q.result(innocent.enqueue().id) == "fine"

    for name, job in found.items():
        assert job.state in (State.DISCARDED, State.CANCELLED), name
        assert len(job.errors) == 1, name
        assert len(str(job.errors[0])) < 200_000, name
        assert job.attempt <= 1, name


def test_arguments_that_no_longer_fit_the_signature_fail_that_job_only(q: PgQueue) -> None:
    ran: list[int] = []

    @q.task(retry=AT_ONCE)
    def add(n: int) -> None:
        ran.append(n)

    with psycopg.connect(q.dsn or "", autocommit=True) as old_release:
        bad = [
            value(old_release, "select pgqueue.enqueue('add', %s::text::jsonb, max_attempts => 1)", text)
            for text in ('{"number": 1}', "{}", '{"n": "one"}', '{"n": 1, "m": 2}', '{"n": 1.5}')
        ]
    good = add.enqueue(7)
    with working(q):
        q.wait(good.id)
        jobs = done(q, *[int(str(id)) for id in bad])

    assert ran == [7]
    for job in jobs:
        assert job.state is State.DISCARDED
        assert job.errors[0]["type"] == "pgqueue.errors.InvalidArguments"
        assert "add" in str(job.errors[0]["message"])


def test_a_date_that_python_cannot_hold_does_not_stop_the_queue(q: PgQueue, admin: psycopg.Connection) -> None:
    """Found at claim time, such a value would fail the whole batch, again and again, at the head of the queue."""

    @q.task
    def quick(n: int) -> int:
        return n

    odd = []
    for at in ("infinity", "294276-01-01", "-infinity", "4000-01-01 BC"):  # past the door, as only SQL of one's own can
        odd.append(quick.enqueue(1).id)
        admin.execute("update pgqueue.job set expires_at = %s::text::timestamptz where id = %s", [at, odd[-1]])
    plain = quick.enqueue(2)
    with working(q):
        assert q.result(plain.id) == 2
        until(admin, "select bool_and(status > 0) from pgqueue.job")

    rows = admin.execute("select id, status from pgqueue.job where id = any(%s) order by id", [odd]).fetchall()
    assert [status for _, status in rows] == [1, 1, 3, 3]


def test_current_context_is_that_of_the_running_job(q: PgQueue) -> None:
    @q.task
    async def in_loop() -> list[object]:
        ctx = current_context()
        return [type(ctx).__name__, ctx.job.id, ctx.attempt]

    @q.task
    def in_thread() -> list[object]:
        ctx = current_context()
        return [type(ctx).__name__, ctx.job.id, ctx.attempt]

    first, second = in_loop.enqueue(), in_thread.enqueue()
    with working(q):
        assert q.result(first.id) == ["AsyncContext", first.id, 1]
        assert q.result(second.id) == ["Context", second.id, 1]


def test_the_context_says_what_was_enqueued_and_lends_a_connection(q: PgQueue) -> None:
    @q.task(queue="import", priority=3)
    def look(ctx: Context) -> list[object]:
        with ctx.connection() as conn:
            alive = conn.execute("select 1").fetchone()
        return [ctx.job.kind, ctx.job.queue, ctx.job.priority, ctx.tenant, dict(ctx.properties), ctx.mode, alive]

    @q.task(queue="import")
    async def alook(ctx: AsyncContext) -> object:
        async with ctx.connection() as conn:
            return await (await conn.execute("select 2")).fetchone()

    first = look.using(tenant="acme", metadata={"trace": "abc"}).enqueue()
    with working(q, "import"):
        assert q.result(first.id) == ["look", "import", 3, "acme", {"trace": "abc"}, "worker", [1]]
        assert q.result(alook.enqueue().id) == [2]


def test_an_expired_job_is_discarded_and_does_not_run(q: PgQueue) -> None:
    ran = threading.Event()

    @q.task
    def late() -> None:
        ran.set()

    @q.task
    def in_time() -> str:
        return "ran"

    expired = late.using(expires_at=datetime.now(UTC) - timedelta(seconds=1)).enqueue()
    alive = in_time.using(expires_at=datetime.now(UTC) + timedelta(hours=1)).enqueue()
    with working(q):
        job = q.wait(expired.id)
        assert q.result(alive.id) == "ran"

    assert (job.state, job.attempt) == (State.DISCARDED, 0)
    assert errors_of(job) == [("Expired", "had not started when it expired")]
    assert not ran.is_set()


def test_large_results_are_written_in_several_statements(
    q: PgQueue, admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document over the limits of PostgreSQL would be refused for ever."""
    monkeypatch.setattr(completer, "BATCH_BYTES", 12_500)

    @q.task
    async def large(n: int) -> str:
        await together.wait()  # so that they all end at once
        return "x" * 5_000

    together = asyncio.Event()

    @q.task(queue="other")
    async def go() -> None:
        together.set()

    jobs = large.enqueue_many([(n,) for n in range(50)])
    with working(q, {"default": 50, "other": 1}):
        until(admin, "select (select count(*) from pgqueue.live_jobs where state = 'running') = 50")
        go.enqueue()
        assert {job.result for job in done(q, *[job.id for job in jobs])} == {"x" * 5_000}
    assert int(str(value(admin, "select count(*) from pgqueue.tally where kind = 'large'"))) >= 50 / 3


def test_a_forged_notification_costs_a_look_and_nothing_else(q: PgQueue, admin: psycopg.Connection) -> None:
    running, go = threading.Event(), threading.Event()

    @q.task
    def waits() -> str:
        running.set()
        awaited(go)
        return "done"

    job = waits.enqueue()
    with working(q):
        awaited(running)
        for channel in ("pgqueue.control", "pgqueue.ready"):
            for payload in ("9" * 5000, "-1", "", "\u0663", "no such queue", "resume", "1e9"):
                admin.execute("select pg_notify(%s, %s)", [channel, payload])
        go.set()
        assert q.result(job.id) == "done"
        assert q.result(waits.enqueue().id) == "done"


def test_an_exit_in_a_sub_task_of_a_coroutine_is_the_coroutines_failure(q: PgQueue) -> None:
    """asyncio lets it through to whoever runs the event loop."""

    @q.task(retry=ONCE)
    async def leaves() -> None:
        async def part() -> None:
            sys.exit(5)

        async with asyncio.TaskGroup() as group:
            group.create_task(part())

    @q.task(retry=ONCE)
    async def stops() -> str:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        return "went on"

    left, stopped = leaves.enqueue(), stops.enqueue()
    with working(q):
        assert errors_of(done(q, left.id)[0]) == [("SystemExit", "5")]
        assert q.result(stopped.id) == "went on"
        assert q.result(stops.enqueue().id) == "went on"


class Evasive(Exception):
    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]  # traceback asks for it
        raise SystemExit

    def __str__(self) -> str:
        raise KeyboardInterrupt


@pytest.mark.parametrize("executor", ["async", "thread"])
def test_an_exception_that_can_not_be_told_still_ends_its_attempt(q: PgQueue, executor: str) -> None:
    if executor == "async":

        @q.task(name="evades", retry=ONCE)
        async def aevades() -> None:
            raise Evasive
    else:

        @q.task(name="evades", retry=ONCE)
        def evades() -> None:
            raise Evasive

    job = run_alone(q, q.enqueue("evades").id)
    assert job.state is State.DISCARDED
    assert "Evasive" in str(job.errors[0]["type"])
    assert job.errors[0]["message"] == "(its message can't be had: KeyboardInterrupt)"
    assert job.errors[0]["traceback"] == "(its traceback can't be had: SystemExit)"


def test_a_job_deleted_while_it_runs_does_not_trouble_the_worker(q: PgQueue, admin: psycopg.Connection) -> None:
    running, go = threading.Event(), threading.Event()

    @q.task
    def doomed() -> None:
        running.set()
        awaited(go)

    @q.task
    def after() -> str:
        return "fine"

    with working(q):
        id = doomed.enqueue().id
        awaited(running)
        assert q.delete(id) == "already running"
        admin.execute("delete from pgqueue.job where id = %s", [id])
        go.set()
        assert q.result(after.enqueue().id) == "fine"
