"""The views say what is so: counted one by one after a random history, however the sums were folded."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest

from pgqueue.core.states import FINAL, State, Verb
from pgqueue.db.schema import migrate
from pgqueue.store import cluster, control
from tests.store.desk import Desk, bring_to

QUEUES = ("default", "b")


def random_history(desk: Desk, seed: int, steps: int = 60) -> Counter[tuple[str, str]]:
    """Some of everything; answers with the outcomes per queue and state, as they were told."""
    dice = random.Random(seed)
    told: Counter[tuple[str, str]] = Counter()
    for _ in range(steps):
        queue = dice.choice(QUEUES)
        ids = [int(id) for (id,) in desk.sql("select id from pgqueue.job where queue = %s order by id", queue)]
        match dice.randrange(8):
            case 0 | 1:
                desk.enqueue(dice.randrange(1, 130), queue=queue, delay=dice.choice([None, 3600]))
            case 2:
                held = desk.claim(dice.randrange(1, 60), queue=queue, priorities=[5, 0])
                told[queue, "completed"] += len(held.jobs) - len(desk.complete(held))
            case 3:
                held = desk.claim(dice.randrange(1, 30), queue=queue, priorities=[5, 0])
                state = dice.choice(["discarded", "retryable", "scheduled", "completed"])
                recorded = desk.settle(held, state, delay=3600)
                told[queue, state] += sum(recorded.values()) * (state != "scheduled")
            case 4 if ids:
                verb = dice.choice([Verb.CANCEL, Verb.STOP])
                answers = desk.apply(verb, *dice.sample(ids, min(len(ids), 20)))
                for answer in answers.values():
                    told[queue, answer] += answer in ("cancelled", "stopped")
            case 5 if ids:
                desk.apply(
                    dice.choice([Verb.RETRY, Verb.RESCHEDULE, Verb.SET_PRIORITY]), *dice.sample(ids, min(len(ids), 20))
                )
            case 6:
                desk.claim(dice.randrange(1, 20), queue=queue, priorities=[5, 0])
                desk.rescue() if dice.random() < 0.5 else None
            case 7:
                desk.make_due() if dice.random() < 0.3 else desk.run(cluster.tidy(schema="pgqueue"))
    return told


@pytest.mark.parametrize("seed", range(4))
def test_after_a_random_history_the_views_agree_with_a_count_of_jobs(desk: Desk, seed: int) -> None:
    told = random_history(desk, seed)
    shown = {each.queue: asdict(each) for each in desk.run(control.queues(schema="pgqueue"))}
    for queue in QUEUES:
        counted = {
            str(s): int(n)
            for s, n in desk.sql("select state, count(*) from pgqueue.jobs where queue = %s group by 1", queue)
        }
        row = shown.get(queue, {})
        for state in set(State) - FINAL:
            assert row.get(state, 0) == counted.get(state, 0), f"{queue} {state}"
        for state in FINAL:
            assert row.get(state, 0) == told[queue, state], "the statistics count outcomes, retried ones as well"

    live = desk.sql("select id, state, attempt, scheduled_at, request from pgqueue.live_jobs order by id")
    jobs = desk.sql(
        """select id, state, attempt, scheduled_at, request from pgqueue.jobs
           where state not in ('completed', 'cancelled', 'discarded', 'stopped') order by id"""
    )
    assert live == jobs

    summed = desk.sql("select queue, state, sum(jobs) from pgqueue.job_stats group by 1, 2")
    assert {(q, s): int(n) for q, s, n in summed} == {key: n for key, n in told.items() if n}

    totals = desk.run(control.stats(schema="pgqueue"))
    assert totals["available"] == sum(each.available for each in desk.run(control.queues(schema="pgqueue")))


def test_queue_stats_says_the_same_as_before_it_was_made_faster(fresh_db: str) -> None:
    with Desk(fresh_db) as desk:
        random_history(desk, 7)
        bring_to(desk, State.PENDING)
        desk.run(control.pause("nothing ever ran here", schema="pgqueue"))
        (final,) = desk.enqueue(1, queue="only a final one, and no sum")
        desk.sql("truncate pgqueue.ready")
        desk.enqueue(150, queue="b")
        desk.sql("update pgqueue.job set status = 1, finalized_at = now() where id = %s", final)
        desk.sql(
            """insert into pgqueue.waiting (job_id, due, claim, state)
               select id, now(), claim - (status = 0)::integer, 'retryable' from pgqueue.job on conflict do nothing"""
        )
        desk.sql("insert into pgqueue.void (queue, jobs) values ('b', 7), ('default', 7), ('nobody', 7)")
        desk.sql("insert into pgqueue.tally values (now(), 'failures only', 'k', 'retryable', 3, 0, 0)")
        faster = desk.sql("select * from pgqueue.queue_stats order by queue")

        migrate(fresh_db, target="0003")
        assert desk.sql("select * from pgqueue.queue_stats order by queue") == faster
        assert {str(row[0]) for row in faster} == {*QUEUES, "nothing ever ran here", "failures only"}


def test_match_finds_the_same_jobs_by_every_way(desk: Desk) -> None:
    random_history(desk, 99, steps=30)
    for state in State:
        found = desk.run(control.match(control.Filter(state=state), limit=10_000, before=None, schema="pgqueue"))
        assert found == [
            id for (id,) in desk.sql("select id from pgqueue.jobs where state = %s order by id desc", str(state))
        ]
    everything = desk.run(control.match(control.Filter(queue="b"), limit=10_000, before=None, schema="pgqueue"))
    pages: list[int] = []
    while page := desk.run(
        control.match(control.Filter(queue="b"), limit=7, before=pages[-1] if pages else None, schema="pgqueue")
    ):
        pages += page
    assert pages == everything


def sums(desk: Desk) -> list[tuple[object, ...]]:
    return desk.sql(
        """select queue, kind, state, sum(jobs), round(sum(seconds)::numeric, 6), max(longest),
             count(*) filter (where jobs <= 0)
           from pgqueue.tally group by 1, 2, 3 order by 1, 2, 3"""
    )


def scatter(desk: Desk) -> None:
    """Sums of many minutes and the last days, several of each."""
    desk.sql(
        """insert into pgqueue.tally (minute, queue, kind, state, jobs, seconds, longest)
           select date_trunc('minute', now()) - n % 97 * interval '53 minutes', 'q' || n % 2, 'k' || n % 3,
             (array['completed', 'retryable'])[1 + n % 2], n, n / 7.0, n / 9.0 from generate_series(1, 3000) n"""
    )


def test_tidy_folds_sums_and_changes_none(desk: Desk) -> None:
    scatter(desk)
    before = sums(desk)
    for _ in range(3):
        desk.run(cluster.tidy(schema="pgqueue"))
    assert sums(desk) == before
    assert int(str(desk.value("select count(*) from pgqueue.tally"))) < 1000
    again = desk.sql("select * from pgqueue.tally order by minute, queue, kind, state")
    desk.run(cluster.tidy(schema="pgqueue"))
    assert desk.sql("select * from pgqueue.tally order by minute, queue, kind, state") == again


def test_four_that_tidy_at_once_change_no_sum(desk: Desk, desks: Callable[[], Desk]) -> None:
    scatter(desk)
    before = sums(desk)
    crew = [desks() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for done in [pool.submit(each.run, cluster.tidy(schema="pgqueue")) for each in crew]:
                done.result()
    assert sums(desk) == before


def test_workers_in_different_time_zones_fold_into_the_same_hours(desk: Desk, desks: Callable[[], Desk]) -> None:
    scatter(desk)
    elsewhere = desks()
    elsewhere.sql("set timezone = 'Asia/Kolkata'")
    desk.run(cluster.tidy(schema="pgqueue"))
    desk.run(cluster.tidy(schema="pgqueue"))
    folded = desk.sql("select minute from pgqueue.tally order by 1")
    elsewhere.run(cluster.tidy(schema="pgqueue"))
    assert desk.sql("select minute from pgqueue.tally order by 1") == folded


def test_the_oldest_available_job_is_one_that_can_be_claimed(desk: Desk) -> None:
    ids = desk.enqueue(120)
    desk.sql("update pgqueue.job set created_at = timestamptz '2020-01-01Z' + id * interval '1 second'")
    for verb, gone in ((Verb.CANCEL, ids[0]), (Verb.DELETE, ids[1]), (Verb.RESCHEDULE, ids[2])):
        desk.ask(verb, gone)
    oldest = "select extract(epoch from oldest_available_at - timestamptz '2020-01-01Z')::int from pgqueue.queue_stats"
    assert desk.value(oldest) == ids[3]
    desk.apply(Verb.CANCEL, *ids[3:119])
    assert desk.value(oldest) == ids[119]
    desk.claim()
    desk.die()
    assert desk.value(oldest) == ids[119], "suspects can be claimed too"
    desk.claim_suspect()
    assert desk.value(oldest) is None


def test_tidy_corrects_a_count_of_void_entries_that_a_race_got_wrong(desk: Desk) -> None:
    ids = desk.enqueue(5)
    desk.ask(Verb.CANCEL, ids[0])
    desk.sql("insert into pgqueue.void (queue, jobs) values ('default', 3), ('gone', 7)")
    available = "select available from pgqueue.queue_stats where queue = 'default'"
    assert desk.value(available) == 1
    desk.run(cluster.tidy(schema=desk.schema))
    assert desk.value(available) == 4
    assert desk.sql("select queue, jobs from pgqueue.void") == [("default", 1)]


def test_tidy_forgets_what_nobody_can_need(desk: Desk) -> None:
    gone, holding, here = desk.register("gone"), desk.register("holding"), desk.worker
    desk.enqueue()
    desk.claim(worker=holding)
    for worker in (gone, holding):
        desk.silence(worker)
    desk.sql("insert into pgqueue.lease values (1, %s, now() - interval '1 hour', false, '{}', '{}')", here)
    desk.sql("insert into pgqueue.lease values (2, %s, now(), false, '{}', '{}')", here)
    desk.sql("insert into pgqueue.request (job_id, action) values (999999, 'cancel')")
    desk.run(cluster.tidy(schema="pgqueue"))
    assert [name for (name,) in desk.sql("select name from pgqueue.worker order by id")] == ["holding", "w"]
    assert [id for (id,) in desk.sql("select id from pgqueue.lease where ids = '{}'")] == [2]
    assert "request" not in desk.leftovers()


def test_a_job_shows_its_life(desk: Desk) -> None:
    id = desk.enqueue_one(args={"a": 1}, tags=["t"], tenant="te", timeout=1.5)
    held = desk.claim()
    running = desk.job(id)
    assert (running.state, running.attempt, running.worker, running.duration) == ("running", 1, "w", None)
    desk.fail(held)
    failed = desk.job(id)
    assert (failed.state, failed.attempt, len(failed.errors)) == ("retryable", 1, 1)
    desk.make_due()
    held = desk.claim()
    assert desk.job(id).attempt == 2
    desk.settle(held, "completed", result={"r": [1]})
    done = desk.job(id)
    assert (done.state, done.attempt, done.result, done.tags, done.tenant) == ("completed", 2, {"r": [1]}, ["t"], "te")
    assert done.duration is not None
    assert done.duration.total_seconds() == 1
    assert done.timeout is not None
    assert done.timeout.total_seconds() == 1.5
    attempts = desk.sql("select attempt, state, error from pgqueue.job_attempts where job_id = %s order by attempt", id)
    assert attempts == [(1, "retryable", "m"), (2, "completed", None)]


def test_the_entries_of_a_cancelled_job_are_counted_until_a_claim_passes_them(desk: Desk) -> None:
    ids = desk.enqueue(10)
    desk.apply(Verb.CANCEL, *ids[:4])

    def available() -> int:
        return desk.run(control.stats(schema="pgqueue"))["available"]

    assert available() == 6
    assert desk.claim().batch.voids == 4
    assert available() == 0
    desk.enqueue(3)
    assert available() == 3


@pytest.mark.parametrize("state", State)
def test_every_state_is_counted_where_it_belongs(desk: Desk, state: State) -> None:
    bring_to(desk, state)
    (row,) = desk.run(control.queues(schema="pgqueue"))
    counts = {name: getattr(row, name) for name in State}
    retried = {State.RETRYABLE} & {state}
    assert {name for name, count in counts.items() if count} == {state} | retried


def test_workers_show_how_they_are(desk: Desk) -> None:
    silent, stopped = desk.register("silent"), desk.register("stopped")
    desk.silence(silent)
    desk.run(cluster.sign_off(stopped, schema="pgqueue"))
    assert desk.worker
    assert {each.name: each.state for each in desk.run(control.workers(schema="pgqueue"))} == {
        "silent": "silent", "stopped": "stopped", "w": "active",
    }  # fmt: skip
