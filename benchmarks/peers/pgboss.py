"""pg-boss, for node."""

from __future__ import annotations

from benchmarks.peers.install import node_peer
from benchmarks.peers.interface import DRAIN, LATENCY, Configuration
from benchmarks.peers.postgres import PostgresPeer

PEER = PostgresPeer(
    name="pgboss",
    title="pg-boss",
    history="the job's row, for 7 days",
    recipe=node_peer("pgboss", "pg-boss", "pg-boss@12.38.0"),
    unfinished="select count(*) from pgboss.job where state < 'completed' and name = 'bench'",
    enqueues=(2_000, 60_000),
    configurations=(
        Configuration("default", "one job per fetch, a fetch every 2 s", {}, jobs=4),
        Configuration(
            "fast",
            "500 jobs per call of the function, localConcurrency 4, burstWhenBatchFull, LISTEN/NOTIFY",
            {
                "queue": {"notify": True},
                "boss": {"useListenNotify": True},
                "work": {"batchSize": 500, "burstWhenBatchFull": True, "localConcurrency": 4},
            },
            jobs=80_000,
            workloads=(DRAIN, LATENCY),
        ),
    ),
)
