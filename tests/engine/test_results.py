"""What a task returns is what `result` gives and what the history shows, by whichever way it is written."""

from __future__ import annotations

import psycopg
import pytest

from pgqueue import PgQueue, Retry, State
from pgqueue.engine.completer import SMALL
from tests.engine.kit import done, value, working

VALUES: list[object] = [
    0, False, "", "null", None, [], {}, [None], 'a "quoted" \\ back\\slash, {braces}', "Grüße\n\t\u2028",
    {"nested": [1.5, {"deep": "\\"}]}, "x" * (SMALL - 2), "x" * (SMALL - 1), "ü" * 3 * SMALL,
]  # fmt: skip


def test_every_result_comes_back_as_it_was_returned(q: PgQueue, admin: psycopg.Connection) -> None:
    """Small and large ones, and none, side by side in the same batches."""

    @q.task
    async def returns(n: int) -> object:
        return VALUES[n % len(VALUES)]

    returns.enqueue_many([(n,) for n in range(20 * len(VALUES))])
    with working(q, {"default": 50}):
        jobs = done(q, *range(1, 20 * len(VALUES) + 1))
    assert [job.result for job in jobs] == VALUES * 20
    assert value(admin, "select count(*) from pgqueue.jobs where result is null") == 20, "of those that returned None"


def test_one_result_that_the_database_refuses_is_the_failure_of_its_attempt_alone(
    q: PgQueue, admin: psycopg.Connection
) -> None:
    """Whatever it refuses it for: here by a constraint that somebody has added."""
    admin.execute("alter table pgqueue.job add constraint polite check (result is distinct from '13')")

    @q.task(retry=Retry(max_attempts=1))
    async def counts(n: int) -> int:
        return n

    counts.enqueue_many([(n,) for n in range(100)])
    with working(q, {"default": 50}):
        jobs = done(q, *range(1, 101))
    assert [job.state for job in jobs if job.result != job.args["n"]] == [State.DISCARDED]
    (error,) = jobs[13].errors
    assert "could not be stored" in str(error["message"])


@pytest.mark.parametrize("first", ["early", None])
def test_a_job_that_is_retried_keeps_no_result_of_before(q: PgQueue, first: str | None) -> None:
    results = [first, None, "late"]

    @q.task
    async def changes() -> str | None:
        return results.pop(0)

    id = changes.enqueue().id
    with working(q):
        for expected in list(results):
            assert q.wait(id).result == expected
            if results:
                q.retry(id)
