"""Graphile Worker, for node."""

from __future__ import annotations

from benchmarks.peers.install import node_peer
from benchmarks.peers.interface import DRAIN, LATENCY, Configuration
from benchmarks.peers.postgres import PostgresPeer

# The fastest of what was tried: 24 jobs at once, a local queue of 500 and no delay, as its documentation measures it,
# did 0.88 of this; 24 with 250 ms 0.92; 100 with a pool of 12 0.87.
BATCHED = {
    "concurrency": 100,
    "maxPoolSize": 102,
    "preset": {
        "concurrentJobs": 100,
        "maxPoolSize": 102,
        "localQueue": {"size": 2_000},
        "completeJobBatchDelay": 5,
        "failJobBatchDelay": 5,
    },
}

PEER = PostgresPeer(
    name="graphile",
    title="Graphile Worker",
    history="nothing: finished jobs are deleted",
    recipe=node_peer("graphile", "Graphile Worker", "graphile-worker@0.18.0"),
    unfinished="select count(*) from graphile_worker._private_jobs",
    enqueues=(2_000, 60_000),
    configurations=(
        Configuration("default", "concurrentJobs 1, no batching", {}, jobs=2_500),
        Configuration(
            "fast",
            "concurrentJobs 100, maxPoolSize 102, localQueue 2,000, completeJobBatchDelay 5 ms",
            BATCHED,
            jobs=120_000,
            workloads=(DRAIN, LATENCY),
        ),
    ),
)
