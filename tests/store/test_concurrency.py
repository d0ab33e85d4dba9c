"""Many connections at once: every job is completed exactly once, none is lost, and nobody sees a deadlock."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from psycopg import errors

from pgqueue.core.states import Verb
from pgqueue.store import cluster, control
from tests.store.desk import Desk, Held, wait_until_blocked

PRIORITIES = (5, 0, -5)
FAILED: dict[str, object] = {"delay": 0, "attempt_cost": 1, "error": {"type": "E"}}


class Crew:
    """Threads with a desk each, a common end, and their first error."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.done = threading.Event()

    def run(self, *parts: Callable[[Desk, random.Random], None]) -> None:
        with ThreadPoolExecutor(len(parts)) as pool:
            futures = [pool.submit(self._work, part, number) for number, part in enumerate(parts)]
            try:
                for future in futures:
                    future.result()
            finally:
                self.done.set()

    def _work(self, part: Callable[[Desk, random.Random], None], number: int) -> None:
        with Desk(self._dsn) as desk:
            desk.sql("set statement_timeout = '30s'")
            try:
                part(desk, random.Random(number))
            except BaseException:
                self.done.set()
                raise


@pytest.fixture
def crew(dsn: str) -> Iterator[Crew]:
    yield Crew(dsn)  # noqa: PT022


def finished(desk: Desk) -> bool:
    return not desk.sql("select 1 from pgqueue.job where status = 0 limit 1")


def complete_some(desk: Desk, held: Held, dice: random.Random, accepted: Counter[int]) -> None:
    """Complete the lease in parts, as flushes come; outcomes of every kind among them."""
    left = list(held.jobs)
    dice.shuffle(left)
    while left:
        part, left = left[: (size := dice.randrange(1, 100))], left[size:]
        choice = dice.random()
        try:
            if choice < 0.1:
                desk.give_back(held, part, part=bool(left))
            elif choice < 0.3:
                state, more = ("completed", {"result": 1}) if choice < 0.2 else ("retryable", FAILED)
                recorded = desk.settle(held, state, part, part=bool(left), **more)
                accepted.update(id for id, yes in recorded.items() if yes and state == "completed")
                left += [job for job in part if recorded.get(job.id) is False]
            else:
                lost = desk.complete(held, part, part=bool(left))
                accepted.update({job.id for job in part} - set(lost))
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            left += part  # as the completer does


def test_six_workers_of_whom_some_die_complete_every_job_exactly_once(crew: Crew, desk: Desk) -> None:
    ids: list[int] = []
    for _ in range(30):
        for kind, priority in ((k, p) for k in ("k", "other", "third") for p in PRIORITIES):
            ids += desk.enqueue(random.Random(len(ids)).randrange(1, 40), kind=kind, priority=priority)
    accepted: list[Counter[int]] = [Counter() for _ in range(6)]

    def worker(number: int) -> Callable[[Desk, random.Random], None]:
        def work(mine: Desk, dice: random.Random) -> None:
            while not crew.done.is_set():
                held = mine.claim(dice.randrange(1, 250), priorities=PRIORITIES)
                if held.jobs and dice.random() < 0.1:
                    mine.silence()  # dies; the same thread goes on as another worker
                    continue
                if not held.jobs:
                    held = mine.claim_suspect()
                if not held.jobs and finished(mine):
                    return
                complete_some(mine, held, dice, accepted[number])

        return work

    def heart(mine: Desk, dice: random.Random) -> None:
        while not crew.done.is_set() and not finished(mine):
            mine.rescue()
            mine.stage()
            mine.run(cluster.tidy(schema="pgqueue"))

    crew.run(*map(worker, range(6)), heart)
    assert sum(accepted, Counter()) == Counter(dict.fromkeys(ids, 1))
    assert desk.states() == {"completed": len(ids)}
    assert desk.tallied()["completed"] == len(ids)
    desk.sql("update pgqueue.worker set stopped_at = now()")
    desk.rescue()  # leases that were held by nobody any more
    desk.rescue()
    assert desk.leftovers() == {}


def test_claims_cancels_completions_and_retries_of_the_same_jobs_never_deadlock(crew: Crew, desk: Desk) -> None:
    ids = desk.enqueue(300)
    ids += [each.id for each in desk.insert(*[{"unique_key": f"u{n}"} for n in range(100)])]
    rounds = 40
    desk.sql("select pg_stat_force_next_flush()" if desk.conn.info.server_version >= 150000 else "select 1")
    before = deadlocks(desk)

    def verbs(*choices: Verb) -> Callable[[Desk, random.Random], None]:
        def apply(mine: Desk, dice: random.Random) -> None:
            for _ in range(rounds):
                chosen = dice.sample(ids, 150)
                answers = mine.apply(dice.choice(choices), *chosen)
                assert len(answers) == 150

        return apply

    def worker(mine: Desk, dice: random.Random) -> None:
        for _ in range(rounds * 2):
            held = mine.claim(dice.randrange(1, 100))
            complete_some(mine, held, dice, Counter())
            mine.make_due() if dice.random() < 0.2 else None

    crew.run(
        verbs(Verb.CANCEL, Verb.STOP),
        verbs(Verb.RETRY),
        verbs(Verb.CANCEL, Verb.RETRY, Verb.RESCHEDULE),
        worker,
        worker,
    )
    assert deadlocks(desk) == before
    assert desk.value("select count(*) from pgqueue.job") == 400
    drain(desk)
    assert desk.value("select count(*) from pgqueue.job where status = 0") == 0
    assert set(desk.leftovers()) <= {"unique_key"}
    assert all(each.inserted for each in desk.insert(*[{"unique_key": f"u{n}"} for n in range(100)])), "none is stuck"


