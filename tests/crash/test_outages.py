"""The database goes away and comes back, workers die and sleep: every job ends once, and none is lost.

These tests have a server of their own, which keeps what it has committed even when it crashes.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgqueue import PgQueue
from pgqueue.db.schema import migrate
from pgqueue.demo.postgres import EmbeddedServer
from tests.crash.kit import LEASE, Bench, Fleet
from tests.servers import GIVEN_DSN, versions

pytestmark = pytest.mark.skipif(GIVEN_DSN is not None or not versions(), reason="needs a server that it may stop")


@pytest.fixture
def server(home: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(home / "server", port=_port()) as found:
        migrate(found.dsn())
        yield found


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def fresh_db(server: EmbeddedServer) -> str:
    return server.dsn()


def stop(server: EmbeddedServer, mode: str) -> None:
    """Stop it fast, or as if it had crashed."""
    if mode == "immediate":
        assert server.pid is not None
        os.kill(server.pid, signal.SIGQUIT)
    server.stop()


def restart(server: EmbeddedServer, mode: str) -> None:
    stop(server, mode)
    server.start()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_workers_outlive_restarts_of_the_database(
    server: EmbeddedServer, fleet: Fleet, bench: Bench, mode: str
) -> None:
    workers = [fleet.start(lease=3600, beat=0.3, queues={"default": 4}) for _ in range(2)]
    for _ in range(15):
        bench.enqueue_many("brief", 100)
    bench.do("select pgqueue.enqueue('hold')")  # runs from before the first restart until after the last
    for part in (200, 600, 1000):
        fleet.until(lambda: sum(fleet.count("ran").values()) >= part, f"{part} have run")  # noqa: B023
        restart(server, mode)
    fleet.open_gate()
    bench.all_completed(1501)

    assert [worker.poll() for worker in workers] == [None, None]
    assert bench.value("select max(attempt) + max(crashes) from pgqueue.job") == 0
    # A crash forgets claims that had just been made; only such jobs may run again.
    assert mode == "immediate" or set(fleet.count("ran").values()) == {1}


def test_outcomes_are_kept_while_the_database_is_away(server: EmbeddedServer, fleet: Fleet, bench: Bench) -> None:
    worker = fleet.start(lease=3600, beat=0.3, queues={"default": 20})
    for _ in range(20):
        bench.do("select pgqueue.enqueue('hold')")
    fleet.noted("begin", 20)
    stop(server, "fast")
    fleet.open_gate()
    fleet.noted("ran", 20)
    fleet.until(lambda: "outcomes are kept until it is back" in fleet.log(0), "it can't write them")
    server.start()
    bench.all_completed(20)

    assert set(fleet.count("begin").values()) == {1}
    worker.send_signal(signal.SIGTERM)
    assert fleet.ends(worker) == 0


def test_a_worker_ends_when_told_though_the_database_is_away(
    server: EmbeddedServer, fleet: Fleet, bench: Bench, fresh_db: str
) -> None:
    worker = fleet.start(grace=0.2)
    bench.do("select pgqueue.enqueue('ahold')")
    fleet.noted("begin")
    stop(server, "fast")
    fleet.until(lambda: "the database is away" in fleet.log(0), "it has noticed")
    worker.send_signal(signal.SIGTERM)
    fleet.until(lambda: "stopping" in fleet.log(0), "it has heard the first")
    worker.send_signal(signal.SIGTERM)

    assert fleet.ends(worker, 9) == 0
    server.start()
    fleet.start()
    fleet.noted("begin", 2)
    fleet.open_gate()
    bench.all_completed(1)
    assert bench.value("select max(attempt) + max(crashes) from pgqueue.job") == 0


JOBS = 3000
ROUNDS = 10


@pytest.mark.parametrize("seed", [int(os.environ.get("PGQUEUE_STORM_SEED", "20260101"))])
def test_a_storm(server: EmbeddedServer, fleet: Fleet, bench: Bench, seed: int) -> None:
    """Three workers; kills, stops and restarts as the seed has it. PGQUEUE_STORM_SEED tries another."""
    dice = random.Random(seed)
    q = PgQueue(bench.dsn)
    # Little is claimed ahead: each job that a dead worker held is run in a process of its own, half a second of CPU.
    settings: dict[str, Any] = {"queues": {"default": 4}, "ahead": 0.02}
    for _ in range(3):
        fleet.start(wait=False, **settings)
    living = list(fleet.processes)
    done = 0
    for round in range(ROUNDS):
        for kind in ("nap", "flaky", "nap", "tnap", "nap", "tnap"):
            bench.until("select true")
            bench.enqueue_many(kind, JOBS // ROUNDS // 6)
        done += JOBS // ROUNDS
        fleet.until(lambda: len(fleet.count("ran")) >= done * 0.7, f"round {round} of seed {seed}")  # noqa: B023
        victim = dice.choice(living)
        match dice.choice(["kill", "kill", "sleep", "terminate", "fast", "immediate"]):
            case "kill":
                victim.kill()
                victim.wait()
            case "terminate":
                victim.terminate()
                fleet.ends(victim)
            case "sleep":
                _sleep(victim, bench)
            case mode:
                restart(server, mode)
        living = [process for process in living if process.poll() is None]
        while len(living) < 3:
            living.append(fleet.start(wait=False, **settings))
    bench.all_completed(JOBS)
    for process in living:
        process.send_signal(signal.SIGTERM)
    assert [fleet.ends(process) for process in living] == [0] * 3

    ran = fleet.count("ran")
    assert len(ran) == JOBS  # none lost
    assert bench.value("select bool_and(claim >= 0 and was = 0 and status = 1) from ends")  # each ended once, from open
    assert bench.value("select count(*) from pgqueue.ready") == 0
    assert bench.value("select count(*) from pgqueue.waiting") == 0
    assert bench.value("select count(*) from pgqueue.suspect") == 0
    assert sum(ran.values()) < JOBS * 1.5  # what was repeated is what was in the hands of the dead
    q.close()


def _sleep(process: subprocess.Popen[bytes], bench: Bench) -> None:
    """Stop it until its lease has run out and a bit."""
    process.send_signal(signal.SIGSTOP)
    bench.until(
        """select coalesce(max(seen_at) + %s * interval '1 second' < clock_timestamp(), true)
           from pgqueue.worker where pid = %s and stopped_at is null""",
        LEASE * 1.3,
        process.pid,
    )
    process.send_signal(signal.SIGCONT)
