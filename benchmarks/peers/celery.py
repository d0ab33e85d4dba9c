"""Celery with a Redis of its own: not in the caller's transaction, and on other storage than the rest."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.harness import Bench
from benchmarks.peers.install import python_peer
from benchmarks.peers.interface import DRAIN, LATENCY, Configuration, Environment, Store
from benchmarks.peers.stores import redis, redis_version

RECIPE = python_peer("celery", "celery[redis]==5.7.0", "kombu==5.7.0", "redis==8.1.0", "hiredis==3.5.0")
APPEND = ("--save", "", "--appendonly", "yes", "--appendfsync")
QUEUE = "bench"
ALONE = ("--pool", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat")
CONF = {"worker_prefetch_multiplier": 500, "task_ignore_result": True, "worker_enable_remote_control": False}


@dataclass(frozen=True, slots=True)
class CeleryPeer:
    """Implements Peer; its store is a Redis server."""

    name: str = "celery"
    title: str = "Celery, Redis"
    history: str = "nothing, without a result backend"
    enqueues: tuple[int, int] = (1_500, 2_000)
    configurations: tuple[Configuration, ...] = (
        Configuration(
            "default",
            "prefork, a child per core; Redis syncs its log every second: a crash loses up to that",
            {"fsync": "everysec"},
            jobs=2_000,
        ),
        Configuration(  # no faster: prefork with a prefetch of 128, 20 threads
            "fast",
            "the solo pool (one process, one job at a time), prefetch 500, no remote control; Redis as default",
            {"fsync": "everysec", "arguments": ALONE, "conf": CONF},
            jobs=2_000,
            workloads=(DRAIN, LATENCY),
        ),
        Configuration(
            "durable",
            "as fast, but Redis syncs each write, and jobs are acknowledged when they have run",
            {"fsync": "always", "arguments": ALONE, "conf": CONF | {"task_acks_late": True}},
            jobs=2_000,
        ),
    )

    def install(self, cache: Path) -> Environment:
        server = redis_version()
        environment = RECIPE(cache)
        return replace(environment, versions={**environment.versions, "redis-server": server})

    def store(self, bench: Bench, environment: Environment, way: Configuration) -> AbstractContextManager[Store]:
        return redis(QUEUE, [*APPEND, str(way.settings["fsync"])])


PEER = CeleryPeer()
