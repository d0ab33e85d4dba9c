"""awa: a Rust engine with Python bindings."""

from __future__ import annotations

from benchmarks.peers.install import python_peer
from benchmarks.peers.interface import DRAIN, LATENCY, Configuration
from benchmarks.peers.postgres import PostgresPeer

# Its view awa.jobs tells the same, but takes seconds for some ten thousand jobs.
UNFINISHED = """
select %(jobs)s
  - (select coalesce(sum(completed_count), 0) from awa.receipt_completion_batches where queue = 'bench')
  - (select count(*) from awa.done_entries where queue = 'bench' and state = 'completed')
"""

PEER = PostgresPeer(
    name="awa",
    title="awa",
    history="a narrow row per finished job, for 24 hours",
    recipe=python_peer("awa", "awa-pg==0.6.9"),
    unfinished=UNFINISHED,
    enqueues=(2_000, 60_000),
    configurations=(
        Configuration("default", "50 workers (its QueueConfig's default)", {"queue": {"max_workers": 50}}, jobs=8_000),
        Configuration(  # no faster: four claimers, 128 or 256 workers; four stripes of storage never began
            "fast",
            "1,024 workers, claim_batch_size 512, 20 connections",
            {
                "client": {"max_connections": 20},
                "queue": {"max_workers": 1_024, "claim_batch_size": 512},
            },
            jobs=20_000,
            workloads=(DRAIN, LATENCY),
        ),
    ),
)
