"""PgQueuer, the fastest of the queues that are Python only."""

from __future__ import annotations

from benchmarks.peers.install import python_peer
from benchmarks.peers.interface import DRAIN, LATENCY, Configuration
from benchmarks.peers.postgres import PostgresPeer

PEER = PostgresPeer(
    name="pgqueuer",
    title="PgQueuer",
    history="a row per change of state in pgqueuer_log",
    recipe=python_peer("pgqueuer", "pgqueuer==1.6.0", "asyncpg==0.32.0", "uvloop==0.23.0"),
    unfinished="select count(*) from pgqueuer",
    enqueues=(2_000, 60_000),
    configurations=(
        Configuration("default", "asyncpg, one connection, uvloop, batch_size 10", {"run": {}}, jobs=8_000),
        Configuration(  # no faster: batches of 2,000; of 1,000 with a pool of 20
            "fast",
            "asyncpg pool of 10, uvloop, batch_size 500",
            {"pool": 10, "run": {"batch_size": 500}},
            jobs=40_000,
            workloads=(DRAIN, LATENCY),
        ),
    ),
)
