"""Two statements meet between one's snapshot and its locks: nothing is lost, nothing is stuck, every answer is true.

A statement is brought to that point by a row lock that another transaction holds, or, where it takes no lock that can
be waited for, by an advisory lock put into its text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pytest
from psycopg import errors

from pgqueue.core.states import State, Verb
from pgqueue.store import cluster, jobs
from pgqueue.store.statement import Statement
from tests.store.desk import KINDS, Desk, bring_to, verb_statement, wait_until_blocked

T = TypeVar("T")
BARRIER = 7


class Meeting:
    """`first` is in a transaction; `second` runs in a thread and is waited for until it is blocked."""

    def __init__(self, watcher: Desk, first: Desk, second: Desk, pool: ThreadPoolExecutor) -> None:
        self.watcher, self.first, self.second, self._pool = watcher, first, second, pool
        first.sql("begin")

    def begin(self, statement: Statement[T]) -> Future[T]:
        """Start it on `second`; returns when it waits for `first`."""
        running = self._pool.submit(self.second.run, statement)
        wait_until_blocked(self.watcher, self.second.pid)
        return running

    def stopped(self, statement: Statement[T], at: str, stopping: str) -> Future[T]:
        """The same for a statement that waits for nobody: its text `at` is written as `stopping` with the barrier."""
        assert statement.sql.count(at) == 1, f"{at!r} is not in the statement"
        self.first.sql("select pg_advisory_xact_lock(%s)", BARRIER)
        lock = f"(select pg_advisory_xact_lock({BARRIER})::text) is not null"
        return self.begin(
            Statement(statement.sql.replace(at, stopping.format(lock=lock)), statement.params, statement.decode)
        )

    def end(self) -> None:
        self.first.sql("commit")


@pytest.fixture
def meeting(desk: Desk, desks: Callable[[], Desk]) -> Iterator[Meeting]:
    desk.sql("select 1 where %s > 0", desk.worker)
    with ThreadPoolExecutor(1) as pool:
        yield Meeting(desk, desks(), desks(), pool)


def runs_once_more(desk: Desk, id: int) -> bool:
    """Can the job still be brought to an end, and leaves nothing behind?"""
    desk.make_due()
    taken = desk.claim(priorities=(0, 5))
    assert taken.ids == [id], f"{desk.state(id)} but nowhere to be found"
    assert desk.complete(taken) == []
    void = desk.claim(priorities=(0, 5))  # what was overtaken is passed over
    desk.give_back(void)
    desk.make_due()
    return desk.state(id) == "completed" and desk.leftovers() == {}


@pytest.mark.parametrize("verb", [Verb.SET_PRIORITY, Verb.RESCHEDULE])
def test_a_job_that_is_staged_while_a_verb_waits_for_its_row_is_not_lost(meeting: Meeting, verb: Verb) -> None:
    desk = meeting.watcher
    id = bring_to(desk, State.SCHEDULED)
    meeting.first.sql("select from pgqueue.job where id = %s for no key update", id)
    answer = meeting.begin(verb_statement(verb, [id]))
    assert desk.make_due() == 1
    meeting.end()

    assert answer.result() == {id: "scheduled"}
    assert runs_once_more(desk, id)


@pytest.mark.parametrize("verb", [Verb.SET_PRIORITY, Verb.RETRY])
def test_a_job_that_a_verb_changes_while_it_is_being_staged_is_not_lost(meeting: Meeting, verb: Verb) -> None:
    desk = meeting.watcher
    id = bring_to(desk, State.SCHEDULED)
    desk.sql("update pgqueue.waiting set due = clock_timestamp() - interval '1 s'")
    staging = meeting.stopped(
        cluster.stage(100, schema="pgqueue"),
        "where due <= clock_timestamp()",
        "where {lock} and due <= clock_timestamp()",
    )
    meeting.first.apply(verb, id)
    meeting.end()

    staging.result()
    assert runs_once_more(desk, id)


def test_a_job_that_fails_while_its_priority_is_being_set_can_fail_again(meeting: Meeting) -> None:
    desk = meeting.watcher
    id = desk.enqueue_one()
    meeting.first.fail(meeting.first.claim(worker=desk.worker))  # claimed and failed after the verb's snapshot
    answer = meeting.begin(verb_statement(Verb.SET_PRIORITY, [id]))
    meeting.end()

    answer.result()
    again = desk.claim(priorities=[5])
    assert desk.fail(again, delay=3600) == {id: True}
    assert runs_once_more(desk, id)


def test_a_job_whose_worker_dies_while_it_is_being_rescheduled_can_be_rescued_again(meeting: Meeting) -> None:
    desk = meeting.watcher
    id = desk.enqueue_one()
    meeting.first.claim()
    meeting.first.die()
    answer = meeting.begin(verb_statement(Verb.RESCHEDULE, [id]))
    meeting.end()
    assert answer.result() == {id: "scheduled"}

    desk.make_due()
    assert desk.claim().ids == [id]
    assert desk.die() == (1, 0), "rescue stumbles over what the first death left"
    left = desk.claim_suspect()
    assert left.ids == [id]
    assert desk.complete(left) == []
    assert desk.leftovers() == {}


@pytest.mark.parametrize("verb", [Verb.CANCEL, Verb.STOP])
@pytest.mark.parametrize(("ending", "truth"), [("completed", "already completed"), ("discarded", "already discarded")])
def test_the_answer_to_a_cancel_that_came_too_late_is_the_state_the_job_ended_in(
    meeting: Meeting, verb: Verb, ending: str, truth: str
) -> None:
    id = meeting.watcher.enqueue_one()
    held = meeting.first.claim(worker=meeting.watcher.worker)
    meeting.first.settle(held, ending)
    answer = meeting.begin(verb_statement(verb, [id]))
    meeting.end()
    assert answer.result() == {id: truth}
    assert meeting.watcher.state(id) == ending


def test_a_cancel_that_waited_for_a_delete_says_not_found(meeting: Meeting) -> None:
    id = meeting.watcher.enqueue_one()
    meeting.first.apply(Verb.DELETE, id)
    answer = meeting.begin(verb_statement(Verb.CANCEL, [id]))
    meeting.end()
    assert answer.result() == {id: "not found"}


def test_the_second_of_two_cancels_says_so(meeting: Meeting) -> None:
    id = meeting.watcher.enqueue_one()
    meeting.first.apply(Verb.STOP, id)
    answer = meeting.begin(verb_statement(Verb.CANCEL, [id]))
    meeting.end()
    assert answer.result() == {id: "already stopped"}
    assert meeting.watcher.tallied() == {"stopped": 1}


@pytest.mark.parametrize("key", [None, "u"])
def test_the_second_of_two_retries_says_that_it_is_available_already(meeting: Meeting, key: str | None) -> None:
    id = bring_to(meeting.watcher, State.COMPLETED, unique_key=key)
    meeting.first.apply(Verb.RETRY, id)
    answer = meeting.begin(verb_statement(Verb.RETRY, [id]))
    meeting.end()
    assert answer.result() == {id: "already available"}
    assert runs_once_more(meeting.watcher, id)


def test_a_retry_that_waited_for_a_delete_does_not_reserve_the_unique_key_for_ever(meeting: Meeting) -> None:
    id = bring_to(meeting.watcher, State.CANCELLED, unique_key="u")
    meeting.first.apply(Verb.DELETE, id)
    answer = meeting.begin(verb_statement(Verb.RETRY, [id]))
    meeting.end()
    assert answer.result() == {id: "not found"}
    assert meeting.watcher.insert({"unique_key": "u"})[0].inserted


def test_a_delete_that_waited_for_a_retry_does_not_leave_the_unique_key_behind(meeting: Meeting) -> None:
    id = bring_to(meeting.watcher, State.CANCELLED, unique_key="u")
    meeting.first.apply(Verb.RETRY, id)
    answer = meeting.begin(verb_statement(Verb.DELETE, [id]))
    meeting.end()
    assert answer.result() == {id: "already available"}
    assert runs_once_more(meeting.watcher, id)
    assert meeting.watcher.insert({"unique_key": "u"})[0].inserted


@pytest.mark.parametrize("heal", ["enqueue", "retry"])
def test_a_cancel_that_met_an_ending_and_a_retry_does_not_reserve_the_unique_key_for_ever(
    meeting: Meeting, heal: str
) -> None:
    desk = meeting.watcher
    id = desk.enqueue_one(unique_key="u")
    meeting.first.complete(meeting.first.claim(worker=desk.worker))
    meeting.first.apply(Verb.RETRY, id)  # open again, under a key that the cancel can't see
    answer = meeting.begin(verb_statement(Verb.CANCEL, [id]))
    meeting.end()
    assert answer.result() == {id: "cancelled"}
    if heal == "enqueue":
        assert desk.insert({"unique_key": "u"})[0].inserted
    else:
        assert desk.ask(Verb.RETRY, id) == "available"
        assert not desk.insert({"unique_key": "u"})[0].inserted


def test_a_void_suspect_leaves_no_lease_behind(desk: Desk) -> None:
    id = desk.enqueue_one()
    desk.claim()
    desk.die()
    desk.sql("update pgqueue.job set claim = claim + 1 where id = %s", id)  # overtaken
    assert desk.claim_suspect().jobs == []
    assert desk.leftovers() == {}


def test_a_chunk_that_changed_after_the_snapshot_is_handed_out_once(meeting: Meeting) -> None:
    desk = meeting.watcher
    ids = desk.enqueue(10)
    claiming = meeting.stopped(
        jobs.claim(
            "default",
            worker=desk.worker,
            lease=99,
            kinds=KINDS,
            marks={0: -(2**63)},
            chunks=10,
            limit=10,
            schema="pgqueue",
        ),
        "kind = any(%(kinds)s::text[])\n    order by seq limit",
        "kind = any(%(kinds)s::text[]) and {lock}\n    order by seq limit",
    )
    mine = meeting.first.claim(4, worker=desk.worker)  # splits the chunk
    meeting.end()

    theirs = [job.id for job in claiming.result().jobs] + desk.claim().ids
    assert sorted(mine.ids + theirs) == ids


def test_a_delete_of_a_job_that_a_worker_has_just_finished_takes_its_history_too(meeting: Meeting) -> None:
    desk = meeting.watcher
    id = desk.enqueue_one()
    held = meeting.first.claim(worker=desk.worker)
    meeting.first.fail(held)
    answer = meeting.begin(verb_statement(Verb.DELETE, [id]))
    meeting.end()
    if answer.result() == {id: "deleted"}:
        assert desk.value("select count(*) from pgqueue.attempt") == 0
    else:
        assert desk.state(id) == "retryable"


def test_a_serializable_enqueue_of_a_key_taken_meanwhile_fails_instead_of_looping(
    desk: Desk, desks: Callable[[], Desk]
) -> None:
    other = desks()
    other.sql("begin isolation level repeatable read")
    other.value("select count(*) from pgqueue.job")
    desk.enqueue(unique_key="u")
    with pytest.raises(errors.SerializationFailure):
        other.insert({"unique_key": "u"})
    other.sql("rollback")
