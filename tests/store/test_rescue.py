"""What becomes of the jobs of a worker that died."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pgqueue.core.states import Verb
from pgqueue.store import cluster, control
from tests.store.desk import Desk


def test_a_living_worker_keeps_its_jobs(desk: Desk) -> None:
    desk.enqueue(3)
    desk.claim()
    assert desk.rescue() == (0, 0)


@pytest.mark.parametrize("how", ["silent", "stopped", "pruned"])
def test_the_jobs_of_a_worker_that_is_silent_stopped_or_gone_go_to_others(desk: Desk, how: str) -> None:
    ids = desk.enqueue(3)
    held = desk.claim()
    worker = held.lease >> 32
    if how == "silent":
        desk.silence(worker)
    elif how == "stopped":
        desk.run(cluster.sign_off(worker, schema="pgqueue"))
    else:
        desk.sql("delete from pgqueue.worker where id = %s", worker)
    desk.sql("select 1")
    assert desk.rescue() == (3, 0)
    assert [desk.state(id) for id in ids] == ["available"] * 3


def test_the_first_death_only_makes_suspects_whose_attempts_are_recorded(desk: Desk) -> None:
    desk.enqueue(3)
    desk.claim()
    desk.die()
    job = desk.job(1 + int(str(desk.value("select min(id) from pgqueue.job"))))
    assert (job.crashes, job.attempt, job.state) == (0, 0, "available")
    assert [error["type"] for error in job.errors] == ["WorkerLost"]
    assert desk.claim().ids == [], "they run alone"


def test_a_crash_that_was_suffered_alone_counts_and_the_third_discards_with_the_reason(desk: Desk) -> None:
    id = desk.enqueue_one(unique_key="u")
    desk.claim()
    desk.die()
    for crash in (1, 2, 3):
        assert desk.state(id) == "available"
        assert desk.claim_suspect().ids == [id]
        assert desk.die() == (1, 0)
        assert desk.job(id).crashes == crash
    job = desk.job(id)
    assert (job.state, job.attempt) == ("discarded", 0)
    assert "(crash 3 of 3)" in str(job.errors[-1]["message"])
    assert job.finalized_at is not None
    assert desk.tallied() == {"discarded": 1}
    assert desk.leftovers() == {}, "its unique key is free as well"


def test_a_death_beside_others_is_not_held_against_a_job_until_it_has_met_ten(desk: Desk) -> None:
    ids = desk.enqueue(2)
    desk.claim()
    desk.die()
    for death in range(1, 13):
        assert sorted([*desk.claim_suspect().ids, *desk.claim_suspect().ids]) == ids
        assert desk.die() == (2, 0)
        assert {desk.job(id).crashes for id in ids} == {max(0, death - 10)}, death
    assert {desk.state(id) for id in ids} == {"available"}
    desk.claim_suspect()
    desk.claim_suspect()
    desk.die()
    assert {desk.state(id) for id in ids} == {"discarded"}


def test_a_suspect_that_survives_is_an_ordinary_job_again(desk: Desk) -> None:
    id = desk.enqueue_one()
    desk.claim()
    desk.die()
    desk.fail(desk.claim_suspect())
    desk.make_due()
    assert desk.claim().ids == [id]
    assert desk.job(id).attempt == 2


def test_a_suspect_given_back_stays_a_suspect(desk: Desk) -> None:
    id = desk.enqueue_one()
    desk.claim()
    desk.die()
    desk.give_back(desk.claim_suspect())
    assert desk.claim().ids == []
    assert desk.claim_suspect().ids == [id]


@pytest.mark.parametrize(("verb", "state"), [(Verb.CANCEL, "cancelled"), (Verb.STOP, "stopped")])
@pytest.mark.parametrize("end", ["death", "solo death", "failure", "snooze", "interruption", "crash"])
def test_a_wish_is_fulfilled_however_the_attempt_ends(desk: Desk, verb: Verb, state: str, end: str) -> None:
    id = desk.enqueue_one(unique_key="u")
    held = desk.claim()
    if end == "solo death":
        desk.die()
        held = desk.claim_suspect()
    assert desk.ask(verb, id) == "requested"
    match end:
        case "death" | "solo death":
            assert desk.die() == (1, 0)
        case "failure":
            desk.fail(held)
        case "snooze":
            desk.settle(held, "scheduled", delay=60)
        case "interruption":
            desk.settle(held, "available")
        case "crash":
            desk.settle(held, "available", solo=True, crash_cost=1)
    assert desk.state(id) == state
    assert desk.job(id).finalized_at is not None
    assert desk.tallied() == {state: 1}
    assert desk.leftovers() == {}


@pytest.mark.parametrize("end", ["settle", "rescue"])
def test_the_reason_of_a_wish_stays_with_the_job(desk: Desk, end: str) -> None:
    id = desk.enqueue_one()
    held = desk.claim()
    assert desk.run(control.cancel([id], action=Verb.CANCEL, reason="wrong address", schema="pgqueue")) == {
        id: "requested"
    }
    if end == "settle":
        desk.settle(held, "cancelled", error={"type": "Cancel", "message": "cancelled while it was running"})
    else:
        desk.silence()
        desk.rescue()
    assert desk.value("select state from pgqueue.jobs where id = %s", id) == "cancelled"
    errors = desk.sql("select error_type, error from pgqueue.job_attempts where job_id = %s", id)
    assert errors == [("Cancel", "wrong address")]


@pytest.mark.parametrize("end", ["settle", "rescue"])
def test_a_wish_that_somebody_is_just_repeating_holds_up_nobody(
    desk: Desk, desks: Callable[[], Desk], end: str
) -> None:
    ids = desk.enqueue(3)
    held = desk.claim()
    cancel = control.cancel(ids[:1], action=Verb.CANCEL, reason=None, schema="pgqueue")
    desk.run(cancel)
    other = desks()
    other.sql("begin")
    other.run(cancel)
    desk.sql("set lock_timeout = '2s'")
    if end == "settle":
        assert desk.settle(held, "completed") == dict.fromkeys(ids, True)
        final = "completed"
    else:
        desk.silence()
        assert desk.rescue() == (3, 0)
        final = "cancelled"
    assert desk.state(ids[0]) == final
    other.sql("commit")
    desk.run(cluster.tidy(schema="pgqueue"))
    assert desk.value("select count(*) from pgqueue.request") == 0


def test_an_attempt_that_succeeds_all_the_same_is_completed(desk: Desk) -> None:
    ids = desk.enqueue(2)
    held = desk.claim()
    desk.apply(Verb.CANCEL, *ids)
    desk.complete(held, held.jobs[:1], part=True)
    desk.settle(held, "completed", held.jobs[1:])
    assert [desk.state(id) for id in ids] == ["completed", "completed"]
    desk.run(cluster.tidy(schema="pgqueue"))
    assert desk.leftovers() == {}, "the wish is forgotten"


def test_rescue_takes_twenty_leases_at_a_time_and_in_the_end_all(desk: Desk) -> None:
    ids = desk.enqueue(50)
    for _ in range(50):
        desk.claim(1)
    desk.silence()
    assert [desk.rescue()[0] for _ in range(4)] == [20, 20, 10, 0]
    assert sorted(id for _ in ids for id in desk.claim_suspect().ids) == ids


def test_an_empty_lease_of_a_dead_worker_goes_too(desk: Desk) -> None:
    desk.enqueue(2)
    held = desk.claim()
    desk.complete(held, part=True)  # the worker died before it said that it was done with the lease
    desk.silence()
    assert desk.rescue() == (0, 0)
    assert desk.leftovers() == {}


def test_a_revived_worker_claims_again(desk: Desk) -> None:
    worker = desk.worker
    desk.enqueue(2)
    desk.silence(worker)
    identity = cluster.Identity(name="w", host="h", pid=1, version="0", lease=60, queues={}, kinds=[])
    assert desk.claim(worker=worker).ids == []
    desk.run(cluster.revive(worker, identity, schema="pgqueue"))
    assert len(desk.claim(worker=worker).ids) == 2


def test_the_pulse_tells_what_there_is_to_do(desk: Desk) -> None:
    def pulse(*doubtful: int) -> cluster.Pulse:
        return desk.run(
            cluster.pulse(worker, running=1, queues=["default", "b"], kinds=["k"], doubtful=doubtful, schema="pgqueue")
        )

    worker = desk.worker
    assert pulse() == cluster.Pulse(True, None, None, [], [], [], {}, [])
    ids = desk.enqueue(2)
    desk.enqueue(kind="other", queue="b")
    desk.enqueue(delay=100)
    assert (pulse().busy, round(pulse().due_in or 0)) == (["default"], 100)
    lost = desk.claim(worker=desk.register("dies"))
    desk.ask(Verb.STOP, ids[0])
    assert pulse().requests == {ids[0]: Verb.STOP}
    assert pulse().orphans_in is None
    desk.silence(lost.lease >> 32)
    assert (pulse().orphans_in or 0) < 0
    desk.rescue()
    assert (pulse().suspect, pulse().orphans_in) == (["default"], None)
    assert pulse(*ids).closed == [ids[0]]
    desk.sql("delete from pgqueue.worker where id = %s", worker)
    assert not pulse().beating
