"""Answers that are lost and connections that say nothing: no job is lost, none is completed twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from pgqueue import PgQueue, State
from tests.crash.kit import Bench, Fleet, Proxy, every

LONG: dict[str, Any] = {
    "lease": 3600,
    "beat": 0.3,
    "looks": (),
}  # a worker that lies down does not look again by itself
ASLEEP = """select count(*) > 0 from pg_locks l join pg_database d on d.oid = l.database
where datname = current_database() and locktype = 'advisory' and mode = 'ShareLock' and granted"""


HERE = " and datname = current_database()"


@pytest.fixture
def proxy(fresh_db: str) -> Iterator[Proxy]:
    found = Proxy(urlsplit(fresh_db).port or 5432)
    yield found
    found.close()


@pytest.fixture
def through(fresh_db: str, proxy: Proxy) -> str:
    """The database, through the proxy."""
    port = urlsplit(fresh_db).port
    return fresh_db.replace(f":{port}/", f":{proxy.port}/")


def test_a_claim_whose_answer_is_lost_is_asked_for_again(
    fleet: Fleet, bench: Bench, proxy: Proxy, through: str
) -> None:
    fleet.start(dsn=through, **LONG)
    bench.until(ASLEEP)
    proxy.cut("claim", after=True)
    bench.enqueue_many("quick", 50)
    assert proxy.cut_done["claim"].wait(30)
    bench.all_completed(50)

    assert set(fleet.count("ran").values()) == {1}
    assert bench.value("select max(attempt) + max(crashes) from pgqueue.job") == 0
    assert bench.value("select bool_and(claim = 0) from pgqueue.job"), "the one claim there was stood"


def test_a_claim_that_never_arrived_can_not_take_effect_later(
    fleet: Fleet, bench: Bench, proxy: Proxy, through: str
) -> None:
    fleet.start(dsn=through, **LONG)
    bench.until(ASLEEP)
    proxy.cut("claim", after=False)
    bench.enqueue_many("quick", 50)
    bench.all_completed(50)

    assert proxy.cut_done["claim"].is_set()
    assert bench.value("select count(*) from pgqueue.lease where ids = '{}'") == 1  # the tombstone
    assert set(fleet.count("ran").values()) == {1}


def test_an_answer_that_is_lost_after_a_claim_was_heard_gives_nothing_back(
    fleet: Fleet, bench: Bench, proxy: Proxy, through: str
) -> None:
    """The claimer asks more than claims on its connection; only a claim in doubt is undone."""
    fleet.start(dsn=through, **LONG)
    bench.until(ASLEEP)
    proxy.cut("claim", after=True, skip=1)
    bench.do("select pgqueue.enqueue('hold')")
    fleet.noted("begin")
    assert proxy.cut_done["claim"].wait(30)
    bench.do("select pgqueue.enqueue('quick', '{\"n\": 1}')")
    fleet.noted("ran")
    fleet.open_gate()
    bench.all_completed(2)

    assert set(fleet.count("begin").values()) == {1}
    assert bench.value("select max(claim) from pgqueue.job") == 0


@pytest.mark.parametrize("after", [True, False], ids=["committed", "not sent"])
def test_a_completion_whose_answer_is_lost_is_sent_again_and_counts_once(
    fleet: Fleet, bench: Bench, proxy: Proxy, through: str, after: bool
) -> None:
    fleet.start(dsn=through, **LONG)
    for times in range(1, 4):
        proxy.cut("complete", after=after)
        bench.enqueue_many("brief", 100)
        assert proxy.cut_done["complete"].wait(30)
        bench.all_completed(100 * times)

    assert set(fleet.count("ran").values()) == {1}


def test_a_heartbeat_that_hears_nothing_fences_its_worker_until_it_hears_again(
    q: PgQueue, fleet: Fleet, bench: Bench, proxy: Proxy, through: str
) -> None:
    sick = fleet.start(dsn=through)
    ids = [q.enqueue(kind).id for kind in ("hold", "ahold")]
    fleet.noted("begin", 2)
    proxy.freeze("heartbeat")
    fleet.noted("interrupted", 2)
    assert "no heartbeat was acknowledged" in fleet.log(0)
    waits = q.enqueue("quick", {"n": 1}).id
    healthy = fleet.start()
    fleet.noted("begin", 4)
    fleet.noted("ran")
    assert {*fleet.pids("ran")[waits], *(fleet.pids("begin")[id][1] for id in ids)} & {sick.pid} == set()
    healthy.terminate()
    fleet.open_gate()
    fleet.ends(healthy)
    proxy.thaw("heartbeat")
    bench.all_completed(3)
    back = q.enqueue("quick", {"n": 2}).id
    bench.all_completed(4)

    assert fleet.pids("ran")[back] == [sick.pid]
    assert q.job(back).state is State.COMPLETED


def test_a_heartbeat_connection_that_stays_silent_for_ever_is_replaced_in_time(
    fleet: Fleet, bench: Bench, proxy: Proxy, through: str
) -> None:
    """A dead network is the kernel's to find; here something answers for a server that does not."""
    fleet.start(dsn=through, lease=4, beat=0.3)
    bench.until(ASLEEP)
    proxy.abandon("heartbeat")
    seen = bench.value("select max(seen_at) from pgqueue.worker")
    bench.until("select max(seen_at) > %s + interval '3 seconds' from pgqueue.worker", seen)
    assert "interrupting" not in fleet.log(0)
    bench.enqueue_many("quick", 10)
    bench.all_completed(10)


def test_a_listen_connection_that_stays_silent_for_ever_is_replaced(
    fleet: Fleet, bench: Bench, proxy: Proxy, through: str
) -> None:
    fleet.start(dsn=through, lease=7200, beat=3600, looks=(), ping=0.3, answer=0.3)
    bench.until(ASLEEP)
    deaf = bench.value("select pid from pg_stat_activity where application_name = 'pgqueue listen'" + HERE)
    proxy.abandon("listen")
    bench.until(
        "select count(*) > 0 from pg_stat_activity where application_name = 'pgqueue listen' and pid <> %s" + HERE, deaf
    )
    bench.until(ASLEEP.replace("granted", "granted and pid <> %s"), deaf)
    bench.enqueue_many("quick", 10)
    bench.all_completed(10)


def test_connections_that_are_ended_all_the_time_cost_no_job(q: PgQueue, fleet: Fleet, bench: Bench) -> None:
    dice = random.Random(7)
    fleet.start(lease=3600, beat=0.2, queues={"default": 8})
    fleet.start(lease=3600, beat=0.2, queues={"default": 8})
    assassin = Bench(bench.dsn, fleet)

    def end_one() -> object:
        role = dice.choice(["claim", "complete", "heartbeat", "listen"])
        return assassin.value(
            """select pg_terminate_backend(pid) from pg_stat_activity
               where application_name = %s and datname = current_database() order by random() limit 1""",
            f"pgqueue {role}",
        )

    total = 0
    with every(0.1, end_one) as ended:
        while total < 2000 or ended.count(True) < 30:
            bench.enqueue_many("brief", 100)
            total += 100
            fleet.noted("ran", total - 300)
    bench.all_completed(total)
    assassin.close()

    assert bench.value("select max(attempt) + max(crashes) from pgqueue.job") == 0
    assert bench.value("select count(*) from pgqueue.attempt") == 0
    # A claim whose answer was lost goes back before anything of it has started, so nothing runs twice.
    assert set(fleet.count("ran").values()) == {1}
