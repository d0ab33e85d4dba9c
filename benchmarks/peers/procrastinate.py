"""Procrastinate, the usual choice for PostgreSQL in Python."""

from __future__ import annotations

from benchmarks.peers.install import python_peer
from benchmarks.peers.interface import DRAIN, LATENCY, Configuration
from benchmarks.peers.postgres import PostgresPeer

PEER = PostgresPeer(
    name="procrastinate",
    title="Procrastinate",
    history="the job's row and its events",
    recipe=python_peer("procrastinate", "procrastinate==3.10.0", "psycopg[binary]==3.3.9", "psycopg-pool==3.3.3"),
    unfinished="select count(*) from procrastinate_jobs where status in ('todo', 'doing')",
    enqueues=(1_000, 20_000),
    configurations=(
        Configuration("default", "async psycopg, concurrency 1", {}, jobs=800),
        Configuration(  # no faster: 50 at once
            "fast",
            "async psycopg, concurrency 20, pool of 22",
            {"pool": {"min_size": 4, "max_size": 22}, "worker": {"concurrency": 20}},
            jobs=1_000,
            workloads=(DRAIN, LATENCY),
        ),
    ),
)
