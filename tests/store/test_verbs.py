"""What each verb does in each state: every cell of core.states.VERBS, through the statements."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from pgqueue.core.states import FINAL, REQUESTED, VERBS, State, Verb
from pgqueue.store import control
from tests.store.desk import Desk, bring_to

CELLS = [(verb, state) for verb in Verb for state in State]
WAITS = {State.PENDING, State.SCHEDULED, State.RETRYABLE}


def entries(desk: Desk, id: int) -> dict[str, int]:
    """Where the job stands in the short-lived tables: valid entries only, as a claim would take them."""
    found = desk.sql(
        """select 'ready' from pgqueue.ready r, unnest(r.ids[r.taken + 1:]) u (id) join pgqueue.job j on j.id = u.id
             where u.id = %s and r.claim = j.claim and j.status = 0
           union all select 'waiting' from pgqueue.waiting where job_id = %s
           union all select 'suspect' from pgqueue.suspect where job_id = %s
           union all select 'request' from pgqueue.request where job_id = %s""",
        *[id] * 4,
    )
    names = [str(name) for (name,) in found]
    return {name: names.count(name) for name in names}


@pytest.mark.parametrize(("verb", "state"), CELLS, ids=lambda each: str(each))
def test_a_verb_does_in_a_state_what_the_table_says(desk: Desk, verb: Verb, state: State) -> None:
    id = bring_to(desk, state, unique_key="u")
    before = desk.sql("select claim, attempt, status from pgqueue.job")[0]
    tallied = desk.tallied()
    expected = VERBS[verb][state]

    assert desk.ask(verb, id) == expected

    if expected == "deleted":
        assert desk.run(control.get([id], schema="pgqueue")) == []
        assert desk.insert({"unique_key": "u"})[0].inserted
        return
    after = desk.job(id)
    done = expected in set(State)
    assert after.state == (expected if done else state), "the answer is true"
    assert after.request == (verb if expected == REQUESTED else None)

    moved = done and verb not in (Verb.CANCEL, Verb.STOP)
    claim, attempt, _ = desk.sql("select claim, attempt, status from pgqueue.job")[0]
    assert claim == before[0] + moved, "only what ends an older entry raises the claim number"
    assert attempt == (0 if verb is Verb.RETRY and state in FINAL else before[1])

    expected_entries = {"waiting": 1} if after.state in WAITS else {"ready": 1} if after.state == "available" else {}
    if expected == REQUESTED:
        expected_entries = {"request": 1}
    assert entries(desk, id) == expected_entries, "exactly one way to run it, or none"

    ended = done and after.state in FINAL
    assert desk.tallied() == tallied | ({str(after.state): 1} if ended else {})
    assert (after.finalized_at is not None) == (after.state in FINAL)
    reserved = desk.insert({"unique_key": "u"})[0]
    assert (reserved.inserted, reserved.id == id) == ((True, False) if after.state in FINAL else (False, True))


@pytest.mark.parametrize("verb", Verb)
def test_a_job_that_does_not_exist_is_not_found(desk: Desk, verb: Verb) -> None:
    id = desk.enqueue_one()
    assert desk.apply(verb, id + 1, id) == {id: VERBS[verb][State.AVAILABLE], id + 1: "not found"}
    assert desk.apply(verb) == {}


@pytest.mark.parametrize("verb", Verb)
def test_an_id_given_twice_is_answered_once(desk: Desk, verb: Verb) -> None:
    id = desk.enqueue_one()
    assert desk.apply(verb, id, id) == {id: VERBS[verb][State.AVAILABLE]}
    assert len(entries(desk, id)) <= 1


@pytest.mark.parametrize(
    ("verb", "state"), [cell for cell in CELLS if VERBS[cell[0]][cell[1]] in ("available", "scheduled", "retryable")]
)
def test_after_a_verb_a_job_is_claimed_once_and_no_more(desk: Desk, verb: Verb, state: State) -> None:
    id = bring_to(desk, state)
    desk.ask(verb, id)
    desk.make_due()
    held = desk.claim(priorities=[0, 5])
    assert held.ids == [id]
    assert desk.claim(priorities=[0, 5]).ids == []
    assert desk.complete(held) == []
    assert desk.leftovers() == {}


def test_retry_of_a_job_whose_key_a_live_one_has_taken_is_blocked(desk: Desk) -> None:
    old = bring_to(desk, State.CANCELLED, unique_key="u")
    new = desk.enqueue_one(unique_key="u")
    assert desk.ask(Verb.RETRY, old) == "blocked by a live job with the same unique key"
    assert (desk.state(old), desk.state(new)) == ("cancelled", "available")


def test_of_two_final_jobs_with_one_key_a_bulk_retry_revives_one(desk: Desk) -> None:
    pair = [bring_to(desk, State.CANCELLED, unique_key="u") for _ in range(2)]
    assert sorted(desk.apply(Verb.RETRY, *pair).values()) == [
        "available", "blocked by a live job with the same unique key",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("state", "restart", "kept"),
    [("completed", False, False), ("discarded", False, True), ("stopped", False, True), ("stopped", True, False)],
)
def test_retry_keeps_the_checkpoint_unless_the_job_had_succeeded_or_is_to_restart(
    desk: Desk, state: str, restart: bool, kept: bool
) -> None:
    id = bring_to(desk, State(state), metadata={"mine": 1})
    desk.sql("""update pgqueue.job set metadata = metadata || '{"pgqueue": {"done": {}}}'""")
    desk.run(control.retry([id], restart=restart, schema="pgqueue"))
    assert desk.job(id).metadata == {"mine": 1} | ({"pgqueue": {"done": {}}} if kept else {})


def test_retry_of_a_retryable_job_keeps_its_count_and_of_a_final_one_begins_anew(desk: Desk) -> None:
    id = bring_to(desk, State.RETRYABLE)
    desk.ask(Verb.RETRY, id)
    assert desk.job(id).attempt == 1
    desk.settle(desk.claim(), "discarded", attempt_cost=1, crash_cost=3)
    desk.ask(Verb.RETRY, id)
    assert (desk.job(id).attempt, desk.job(id).crashes, desk.job(id).finalized_at) == (0, 0, None)


def test_stop_of_a_job_asked_to_cancel_replaces_the_wish(desk: Desk) -> None:
    id = bring_to(desk, State.RUNNING)
    assert desk.ask(Verb.CANCEL, id) == "requested"
    assert desk.ask(Verb.STOP, id) == "requested"
    assert desk.job(id).request == "stop"


def test_the_reason_of_a_cancel_is_kept_with_the_job(desk: Desk) -> None:
    id = desk.enqueue_one()
    desk.run(control.cancel([id], action=Verb.CANCEL, reason="the customer left", schema="pgqueue"))
    assert [error["message"] for error in desk.job(id).errors] == ["the customer left"]


@pytest.mark.parametrize("delay", [timedelta(0), timedelta(days=1)])
def test_reschedule_moves_a_job_in_time_both_ways(desk: Desk, delay: timedelta) -> None:
    id = bring_to(desk, State.SCHEDULED)
    desk.run(control.reschedule([id], at=None, delay=delay, schema="pgqueue"))
    assert desk.stage() == (delay == timedelta(0))
    assert desk.claim().ids == ([id] if delay == timedelta(0) else [])


def test_reschedule_to_an_instant_is_shown_as_its_time(desk: Desk) -> None:
    id = desk.enqueue_one()
    at = datetime.fromisoformat("2099-01-01T00:00:00+00:00")
    desk.run(control.reschedule([id], at=at, delay=None, schema="pgqueue"))
    assert desk.job(id).scheduled_at == at


def test_a_suspect_keeps_being_suspected_whatever_its_priority(desk: Desk) -> None:
    id = desk.enqueue_one()
    desk.claim()
    desk.die()
    assert desk.ask(Verb.SET_PRIORITY, id) == "available"
    assert desk.claim(priorities=[0, 5]).ids == []
    assert desk.claim_suspect().ids == [id]


def test_pause_and_resume_say_whether_they_changed_anything(desk: Desk) -> None:
    assert [desk.run(control.resume("default", schema="pgqueue")) for _ in range(2)] == [False, False]
    assert [desk.run(control.pause("default", schema="pgqueue")) for _ in range(2)] == [True, False]
    assert [desk.run(control.resume("default", schema="pgqueue")) for _ in range(2)] == [True, False]


def test_delete_takes_everything_that_is_known_of_the_job(desk: Desk) -> None:
    id = bring_to(desk, State.RETRYABLE)
    desk.sql("insert into pgqueue.checkin (job_id, message) values (%s, 'm')", id)
    desk.sql(
        "insert into pgqueue.log (job_id, attempt, logged_at, level, logger, message) values (%s, 1, now(), 'l', 'l', 'm')",  # noqa: E501
        id,
    )
    desk.ask(Verb.DELETE, id)
    for table in ("job", "attempt", "checkin", "log", "waiting"):
        assert desk.value(f"select count(*) from pgqueue.{table}") == 0, table


def test_control_notifies_the_worker_of_every_job_that_it_ended_or_asked(desk: Desk) -> None:
    desk.conn.execute('listen "pgqueue.control"')
    running, waiting = bring_to(desk, State.RUNNING), desk.enqueue_one()
    desk.apply(Verb.CANCEL, running, waiting)
    notes = [note.payload for note in desk.conn.notifies(timeout=5, stop_after=2)]
    assert sorted(notes) == [str(running), str(waiting)]
