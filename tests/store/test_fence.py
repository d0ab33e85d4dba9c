"""The fence: a write shows the lease and the claim number it was claimed under, or it changes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import errors

from pgqueue.core.states import Verb
from pgqueue.store import jobs
from tests.store.desk import Desk, Held, columns, outcome, wait_until_blocked

# What ends an attempt without finishing its job, so that another attempt may begin.
REVOCATIONS: dict[str, Callable[[Desk, Held], object]] = {
    "give back": lambda desk, held: desk.give_back(held),
    "give back in part": lambda desk, held: desk.give_back(held, part=True),
    "rescue": lambda desk, held: desk.die(),
    "failure": lambda desk, held: desk.fail(held),
    "snooze": lambda desk, held: desk.settle(held, "scheduled", delay=60),
    "interruption": lambda desk, held: desk.settle(held, "available"),
    "solo": lambda desk, held: desk.settle(held, "available", solo=True, crash_cost=1),
    "partial failure": lambda desk, held: desk.fail(held, part=True),
    "cancel and retry": lambda desk, held: (desk.settle(held, "cancelled"), desk.apply(Verb.RETRY, *held.ids)),
    "completion and retry": lambda desk, held: (desk.complete(held, part=True), desk.apply(Verb.RETRY, *held.ids)),
}
# A zombie's last words.
REPLAYS: dict[str, Callable[[Desk, Held], object]] = {
    "complete": lambda desk, held: desk.complete(held, part=True),
    "complete and leave": lambda desk, held: desk.complete(held),
    "fail": lambda desk, held: desk.fail(held, part=True),
    "fail and leave": lambda desk, held: desk.fail(held),
    "snooze": lambda desk, held: desk.settle(held, "scheduled", delay=1, part=True),
    "give back": lambda desk, held: desk.give_back(held, part=True),
}


def reclaim(desk: Desk) -> Held:
    """Whoever comes next, however the job waits."""
    desk.make_due()
    held = desk.claim()
    return held if held.jobs else desk.claim_suspect()


@pytest.mark.parametrize("revocation", REVOCATIONS)
@pytest.mark.parametrize("replay", REPLAYS)
def test_a_zombie_changes_nothing(desk: Desk, revocation: str, replay: str) -> None:
    id = desk.enqueue_one(unique_key="u")
    zombie = desk.claim()
    REVOCATIONS[revocation](desk, zombie)
    heir = reclaim(desk)
    assert heir.ids == [id]
    assert heir.jobs[0].claim > zombie.jobs[0].claim

    desk.sql("delete from pgqueue.lease where id = %s and %s", zombie.lease, replay.endswith("leave"))
    before = desk.snapshot()
    REPLAYS[replay](desk, zombie)
    assert desk.snapshot() == before
    assert desk.complete(heir) == []
    assert desk.tallied().get("completed") == 1 + revocation.startswith("completion")


def test_claim_numbers_only_grow_and_no_old_pair_is_ever_accepted(desk: Desk) -> None:
    id = desk.enqueue_one()
    past: list[Held] = []
    for revoke in REVOCATIONS.values():
        held = reclaim(desk)
        past.append(held)
        revoke(desk, held)
        desk.apply(Verb.RESCHEDULE, id)
        desk.apply(Verb.SET_PRIORITY, id)
        desk.sql("update pgqueue.job set priority = 0")
        desk.apply(Verb.RETRY, id)
    heir = reclaim(desk)
    claims = [held.jobs[0].claim for held in [*past, heir]]
    assert claims == sorted(set(claims))

    for zombie in past:
        for lease in {held.lease for held in [*past, heir]}:  # even if it has somebody else's lease
            before = desk.snapshot()
            pair = Held(lease, zombie.jobs, zombie.batch)
            assert desk.complete(pair, part=True) == [id]
            assert desk.fail(pair, part=True) == {}
            assert desk.give_back(pair, part=True) == 0
            assert desk.snapshot() == before
    assert desk.complete(heir) == []


# R1 (a) to (d): what the prototype got wrong


def test_a_lease_that_was_lost_takes_no_other_lease_with_it(desk: Desk) -> None:
    ids = desk.enqueue(10)
    lost = desk.claim(5, worker=desk.register("dies"))
    kept = desk.claim(5)
    desk.silence(lost.lease >> 32)
    assert desk.rescue() == (5, 0)

    acks = columns(lost.acks() + kept.acks())
    answer = desk.run(jobs.complete(acks, whole=[lost.lease, kept.lease], part=[], schema="pgqueue"))
    assert sorted(answer) == lost.ids
    assert [desk.state(id) for id in ids] == ["available"] * 5 + ["completed"] * 5
    again = [desk.claim_suspect().ids for _ in range(5)]
    assert sorted(sum(again, [])) == lost.ids, "each lost job is found again"  # noqa: RUF017


def test_a_late_acknowledgement_does_not_complete_the_attempt_that_came_after_cancel_and_retry(desk: Desk) -> None:
    desk.enqueue(2)
    old = desk.claim()
    desk.settle(old, "cancelled", old.jobs[:1], part=True)  # the lease lives on for the second job
    desk.apply(Verb.RETRY, *old.ids)
    assert desk.complete(old, part=False) == old.ids[:1]
    assert [desk.state(id) for id in old.ids] == ["available", "completed"]
    assert desk.claim().ids == old.ids[:1]


def test_a_failed_job_that_runs_elsewhere_is_not_given_away_when_its_first_worker_is_rescued(desk: Desk) -> None:
    desk.enqueue(2)
    first = desk.claim(worker=desk.register("dies"))
    desk.fail(first, chosen=first.jobs[:1], part=True, delay=0)
    desk.make_due()
    second = desk.claim()
    assert second.ids == first.ids[:1]

    desk.silence(first.lease >> 32)
    assert desk.rescue() == (1, 0)
    assert desk.claim_suspect().ids == first.ids[1:]
    assert desk.claim_suspect().ids == []
    assert desk.complete(second) == []


@pytest.mark.parametrize("verb", [Verb.RESCHEDULE, Verb.CANCEL, Verb.STOP, Verb.SET_PRIORITY, Verb.DELETE])
def test_a_void_entry_runs_neither_now_nor_after_a_rescue(desk: Desk, verb: Verb) -> None:
    ids = desk.enqueue(3)
    desk.ask(verb, ids[1])
    held = desk.claim()
    assert held.ids == [ids[0], ids[2]]
    assert desk.die() == (2, 0)
    assert sorted(desk.claim_suspect().ids + desk.claim_suspect().ids) == [ids[0], ids[2]]
    assert desk.claim_suspect().ids == desk.claim().ids == []


def test_of_a_job_acknowledged_under_two_leases_in_one_flush_the_living_one_counts(desk: Desk) -> None:
    desk.enqueue(1)
    lost = desk.claim(worker=desk.register("dies"))
    desk.silence(lost.lease >> 32)
    desk.rescue()
    kept = desk.claim_suspect()
    acks = columns(lost.acks() + kept.acks())
    desk.run(jobs.complete(acks, whole=[lost.lease, kept.lease], part=[], schema="pgqueue"))
    assert desk.tallied() == {"completed": 1}
    assert desk.leftovers() == {}


def test_an_acknowledgement_sent_twice_counts_once(desk: Desk) -> None:
    desk.enqueue(3)
    held = desk.claim()
    assert desk.complete(held) == []
    before = desk.snapshot()
    assert sorted(desk.complete(held)) == held.ids
    assert desk.snapshot() == before


# R2: a user's open transaction blocks nobody else


@pytest.fixture
def held(desk: Desk) -> Held:
    desk.enqueue(100)
    return desk.claim()


@pytest.fixture
def holder(desks: Callable[[], Desk], held: Held) -> Desk:
    """Somebody's transaction that holds the row of the fiftieth job."""
    user = desks()
    user.sql("begin")
    user.sql("select from pgqueue.job where id = %s for no key update", held.ids[49])
    return user


