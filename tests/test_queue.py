"""The queue object: both colours of every verb, in the caller's transaction and without one."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgqueue import JobFailed, JobNotFound, PgQueue, State, WaitTimeout
from pgqueue.core.draft import EnqueuedJob
from pgqueue.errors import ConfigError, InvalidArguments, InvalidConnection, InvalidJob
from pgqueue.queue import _pauses
from pgqueue.selection import Selection
from pgqueue.tasks.task import Call, Task

Conn = psycopg.Connection[tuple[object, ...]]
NEVER = 10**15


@pytest.fixture
def q(dsn: str) -> Iterator[PgQueue]:
    queue = PgQueue(dsn)

    @queue.task(queue="mail")
    def send(user_id: int, *, lang: str = "en") -> None: ...

    yield queue
    queue.close()


def count(conn: Conn) -> int:
    ((found,),) = conn.execute("select count(*) from pgqueue.job").fetchall()
    assert isinstance(found, int)
    return found


@pytest.mark.parametrize("owner", [PgQueue, Selection, Task, Call])
def test_every_verb_has_a_twin_with_the_same_signature_and_words(owner: type) -> None:
    odd = {"apool", "await_", "aclose"}
    names = {name for name in vars(owner) if not name.startswith("_")}
    pairs = [(name[1:], name) for name in names if name.startswith("a") and name[1:] in names and name not in odd]
    assert pairs
    pairs += [("wait", "await_")] if owner is PgQueue else []
    for sync, twin in pairs:
        one, other = getattr(owner, sync), getattr(owner, twin)
        assert inspect.iscoroutinefunction(other), twin
        assert inspect.signature(one) == inspect.signature(other), (sync, twin)
        if owner in (PgQueue, Selection):
            assert one.__doc__ == other.__doc__, (sync, twin)


def test_nothing_is_opened_before_it_is_needed() -> None:
    queue = PgQueue("postgresql://nobody@nowhere.invalid/nothing")
    queue.close()


def test_a_rolled_back_enqueue_never_happened(q: PgQueue, dsn: str, conn: Conn) -> None:
    with psycopg.connect(dsn) as mine:
        job = q.tasks["send"].using(mine).enqueue(1)
        assert q.job(job.id, conn=mine).state is State.AVAILABLE
        mine.rollback()
    assert count(conn) == 0


def test_many_jobs_keep_the_order_of_their_rows(q: PgQueue, conn: Conn) -> None:
    jobs = q.tasks["send"].using(conn).enqueue_many([(number,) for number in range(250)])
    assert [job.id for job in jobs] == sorted(job.id for job in jobs)
    args = [q.job(job.id, conn=conn).args["user_id"] for job in (jobs[0], jobs[99], jobs[100], jobs[249])]
    assert args == [0, 99, 100, 249]


def test_a_job_by_name_may_have_its_task_elsewhere(q: PgQueue, conn: Conn) -> None:
    job = q.enqueue(
        "billing.charge", {"order": 7}, conn=conn, queue="billing", tags=["big"], metadata={"source": "test"}
    )
    found = q.job(job.id, conn=conn)
    assert (found.kind, found.queue, found.args, found.tags) == ("billing.charge", "billing", {"order": 7}, ["big"])
    assert found.metadata == {"source": "test"}


def test_a_job_by_name_of_a_known_task_is_checked_against_it(q: PgQueue, conn: Conn) -> None:
    with pytest.raises(InvalidArguments, match="user_id"):
        q.enqueue("send", {"user": 7}, conn=conn)
    assert count(conn) == 0


REFUSED = {
    "an unknown argument": lambda q, conn: q.tasks["send"].using(conn).enqueue(1, language="de"),
    "a wrong type": lambda q, conn: q.tasks["send"].using(conn).enqueue("1"),
    "NaN": lambda q, conn: q.enqueue("x", {"a": float("nan")}, conn=conn),
    "a NUL": lambda q, conn: q.enqueue("x", {"a": "\x00"}, conn=conn),
    "a lone surrogate": lambda q, conn: q.enqueue("x", {"a": "\ud800"}, conn=conn),
    "depth": lambda q, conn: q.enqueue("x", {"a": nested(65)}, conn=conn),
    "size": lambda q, conn: q.enqueue("x", {"a": "x" * 2**20}, conn=conn),
    "a bad queue name": lambda q, conn: q.enqueue("x", {}, conn=conn, queue="my queue"),
    "a bad kind": lambda q, conn: q.enqueue("1x", {}, conn=conn),
    "a negative delay": lambda q, conn: q.enqueue("x", {}, conn=conn, delay=-1),
    "a naive datetime": lambda q, conn: q.enqueue("x", {}, conn=conn, scheduled_at=datetime(2030, 1, 1)),
    "an unknown option": lambda q, conn: q.enqueue("x", {}, conn=conn, prio=1),
    "something that is no connection": lambda q, conn: q.enqueue("x", {}, conn=object()),
}


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_is_refused_before_anything_is_sent(q: PgQueue, dsn: str, what: str) -> None:
    with psycopg.connect(dsn) as mine:
        mine.execute("create table public.seen (what text)")
        with pytest.raises((InvalidArguments, InvalidJob, InvalidConnection)) as refusal:
            REFUSED[what](q, mine)
        assert "\n" not in str(refusal.value)
        mine.execute("insert into public.seen values ('still usable')")
        assert q.enqueue("x", {}, conn=mine).inserted
        mine.rollback()


def test_a_closed_connection_is_refused(q: PgQueue, dsn: str) -> None:
    closed = psycopg.connect(dsn)
    closed.close()
    with pytest.raises(InvalidConnection, match="closed"):
        q.tasks["send"].using(closed).enqueue(1)


async def test_the_wrong_colour_of_connection_is_refused(q: PgQueue, conn: Conn, dsn: str) -> None:
    with pytest.raises(InvalidConnection, match="sync connection"):
        await q.tasks["send"].using(conn).aenqueue(1)
    async with await psycopg.AsyncConnection.connect(dsn) as aconn:
        with pytest.raises(InvalidConnection, match="async connection"):
            q.tasks["send"].using(aconn).enqueue(1)


async def test_the_async_verbs_do_what_the_sync_ones_do(q: PgQueue, dsn: str) -> None:
    job = await q.tasks["send"].aenqueue(1)
    assert (await q.ajob(job.id)).state is State.AVAILABLE
    assert [found.id for found in await q.ajobs(kind="send")] == [job.id]
    assert await q.acancel(job.id) == "cancelled"
    assert await q.where(kind="send").aretry() == {"available": 1}
    assert (await q.astats())["available"] == 1
    await q.aclose()


def test_a_worker_option_that_does_not_exist_is_refused_with_the_nearest_one(q: PgQueue) -> None:
    with pytest.raises(ConfigError, match=r"^unknown option 'leese'; did you mean 'lease'\?$"):
        q.worker("mail", leese=30)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="known: grace, lease, name"):
        q.worker("mail", concurrency_limit=30)  # type: ignore[call-arg]


def test_final_states_of_stats_are_outcomes_not_jobs(q: PgQueue, conn: Conn) -> None:
    job = q.enqueue("x", {}, conn=conn)
    for _ in range(2):
        q.cancel(job.id, conn=conn)
        q.retry(job.id, conn=conn)
    assert (q.stats(conn=conn)["available"], q.stats(conn=conn)["cancelled"]) == (1, 2)
    q.delete(job.id, conn=conn)
    assert (q.stats(conn=conn)["available"], q.stats(conn=conn)["cancelled"]) == (0, 2)


def test_a_unique_key_admits_one_live_job(q: PgQueue, conn: Conn) -> None:
    first = q.enqueue("report", {}, conn=conn, unique_key="today")
    again = q.enqueue("report", {}, conn=conn, unique_key="today")
    assert again == EnqueuedJob(id=first.id, inserted=False, kind="report", queue="default")
    assert q.enqueue("other", {}, conn=conn, unique_key="today").inserted
    q.cancel(first.id, conn=conn)
    assert q.enqueue("report", {}, conn=conn, unique_key="today").inserted
    assert q.retry(first.id, conn=conn) == "blocked by a live job with the same unique key"


def test_a_verb_with_a_connection_belongs_to_its_transaction(q: PgQueue, conn: Conn, dsn: str) -> None:
    job = q.enqueue("x", {}, conn=conn)
    with psycopg.connect(dsn) as mine:
        assert q.cancel(job.id, conn=mine) == "cancelled"
        mine.rollback()
    assert q.job(job.id, conn=conn).state is State.AVAILABLE
    assert q.cancel(job.id, conn=conn, reason="not wanted") == "cancelled"
    assert q.job(job.id, conn=conn).errors[0]["message"] == "not wanted"


def test_who_asks_for_a_job_that_is_not_there_is_told(q: PgQueue, conn: Conn) -> None:
    with pytest.raises(JobNotFound, match=str(NEVER)):
        q.job(NEVER, conn=conn)
    assert q.cancel(NEVER, conn=conn) == q.stop(NEVER, conn=conn) == q.retry(NEVER, conn=conn) == "not found"
    assert q.reschedule(NEVER, delay=1, conn=conn) == q.set_priority(NEVER, 1, conn=conn) == "not found"
    assert q.delete(NEVER, conn=conn) == "not found"
    with pytest.raises(JobNotFound):
        q.wait(NEVER, timeout=0)


def test_waiting_ends_with_the_job_or_with_the_time(q: PgQueue, conn: Conn) -> None:
    job = q.enqueue("x", {}, conn=conn)
    with pytest.raises(WaitTimeout, match=f"job {job.id}"):
        q.wait(job.id, timeout=0)
    q.cancel(job.id, reason="no", conn=conn)
    assert q.wait(job.id, timeout=0).state is State.CANCELLED
    with pytest.raises(JobFailed, match="cancelled: no"):
        q.result(job.id)


def test_waiting_with_a_connection_sees_what_that_one_sees(q: PgQueue, dsn: str) -> None:
    with psycopg.connect(dsn) as mine:
        job = q.enqueue("x", {}, conn=mine)
        q.cancel(job.id, conn=mine)
        assert q.wait(job.id, timeout=0, conn=mine).state is State.CANCELLED
        with pytest.raises(JobFailed, match="cancelled"):
            q.result(job.id, timedelta(0), conn=mine)
        with pytest.raises(JobNotFound):
            q.wait(job.id, timeout=0)
        mine.rollback()


async def test_waiting_with_an_async_connection_sees_what_that_one_sees(q: PgQueue, dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as mine:
        job = await q.aenqueue("x", {}, conn=mine)
        await q.acancel(job.id, conn=mine)
        assert (await q.await_(job.id, timedelta(0), conn=mine)).state is State.CANCELLED
        with pytest.raises(JobFailed, match="cancelled"):
            await q.aresult(job.id, 0, conn=mine)
        await mine.rollback()


@pytest.mark.parametrize("timeout", [-1, float("nan"), timedelta(seconds=-1), "5", None, True, 10**400])
def test_a_time_out_that_can_not_be_is_refused(q: PgQueue, timeout: float) -> None:
    with pytest.raises(InvalidJob, match=r"^timeout .*(must be from 0 seconds|must be a timedelta or a number)"):
        q.wait(NEVER, timeout)


def test_a_wait_pauses_until_its_end_at_most_and_looks_once_more() -> None:
    pauses: list[float] = []
    with pytest.raises(WaitTimeout, match=r"job 1 was not final after 0\.02 s"):
        pauses.extend(_pauses(1, timedelta(milliseconds=20)))
    assert max(pauses) <= 0.02
    assert pauses[-1] == 0


def test_pages_go_from_the_newest_to_the_oldest(q: PgQueue, conn: Conn) -> None:
    ids = [q.enqueue("x", {}, conn=conn).id for _ in range(5)]
    first = q.jobs(kind="x", limit=2, conn=conn)
    rest = q.jobs(kind="x", before=first[-1].id, conn=conn)
    assert [job.id for job in [*first, *rest]] == ids[::-1]
    with pytest.raises(InvalidJob, match="limit 0"):
        q.jobs(limit=0, conn=conn)


def test_filters_find_what_fits_them_all(q: PgQueue, conn: Conn) -> None:
    now = datetime.now(UTC)
    wanted = q.enqueue("x", {}, conn=conn, tenant="acme", tags=["a", "b"], queue="one", delay=60)
    q.enqueue("x", {}, conn=conn, tenant="other", queue="one")
    q.enqueue("y", {}, conn=conn, tenant="acme")
    assert [job.id for job in q.jobs(tenant="acme", kind="x", tag="b", queue="one", conn=conn)] == [wanted.id]
    assert [job.id for job in q.jobs(state="scheduled", conn=conn)] == [wanted.id]
    assert len(q.jobs(since=now - timedelta(hours=1), until=now + timedelta(hours=1), conn=conn)) == 3
    with pytest.raises(InvalidArguments, match="did you mean 'tenant'"):
        q.jobs(tenent="acme", conn=conn)  # type: ignore[call-arg]
    with pytest.raises(InvalidArguments, match="did you mean 'scheduled'"):
        q.jobs(state="schedule", conn=conn)


def test_a_selection_without_a_filter_is_refused(q: PgQueue) -> None:
    with pytest.raises(InvalidArguments, match="at least one filter"):
        q.where()


def test_a_verb_reaches_all_jobs_that_fit_and_no_others(q: PgQueue, conn: Conn) -> None:
    q.tasks["send"].using(conn).enqueue_many([(number,) for number in range(2500)])
    other = q.enqueue("x", {}, conn=conn)
    assert q.where(kind="send").cancel(conn=conn) == {"cancelled": 2500}
    assert q.where(kind="send").cancel(conn=conn) == {"already cancelled": 2500}
    assert q.job(other.id, conn=conn).state is State.AVAILABLE
    assert q.where(state="cancelled").delete(conn=conn) == {"deleted": 2500}
    assert count(conn) == 1


@pytest.mark.parametrize("number", ["1e5000", "9" * 5000, "-" + "9" * 5000])
def test_a_number_that_python_can_not_hold_is_shown_as_infinite(q: PgQueue, number: str, dsn: str) -> None:
    with psycopg.connect(dsn) as conn:
        ((id,),) = conn.execute("select pgqueue.enqueue('send', %s::jsonb)", [f'{{"n": {number}, "m": 1}}']).fetchall()
    assert q.job(id).args == {"n": float(number), "m": 1}
    assert [job.id for job in q.jobs()] == [id]


@pytest.mark.parametrize("id", ["5", 1.0, True, None, 0, -1, 2**63, [1]])
@pytest.mark.parametrize("verb", ["job", "cancel", "stop", "retry", "delete", "set_priority", "reschedule", "wait"])
def test_an_id_that_can_not_be_one_is_refused_before_anything_is_sent(
    q: PgQueue, conn: Conn, verb: str, id: Any
) -> None:
    more: dict[str, Any] = {"set_priority": {"priority": 1}, "reschedule": {"delay": 1}}.get(verb, {})
    with pytest.raises(InvalidJob, match=r"id .*must be a whole number from 1 to 9223372036854775807"):
        getattr(q, verb)(id, conn=conn, **more)
    conn.execute("select 1")


@pytest.mark.parametrize(
    "filter", [{"tenant": "a\0"}, {"tenant": "\ud800"}, {"tenant": 5}, {"tag": ["a"]}, {"tag": ""}]
)
def test_a_filter_that_can_not_fit_anything_is_refused(q: PgQueue, filter: Any) -> None:
    with pytest.raises(InvalidJob, match=next(iter(filter))):
        q.jobs(**filter)
    with pytest.raises(InvalidJob, match=next(iter(filter))):
        q.where(**filter)


def test_any_text_can_be_a_reason_and_nothing_else(q: PgQueue) -> None:
    id = q.enqueue("send", {"user_id": 1}).id
    with pytest.raises(InvalidJob, match="reason 5: must be a text"):
        q.cancel(id, reason=5)  # type: ignore[arg-type]
    assert q.cancel(id, reason="a\0\ud800" + "x" * 100_000) == "cancelled"
    message = str(q.job(id).errors[0]["message"])
    assert message.startswith("a\\x00\\ud800xxx")
    assert len(message) < 40_000


def test_no_rows_send_nothing() -> None:
    q = PgQueue("host=127.0.0.1 port=1")

    @q.task
    def send(n: int) -> None: ...

    assert send.enqueue_many([]) == []
    assert asyncio.run(send.aenqueue_many([])) == []


def test_the_size_of_the_public_face_is_held_down() -> None:
    import pgqueue

    assert len(pgqueue.__all__) <= 24
    assert pgqueue.__all__ == sorted(pgqueue.__all__)


def test_every_public_name_can_be_had() -> None:
    import pgqueue

    assert set(pgqueue._HOME) == set(pgqueue.__all__)
    for name in pgqueue.__all__:
        assert getattr(pgqueue, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = pgqueue.nonsense
