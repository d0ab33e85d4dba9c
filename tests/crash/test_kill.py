"""Workers that die or sleep: their jobs run elsewhere, once to the end, and what comes too late changes nothing."""

from __future__ import annotations

import signal

import pytest

from pgqueue import PgQueue, State
from tests.crash.kit import LEASE, Bench, Fleet, freeze


@pytest.mark.parametrize("kind", ["hold", "ahold"])
def test_the_job_of_a_killed_worker_runs_elsewhere(q: PgQueue, fleet: Fleet, bench: Bench, kind: str) -> None:
    victim = fleet.start()
    id = q.enqueue(kind).id
    fleet.noted("begin")
    heir = fleet.start()
    victim.kill()
    fleet.noted("begin", 2)
    fleet.open_gate()
    bench.all_completed(1)

    job = q.job(id)
    assert (job.state, job.result, job.attempt, job.crashes) == (State.COMPLETED, "held", 1, 0)
    assert [error["type"] for error in job.errors] == ["WorkerLost"]
    first, second = fleet.pids("begin")[id]
    assert first == victim.pid
    assert second != victim.pid
    assert heir.poll() is None


def test_jobs_claimed_ahead_by_a_killed_worker_run_elsewhere_and_are_not_blamed(
    q: PgQueue, fleet: Fleet, bench: Bench
) -> None:
    victim = fleet.start(queues={"default": 1})
    bench.enqueue_many("quick", 3000)
    blocker = q.enqueue("hold", priority=1).id
    fleet.noted("begin")
    held = bench.value("select count(*) from pgqueue.lease, unnest(ids)")
    assert isinstance(held, int)
    victim.kill()
    fleet.start(queues={"default": 4})
    fleet.open_gate()
    bench.all_completed(3001)

    assert bench.value("select max(crashes) from pgqueue.job") == 0
    assert bench.value("select max(attempt) from pgqueue.job") == 0
    assert max(fleet.count("ran").values()) <= 2
    assert fleet.count("ran")[blocker] == 1


def test_a_zombie_changes_nothing(q: PgQueue, fleet: Fleet, bench: Bench) -> None:
    """Stopped for longer than its lease, it wakes up and reports what another has run and finished meanwhile."""
    zombie = fleet.start()
    ids = [q.enqueue(kind).id for kind in ("hold", "ahold", "stubborn")]
    fleet.noted("begin", 3)
    freeze(zombie)
    fleet.start()
    fleet.noted("begin", 6)
    fleet.open_gate()
    bench.all_completed(3)
    row = "select md5(string_agg(j::text, ';' order by id)) from pgqueue.job j"
    attempts = "select md5(string_agg(a::text, ';' order by job_id, claim)) from pgqueue.attempt a"
    before = (bench.value(row), bench.value(attempts))
    zombie.send_signal(signal.SIGCONT)
    fleet.until(lambda: "came too late" in fleet.log(0), "the zombie reports")
    zombie.send_signal(signal.SIGTERM)

    assert fleet.ends(zombie) == 0
    assert (bench.value(row), bench.value(attempts)) == before
    bench.all_completed(3)
    assert all(count <= 2 for count in fleet.count("ran").values()), ids


def test_a_worker_that_slept_too_long_interrupts_what_it_runs(q: PgQueue, fleet: Fleet, bench: Bench) -> None:
    """However soon its heartbeat beats again: meanwhile others may have taken its jobs."""
    sleeper = fleet.start()
    for kind in ("hold", "ahold"):
        q.enqueue(kind)
    fleet.noted("begin", 2)
    freeze(sleeper)
    fleet.start()
    fleet.noted("begin", 4)
    sleeper.send_signal(signal.SIGCONT)
    fleet.until(lambda: sum(fleet.count("interrupted").values()) == 2, "both are interrupted")
    assert {pid for pids in fleet.pids("interrupted").values() for pid in pids} == {sleeper.pid}
    fleet.open_gate()
    bench.all_completed(2)


