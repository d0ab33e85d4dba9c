"""SIGTERM: no new work, what has not started goes back at once, what runs may end; a second one is not patient."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from pgqueue import PgQueue, State
from tests.crash.kit import Bench, Fleet

LONG: dict[str, Any] = {"lease": 3600, "beat": 1, "grace": 3600}


def test_sigterm_lets_running_jobs_end_and_hands_back_the_others_at_once(
    q: PgQueue, fleet: Fleet, bench: Bench
) -> None:
    bench.enqueue_many("quick", 3000)
    worker = fleet.start(**LONG | {"queues": {"default": 1}})
    fleet.noted("ran", 300)
    running = q.enqueue("hold", priority=1).id
    fleet.noted("begin")
    worker.send_signal(signal.SIGTERM)
    bench.until("select count(*) = 1 from pgqueue.jobs where state = 'running'")
    assert q.job(running).state is State.RUNNING
    late = q.enqueue("quick", {"n": -1}, priority=5).id
    ran = sum(fleet.count("ran").values())
    fleet.open_gate()

    assert fleet.ends(worker) == 0
    assert "the end" in fleet.log(0)
    assert q.job(running).state is State.COMPLETED
    assert q.job(late).state is State.AVAILABLE
    assert sum(fleet.count("ran").values()) == ran + 1
    assert bench.value("select max(attempt) + max(crashes) from pgqueue.job") == 0
    assert bench.value("select count(*) from pgqueue.lease") == 0
    assert bench.value("select state from pgqueue.workers") == "stopped"
    # What was handed back is first again, in its order.
    fleet.start(**LONG | {"queues": {"default": 1}})
    bench.all_completed(3002)
    order = [job for _, job, _, event in fleet.lines() if event == "ran" and job not in (running, late)]
    assert order == sorted(order)
    assert set(fleet.count("ran").values()) == {1}


@pytest.mark.parametrize("kind", ["hold", "ahold", "stubborn"])
def test_over_the_grace_running_jobs_are_interrupted_and_handed_back(
    q: PgQueue, fleet: Fleet, bench: Bench, kind: str
) -> None:
    worker = fleet.start(**LONG | {"grace": 0.2})
    id = q.enqueue(kind).id
    fleet.noted("begin")
    worker.send_signal(signal.SIGTERM)

    assert fleet.ends(worker, 10) == 0
    job = q.job(id)
    assert (job.state, job.attempt, job.crashes, job.errors) == (State.AVAILABLE, 0, 0, [])
    assert bench.value("select count(*) from pgqueue.suspect") == 0
    fleet.start(**LONG)
    fleet.noted("begin", 2)
    fleet.open_gate()
    bench.all_completed(1)
    assert q.job(id).attempt == 1


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait_for_the_grace(
    q: PgQueue, fleet: Fleet, bench: Bench, second: signal.Signals
) -> None:
    worker = fleet.start(**LONG)
    ids = [q.enqueue(kind).id for kind in ("hold", "ahold")]
    fleet.noted("begin", 2)
    worker.send_signal(signal.SIGTERM)
    fleet.until(lambda: "stopping" in fleet.log(0), "it has heard the first")
    worker.send_signal(second)

    assert fleet.ends(worker, 10) == 0
    assert [(q.job(id).state, q.job(id).attempt) for id in ids] == [(State.AVAILABLE, 0)] * 2


def test_a_signal_at_any_moment_of_the_start_ends_the_worker_and_leaves_no_job_behind(
    q: PgQueue, fleet: Fleet, bench: Bench
) -> None:
    bench.enqueue_many("quick", 50)
    workers = [fleet.start(wait=False, **LONG) for _ in range(3)]
    for worker, sign in zip(workers, ("import", "takes from", "ran"), strict=True):
        if sign == "takes from":
            number = fleet.processes.index(worker)
            fleet.until(lambda: "takes from" in fleet.log(number), "it has a worker row")  # noqa: B023
        elif sign == "ran":
            fleet.noted("ran")
        worker.send_signal(signal.SIGTERM)
        assert fleet.ends(worker, 15) in (0, -signal.SIGTERM)  # before Python listens, the system's default

    assert bench.value("select count(*) from pgqueue.jobs where state = 'running'") == 0
    assert bench.value("select count(*) from pgqueue.lease") == 0
    assert set(fleet.count("ran").values()) <= {1}


def test_a_worker_that_can_not_reach_its_database_ends_when_told(fleet: Fleet) -> None:
    worker = fleet.start(dsn="postgresql://nobody@127.0.0.1:1/nothing", wait=False)
    fleet.until(lambda: "can't be reached" in fleet.log(0), "it waits for the database")
    worker.send_signal(signal.SIGTERM)

    assert fleet.ends(worker, 10) == 0