def test_complete_gives_up_soon_at_a_locked_row_and_changes_nothing(desk: Desk, held: Held, holder: Desk) -> None:
    before = desk.snapshot()
    began = time.monotonic()
    with pytest.raises(errors.LockNotAvailable):
        desk.complete(held)
    assert 0.05 < time.monotonic() - began < 5
    assert desk.snapshot() == before
    assert desk.value("show lock_timeout") == "0", "the limit was the statement's own"


def test_settle_passes_over_a_locked_row_and_keeps_its_lease(desk: Desk, held: Held, holder: Desk) -> None:
    locked = held.ids[49]
    answer = desk.settle(held, "completed")
    assert answer == {id: id != locked for id in held.ids}
    assert desk.states() == {"completed": 99, "running": 1}
    assert desk.settle(held, "completed", [held.jobs[49]]) == {locked: False}

    holder.sql("commit")
    assert desk.settle(held, "completed", [held.jobs[49]]) == {locked: True}
    assert desk.states() == {"completed": 100}
    assert desk.leftovers() == {}


def test_rescue_leaves_just_the_locked_job_in_the_lease(desk: Desk, held: Held, holder: Desk) -> None:
    desk.silence()
    assert desk.rescue() == (99, 1)
    assert desk.sql("select ids from pgqueue.lease") == [([held.ids[49]],)]
    assert desk.rescue() == (0, 1)
    holder.sql("commit")
    assert desk.rescue() == (1, 0)
    assert desk.value("select count(*) from pgqueue.suspect") == 100
    assert sorted(desk.complete(held)) == held.ids