def deadlocks(desk: Desk) -> int:
    return int(str(desk.value("select deadlocks from pg_stat_database where datname = current_database()")))


def drain(desk: Desk) -> None:
    """Nothing open is lost: it can all be run, once its time has come."""
    for _ in range(10):
        desk.make_due()
        while (held := desk.claim(priorities=[5, 0])).batch.marks:
            desk.complete(held)
        while (held := desk.claim_suspect()).jobs:
            desk.complete(held)
        if not desk.sql("select 1 from pgqueue.job where status = 0 limit 1"):
            desk.run(cluster.tidy(schema="pgqueue"))
            return


def test_every_verb_on_the_same_jobs_at_once_loses_none(crew: Crew, desk: Desk) -> None:
    """Reschedule, priorities, staging, claims and failures in each other's way: the races of test_races by chance."""
    ids = desk.enqueue(200)

    def verbs(mine: Desk, dice: random.Random) -> None:
        for _ in range(60):
            chosen = dice.sample(ids, dice.randrange(1, 60))
            match dice.randrange(4):
                case 0:
                    mine.run(control.set_priority(chosen, priority=dice.choice([0, 5]), schema="pgqueue"))
                case 1:
                    mine.apply(Verb.RESCHEDULE, *chosen)
                case 2:
                    mine.apply(Verb.RETRY, *chosen)
                case 3:
                    mine.make_due()

    def worker(mine: Desk, dice: random.Random) -> None:
        for _ in range(60):
            held = mine.claim(dice.randrange(1, 60), priorities=[5, 0])
            if held.jobs and dice.random() < 0.1:
                mine.die()
                continue
            held = held if held.jobs else mine.claim_suspect()
            for job in held.jobs:
                mine.fail(held, chosen=[job], part=True, delay=dice.choice([0, 3600]))
            mine.give_back(held, [], part=False)

    crew.run(verbs, verbs, worker, worker)
    desk.sql("update pgqueue.worker set stopped_at = now() where id <> %s", desk.worker)
    while desk.rescue() != (0, 0):
        pass
    drain(desk)
    assert desk.states() == {"completed": 200}
    assert desk.leftovers() == {}


def test_fifty_callers_with_a_few_keys_each_get_a_live_job(crew: Crew, desk: Desk) -> None:
    """F3: an answer always names a job, inserted or live at that time; there is never more than one live per key."""

    def enqueue(mine: Desk, dice: random.Random) -> None:
        for _ in range(60):
            key = f"u{dice.randrange(3)}"
            (answer,) = mine.insert({"unique_key": key})
            assert mine.sql("select 1 from pgqueue.job where id = %s and unique_key = %s", answer.id, key)
            if dice.random() < 0.5:
                mine.ask(Verb.CANCEL, answer.id)
            live = mine.sql("select unique_key from pgqueue.job where status = 0 group by 1 having count(*) > 1")
            assert live == []

    crew.run(*[enqueue] * 8)


def test_when_the_first_of_two_rolls_back_the_second_inserts(desk: Desk, desks: Callable[[], Desk]) -> None:
    """F2: never "there is one already" with nothing there."""
    first, second = desks(), desks()
    first.sql("begin")
    assert first.insert({"unique_key": "u"})[0].inserted
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(second.insert, {"unique_key": "u"})
        wait_until_blocked(desk, second.pid)
        first.sql("rollback")
        (answer,) = waiting.result()
    assert answer.inserted
    assert desk.state(answer.id) == "available"


def test_when_the_first_of_two_commits_the_second_gets_its_job(desk: Desk, desks: Callable[[], Desk]) -> None:
    first, second = desks(), desks()
    first.sql("begin")
    (original,) = first.insert({"unique_key": "u"})
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(second.insert, {"unique_key": "u"})
        wait_until_blocked(desk, second.pid)
        first.sql("commit")
        assert waiting.result() == [replace(original, inserted=False)]


def test_a_claim_passes_over_chunks_that_another_is_claiming(desk: Desk, desks: Callable[[], Desk]) -> None:
    first = [desk.enqueue(100) for _ in range(3)]
    other = desks()
    other.sql("begin")
    assert other.claim(50, worker=desk.worker, chunks=1).ids == first[0][:50]
    desk.sql("set lock_timeout = '1ms'")
    assert desk.claim(500).ids == first[1] + first[2]
    other.sql("rollback")
    assert desk.claim(500).ids == first[0]


def test_stage_passes_over_what_another_is_staging(desk: Desk, desks: Callable[[], Desk]) -> None:
    ids = desk.enqueue(10, delay=1)
    desk.sql("update pgqueue.waiting set due = now() - interval '1 s'")
    other = desks()
    other.sql("begin")
    assert other.stage(4) == 4
    desk.sql("set lock_timeout = '1ms'")
    assert desk.stage() == 6
    other.sql("commit")
    assert sorted(desk.claim().ids) == ids