def test_so_does_one_whose_event_loop_wakes_later_than_its_heartbeat(q: PgQueue, fleet: Fleet, bench: Bench) -> None:
    sleeper = fleet.start()
    for kind in ("hold", "ablock"):
        q.enqueue(kind)
    fleet.noted("begin", 2)
    freeze(sleeper)
    fleet.start()
    fleet.noted("begin", 4)
    seen = bench.value("select max(seen_at) from pgqueue.worker")
    sleeper.send_signal(signal.SIGCONT)
    bench.until("select seen_at > %s from pgqueue.worker where pid = %s", seen, sleeper.pid)
    fleet.unblock()
    fleet.noted("interrupted")
    fleet.open_gate()
    bench.all_completed(2)


def test_a_worker_that_slept_a_little_goes_on(q: PgQueue, fleet: Fleet, bench: Bench) -> None:
    sleeper = fleet.start(lease=3600, beat=0.3)
    q.enqueue("hold")
    fleet.noted("begin")
    freeze(sleeper)
    fleet.start()
    seen = bench.value("select max(seen_at) from pgqueue.worker")
    bench.until("select max(seen_at) > %s + interval '2 seconds' from pgqueue.worker", seen)
    sleeper.send_signal(signal.SIGCONT)
    fleet.open_gate()
    bench.all_completed(1)

    assert sum(fleet.count("begin").values()) == 1


def test_a_blocked_event_loop_is_no_death(q: PgQueue, fleet: Fleet, bench: Bench) -> None:
    fleet.start()
    fleet.start(queues={"other": 1})
    id = q.enqueue("hog", {"seconds": LEASE * 2}).id
    bench.all_completed(1)

    assert fleet.count("begin") == {id: 1}
    assert q.job(id).errors == []
    assert "interrupting" not in fleet.log(0)


def test_what_kills_its_worker_three_times_is_discarded_and_its_neighbours_are_not(
    q: PgQueue, fleet: Fleet, bench: Bench
) -> None:
    neighbours = [q.enqueue("quick", {"n": n}).id for n in range(10)]
    bad = q.enqueue("killer").id
    neighbours += [q.enqueue("quick", {"n": n}).id for n in range(10)]
    workers = [fleet.start(queues={"default": 2})]
    for _ in range(20):
        if bench.value("select status > 0 from pgqueue.job where id = %s", bad):
            break
        fleet.until(
            lambda: (
                workers[-1].poll() is not None or bench.value("select status > 0 from pgqueue.job where id = %s", bad)
            ),
            "the killer has struck",
        )
        if workers[-1].poll() is not None:
            workers.append(fleet.start(queues={"default": 2}))
    bench.until("select count(*) = 20 from pgqueue.job where status = 1 and id = any(%s)", neighbours)

    job = q.job(bad)
    assert (job.state, job.crashes, job.attempt) == (State.DISCARDED, 3, 0)
    assert {error["type"] for error in job.errors} == {"WorkerLost"}
    assert fleet.count("begin")[bad] == 4
    assert len(workers) == 2  # the first crash took the worker along, the others only a process of their own
    assert bench.value("select max(crashes) from pgqueue.job where id = any(%s)", neighbours) == 0


def test_an_import_whose_worker_is_killed_goes_on_with_no_row_missing_or_twice(
    q: PgQueue, fleet: Fleet, bench: Bench
) -> None:
    bench.do("create table imported (n int primary key, pid int)")
    victim = fleet.start()
    id = q.enqueue("imports", {"upto": 500}).id
    bench.until("select count(*) > 50 from imported")
    victim.send_signal(signal.SIGKILL)
    fleet.ends(victim, 10)
    both = "select (select value::int from pgqueue.checkpoint) = (select max(n) from imported)"
    assert bench.value(both), "the mark is that of the last row"
    fleet.start()
    bench.all_completed(1)

    assert bench.do("select count(*), min(n), max(n), count(distinct pid) from imported").fetchone() == (500, 1, 500, 2)
    assert q.result(id) == 500
    assert fleet.count("begin")[id] == 2
