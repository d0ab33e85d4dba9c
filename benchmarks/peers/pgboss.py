"""pg-boss, for node."""

from __future__ import annotations

from benchmarks.peers.install import node_peer
from benchmarks.peers.interface import Configuration
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
        Configuration(  # 500 jobs per call, four calls at once: 0.86 of this
            "fast",
            "1,000 jobs per call of the function, localConcurrency 8, burstWhenBatchFull, LISTEN/NOTIFY",
            {
                "queue": {"notify": True},
                "boss": {"useListenNotify": True},
                "work": {"batchSize": 1_000, "burstWhenBatchFull": True, "localConcurrency": 8},
            },
            jobs=80_000,
        ),
    ),
)