def test_a_job_completed_in_the_transaction_that_rescue_passed_over_stays_completed(
    desk: Desk, held: Held, holder: Desk
) -> None:
    holder.sql("update pgqueue.job set status = 1, finalized_at = now() where id = %s", held.ids[49])
    desk.silence()
    assert desk.rescue() == (99, 1)
    holder.sql("commit")
    assert desk.rescue() == (0, 0)
    assert desk.state(held.ids[49]) == "completed"
    assert desk.value("select count(*) from pgqueue.lease") == 0


def test_twenty_leases_that_stay_locked_do_not_keep_others_from_being_rescued(
    desk: Desk, desks: Callable[[], Desk]
) -> None:
    desk.enqueue(21)
    leases = [desk.claim(1) for _ in range(21)]
    user = desks()
    user.sql("begin")
    user.sql("select from pgqueue.job where id = any(%s) for update", [held.ids[0] for held in leases[:20]])
    desk.silence()
    rescued = sum(desk.rescue()[0] for _ in range(60))  # one in 21 is left out each time
    assert rescued == 1


def test_a_job_of_a_dead_worker_is_rescued_only_once_by_two(desk: Desk, desks: Callable[[], Desk], held: Held) -> None:
    other = desks()
    desk.silence()
    other.sql("begin")
    assert other.rescue() == (100, 0)
    assert desk.rescue() == (0, 0)
    other.sql("commit")
    assert desk.rescue() == (0, 0)
    assert desk.value("select count(*) from pgqueue.suspect") == 100


def test_cancel_of_a_claimed_job_waits_for_nobody(desk: Desk, held: Held, holder: Desk) -> None:
    desk.sql("set lock_timeout = '1ms'")
    assert desk.ask(Verb.CANCEL, held.ids[49]) == "requested"


def test_a_flush_waits_for_no_lease_that_another_flush_has_locked(
    desk: Desk, desks: Callable[[], Desk], held: Held
) -> None:
    """Two flushes of one lease, each of a part of its jobs, go side by side."""
    other = desks()
    other.sql("begin")
    assert other.complete(held, held.jobs[:50], part=True) == []
    assert desk.complete(held, held.jobs[50:], part=True) == []
    other.sql("commit")


# What it costs


def test_completion_is_one_hot_update(desk: Desk) -> None:
    for _ in range(10):
        desk.enqueue(1000, args={"user_id": 1, "name": "somebody"})
    leases = [desk.claim(500) for _ in range(20)]
    hot = hot_updates(desk)
    for held in leases:
        assert desk.complete(held) == []
    updates, hot_ones = (new - old for new, old in zip(hot_updates(desk), hot, strict=True))
    assert updates == 10_000
    assert hot_ones >= 0.9 * updates


def hot_updates(desk: Desk) -> tuple[int, int]:
    desk.sql("select pg_stat_force_next_flush()")
    return desk.sql("select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relid = 'pgqueue.job'::regclass")[0]


def test_claiming_writes_no_job_row(desk: Desk) -> None:
    desk.enqueue(200)
    versions = "select array_agg(array[xmin::text, xmax::text, ctid::text] order by id)::text from pgqueue.job"
    before = desk.value(versions)
    desk.claim(150)
    assert desk.value(versions) == before


def test_an_outcome_under_an_old_claim_in_a_batch_fails_alone(desk: Desk) -> None:
    desk.enqueue(2)
    held = desk.claim()
    document = [
        outcome(held.jobs[0]._replace(claim=99), held.lease, "completed"),
        outcome(held.jobs[1], held.lease, "completed"),
    ]
    assert desk.run(jobs.settle(json.dumps(document), whole=[], part=[held.lease], schema="pgqueue")) == {
        held.ids[1]: True
    }


def test_a_claim_in_flight_at_the_time_its_lease_is_forgotten_fails(desk: Desk, desks: Callable[[], Desk]) -> None:
    """R8: whichever comes first, the jobs are in exactly one place."""
    desk.enqueue(3)
    claimer = desks()
    lease = desk.new_lease()
    with ThreadPoolExecutor(1) as pool:
        desk.sql("begin")
        assert desk.run(jobs.forget(lease, worker=desk.worker, schema="pgqueue"))
        late = pool.submit(claimer.claim, worker=desk.worker, lease=lease)
        wait_until_blocked(desk, claimer.pid)
        desk.sql("commit")
        with pytest.raises(psycopg.errors.UniqueViolation):
            late.result()
    assert len(desk.claim().ids) == 3


def test_a_lease_that_was_committed_before_it_was_forgotten_tells_its_jobs_again(desk: Desk) -> None:
    ids = desk.enqueue(3)
    held = desk.claim()
    assert not desk.run(jobs.forget(held.lease, worker=desk.worker, schema="pgqueue"))
    again = desk.run(jobs.held(held.lease, schema="pgqueue"))
    assert again.jobs == held.jobs
    assert again.clock_us is not None
    desk.give_back(held)
    assert desk.claim().ids == ids
