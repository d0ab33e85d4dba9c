"""What a claim brings: in which order, how much of it, and when nothing."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from pgqueue.core.states import Verb
from pgqueue.store import cluster, control, jobs
from pgqueue.store.jobs import LOWEST_MARK
from tests.store.desk import KINDS, Desk

MIB = 1 << 20


def test_the_highest_priority_comes_first_then_the_order_of_enqueueing(desk: Desk) -> None:
    order = random.Random(1)
    drafts = [{"priority": order.choice([-5, 0, 7])} for _ in range(60)]
    placed = desk.insert(*drafts)
    wanted = sorted(range(60), key=lambda n: -int(str(drafts[n]["priority"])))
    assert desk.claim(60, priorities=[7, 0, -5]).ids == [placed[n].id for n in wanted]


def test_jobs_of_one_claim_come_in_the_order_of_their_priorities(desk: Desk) -> None:
    low, high = desk.enqueue(3, priority=0), desk.enqueue(3, priority=1)
    assert desk.claim(priorities=[1, 0]).ids == high + low


@pytest.mark.parametrize("limits", [[1], [7], [99, 1, 100, 3], [250], [*range(1, 22)]])
def test_a_claim_brings_exactly_as_many_as_it_may_and_the_rest_stays(desk: Desk, limits: list[int]) -> None:
    ids = desk.enqueue(150) + [desk.enqueue_one() for _ in range(10)] + desk.enqueue(90)
    taken: list[int] = []
    for limit in itertools.cycle(limits):
        before = len(taken)
        taken += desk.claim(limit).ids
        assert len(taken) - before == min(limit, 250 - before)
        if len(taken) == before:
            break
    assert taken == ids


@pytest.mark.parametrize("size", range(1, 251, 31))
def test_chunks_are_split_exactly_whatever_the_size(desk: Desk, size: int) -> None:
    for limit in (1, 50, 99, 100, 101, size):
        ids = desk.enqueue(size)
        first, second, rest = desk.claim(limit), desk.claim(limit), desk.claim(500)
        assert first.ids + second.ids + rest.ids == ids
        assert (len(first.ids), len(second.ids)) == (min(limit, size), min(limit, max(0, size - limit)))
        for held in (first, second, rest):
            if held.jobs:
                desk.complete(held)
    assert desk.leftovers() == {}


def test_a_chunk_holds_at_most_a_hundred_jobs_of_one_queue_kind_and_priority(desk: Desk) -> None:
    desk.insert(*[{"queue": f"q{n % 2}", "kind": f"k{n % 3}", "priority": n, "args": [{}] * 250} for n in range(6)])
    shapes = desk.sql(
        """select count(distinct (j.queue, j.kind, j.priority)), max(cardinality(r.ids)) from pgqueue.ready r
           join pgqueue.job j on j.id = any(r.ids) and (j.queue, j.kind, j.priority) = (r.queue, r.kind, r.priority)
           group by r.seq"""
    )
    assert all(distinct == 1 and size <= 100 for distinct, size in shapes)
    assert desk.value("select count(*) from pgqueue.ready") == 18


def test_kinds_that_the_worker_does_not_know_are_passed_over(desk: Desk) -> None:
    desk.enqueue(50, kind="stranger")
    known = desk.enqueue(3, kind="k")
    desk.enqueue(50, kind="stranger")
    assert desk.claim().ids == known
    assert desk.claim().ids == []
    assert len(desk.claim(kinds=["stranger"]).ids) == 100


def test_queues_are_apart(desk: Desk) -> None:
    a, b = desk.enqueue(2, queue="a"), desk.enqueue(2, queue="b")
    assert (desk.claim(queue="b").ids, desk.claim(queue="a").ids, desk.claim().ids) == (b, a, [])


def test_a_paused_queue_gives_nothing_until_it_is_resumed(desk: Desk) -> None:
    ids = desk.enqueue(2)
    desk.run(control.pause("default", schema="pgqueue"))
    assert desk.claim().ids == []
    desk.run(control.resume("default", schema="pgqueue"))
    assert desk.claim().ids == ids
    desk.die()
    desk.run(control.pause("default", schema="pgqueue"))
    assert desk.claim_suspect().ids == []


def test_a_worker_whose_heartbeat_is_overdue_or_which_has_stopped_gets_nothing(desk: Desk) -> None:
    desk.enqueue(2)
    silent, stopped, unknown = desk.register(), desk.register(), 10**9
    desk.silence(silent)
    desk.run(cluster.sign_off(stopped, schema="pgqueue"))
    for worker in (silent, stopped, unknown):
        assert desk.claim(worker=worker).ids == []
    assert desk.value("select count(*) from pgqueue.lease") == 0
    assert len(desk.claim().ids) == 2


@pytest.mark.parametrize("text", ["random", "x"])
@pytest.mark.parametrize("way", ["enqueued", "staged", "retried", "given back", "interrupted"])
def test_a_hundred_large_jobs_come_in_several_claims(desk: Desk, text: str, way: str) -> None:
    """The same for text that compresses well, and however they came to be available."""
    one = "x" * MIB if text == "x" else "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=MIB))
    count = 40
    desk.sql(
        "select pgqueue.enqueue('k', jsonb_build_object('t', left(%s, 1048500)), delay => %s) from generate_series(1, %s)",  # noqa: E501
        one, "1 hour" if way == "staged" else None, count,
    )  # fmt: skip
    if way == "staged":
        desk.make_due()
    elif way == "retried":
        ids = [int(id) for (id,) in desk.sql("select id from pgqueue.job")]
        desk.apply(Verb.CANCEL, *ids)
        desk.apply(Verb.RETRY, *ids)
    elif way != "enqueued":
        leases = [desk.claim(10) for _ in range(count // 10)]
        for held in reversed(leases):
            desk.settle(held, "available") if way == "interrupted" else desk.give_back(held)
    counts = []
    while (held := desk.claim()).batch.marks:
        counts.append(len(held.jobs))
    assert sum(counts) == count
    assert max(counts) <= 17


def test_what_is_given_back_goes_to_the_head_of_its_queue(desk: Desk) -> None:
    first, second = desk.enqueue(100), desk.enqueue(100)
    held = desk.claim(120)
    assert held.ids == first + second[:20]
    assert desk.give_back(held, held.jobs[10:], part=True) == 110
    assert desk.claim(150).ids == first[10:] + second[:60]


def test_what_is_given_back_has_cost_nothing(desk: Desk) -> None:
    (id,) = desk.enqueue()
    for _ in range(3):
        desk.give_back(desk.claim())
    job = desk.job(id)
    assert (job.attempt, job.crashes, job.errors, job.state) == (0, 0, [], "available")


def test_a_claim_starts_behind_its_mark_and_returns_the_next(desk: Desk) -> None:
    for _ in range(5):
        desk.enqueue(10)

    def claim(mark: int, limit: int) -> jobs.Batch:
        return desk.run(
            jobs.claim(
                "default", worker=desk.worker, lease=desk.new_lease(), kinds=KINDS, marks={0: mark}, chunks=9, limit=limit,  # noqa: E501
                schema="pgqueue",
            )
        )  # fmt: skip

    whole = claim(LOWEST_MARK, 20)
    assert whole.chunks == 2
    part = claim(whole.marks[0], 5)
    assert len(part.jobs) == 5
    assert len(claim(part.marks[0], 500).jobs) == 25, "a chunk that was split lies behind the mark"


def test_survey_finds_unknown_priorities_and_known_work(desk: Desk) -> None:
    def survey(*known: int, kinds: list[str] = KINDS) -> tuple[list[int], bool]:
        found, more = desk.run(
            jobs.survey("default", kinds=kinds, marks=dict.fromkeys(known, LOWEST_MARK), schema="pgqueue")
        )
        return sorted(found), more

    assert survey() == ([], False)
    for priority in (-32768, -1, 0, 5, 32767):
        desk.enqueue(priority=priority)
    assert survey() == ([-32768, -1, 0, 5, 32767], False)
    assert survey(0) == ([-32768, -1, 5, 32767], True)
    assert survey(-32768, -1, 0, 5, 32767) == ([], True)
    assert survey(-32768, -1, 0, 5, 32767, kinds=["stranger"]) == ([], False)


def test_survey_tells_only_of_priorities_with_work_of_known_kinds(desk: Desk) -> None:
    """Else a worker that knows none of two hundred priorities would never come to rest."""
    for priority in range(1, 200):
        desk.insert({"kind": "stranger", "priority": priority})
    desk.insert({"kind": "other", "priority": 7}, {"kind": "k", "priority": 9})
    found = desk.run(jobs.survey("default", kinds=KINDS, marks={0: LOWEST_MARK}, schema="pgqueue"))
    assert found == ([9, 7], False)


def test_suspects_are_claimed_alone_and_only_by_workers_that_know_their_kind(desk: Desk) -> None:
    desk.enqueue(2)
    desk.claim()
    desk.die()
    stranger = desk.run(
        jobs.claim_suspect("default", worker=desk.worker, lease=desk.new_lease(), kinds=["stranger"], schema="pgqueue")
    )
    assert stranger.jobs == []
    assert [len(desk.claim_suspect().jobs) for _ in range(3)] == [1, 1, 0]


def test_a_claim_tells_the_time_of_the_database(desk: Desk) -> None:
    desk.enqueue()
    clock = desk.claim().batch.clock_us
    assert clock is not None
    assert abs(clock - float(str(desk.value("select extract(epoch from clock_timestamp())"))) * 1e6) < 5e6


@pytest.mark.parametrize(
    "setting", ["enable_indexscan = off", "enable_nestloop = off", "enable_hashjoin = off", "enable_tidscan = off"]
)
def test_whatever_the_plan_a_claim_is_exact(desk: Desk, setting: str) -> None:
    desk.sql(f"set {setting}")
    ids = desk.enqueue(150) + [desk.enqueue_one() for _ in range(30)]
    taken: list[int] = []
    for limit in (1, 60, 100, 7, 500):
        held = desk.claim(limit)
        assert len(held.ids) == min(limit, 180 - len(taken))
        taken += held.ids
        assert desk.complete(held) == []
    assert sorted(taken) == ids
    assert desk.leftovers() == {}


# Uniqueness while others are at it: see test_concurrency


def test_of_jobs_with_one_key_in_a_batch_the_first_is_inserted(desk: Desk) -> None:
    answers = desk.insert({"unique_key": "u", "args": [{"n": 1}, {"n": 2}, {"n": 3}]})
    assert [each.inserted for each in answers] == [True, False, False]
    assert {each.id for each in answers} == {answers[0].id}
    assert desk.value("select args ->> 'n' from pgqueue.jobs") == "1"
    assert desk.insert({"unique_key": "u", "args": [{}, {}]}) == [replace(each, inserted=False) for each in answers[:2]]
    assert desk.insert({"unique_key": "u", "kind": "other"})[0].inserted


def test_a_key_is_free_again_when_its_job_is_final(desk: Desk) -> None:
    for ending in ("completed", "cancelled", "discarded", "stopped", "complete"):
        id = desk.enqueue_one(unique_key="u")
        held = desk.claim()
        assert held.ids == [id]
        assert not desk.insert({"unique_key": "u"})[0].inserted
        desk.complete(held) if ending == "complete" else desk.settle(held, ending)
    assert desk.leftovers() == {}
