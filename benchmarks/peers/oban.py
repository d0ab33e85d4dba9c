"""Oban for Python, the free edition."""

from __future__ import annotations

from benchmarks.peers.install import python_peer
from benchmarks.peers.interface import DRAIN, LATENCY, Configuration
from benchmarks.peers.postgres import PostgresPeer

PEER = PostgresPeer(
    name="oban",
    title="Oban for Python",
    history="the job's row, for 24 hours",
    recipe=python_peer("oban", "oban==0.7.0", "psycopg[binary]==3.3.9", "psycopg-pool==3.3.3", at_least=(3, 12)),
    unfinished="select count(*) from oban_jobs where state <> 'completed'",
    enqueues=(1_000, 8_000),
    configurations=(
        Configuration("default", "uvloop, orjson, queue limit 10, pool of 10", {"limit": 10}, jobs=3_000),
        Configuration(  # limits of 200 and 4,000: the same within what runs differ
            "fast", "as default, with queue limit 1,000", {"limit": 1_000}, jobs=8_000, workloads=(DRAIN, LATENCY)
        ),
    ),
)
