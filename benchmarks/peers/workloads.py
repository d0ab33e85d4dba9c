"""The three measurements, the same for every peer.

drain    a backlog is there before the worker starts. The clock runs from the entry into the job after the first
         twentieth (the worker is warm then) until the store says that none is unfinished: all are durably done.
enqueue  one producer process: one at a time by the peer's call for one job, then batches of 1,000 by its call for many;
         each call returns when its jobs are committed.
latency  jobs enqueued at an even pace into an idle worker: from the return of the call to the first line of the task.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.harness import Bench
from benchmarks.peers.interface import DRAIN, ENQUEUE, LATENCY, Configuration, Environment, Peer, Store
from benchmarks.peers.processes import WorkerProcess, producer, worker
from benchmarks.processes import Stamps, stamps
from pgqueue.bench.figures import percentile

BATCH = 1_000
PARTS = 20  # a drain's; the first one warms up
PACE = 20
WARM_UP = 10
DRAIN_SECONDS = 120.0
START_SECONDS = 30.0
REST_SECONDS = 1.0  # until the worker is idle
LATENCY_SECONDS = 20.0
POLL = 0.005

Sample = Mapping[str, float]  # figure -> value


class TooSlow(Exception):
    """A peer did not do in time what it was asked to: a finding, not a fault."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything: all of it, or a fraction to see that it works."""

    quick: bool

    def jobs(self, full: int) -> int:
        """So many; quickly, a tenth of them."""
        return max(4, full // 10) if self.quick else full

    @property
    def latency_jobs(self) -> int:
        """The 99th percentile of 100 would be one stall of the machine."""
        return 20 if self.quick else 300


def measure(workload: str, bench: Bench, peer: Peer, way: Configuration, environment: Environment) -> Sample:
    """One sample of one workload. Raises TooSlow or ProgramFailed."""
    scale = Scale(bench.quick)
    with peer.store(bench, environment, way) as store:
        if workload == DRAIN:
            return _drain(store, environment, way, scale.jobs(way.jobs))
        if workload == ENQUEUE:
            one, many = peer.enqueues
            return _enqueue(store, environment, way, scale.jobs(one), scale.jobs(many))
        assert workload == LATENCY, workload
        return _latency(store, environment, way, scale.latency_jobs)


def _drain(store: Store, environment: Environment, way: Configuration, jobs: int) -> Sample:
    stride = max(1, jobs // PARTS)
    last = stride * (jobs // stride)
    with stamps() as file:
        with producer(environment, store.target, way) as filling:
            filling.seconds("many", first=0, count=last + 1, batch=BATCH)
        store.settle()
        with worker(environment, store.target, way, stamps=file, stride=stride) as running:
            _entered(file, running, last // stride + 1, within=DRAIN_SECONDS)
            finished = _finished(store, running, last + 1, within=DRAIN_SECONDS)
        warm = dict(file.read())[stride]
    return {"drain": (last - stride) / (finished - warm)}


def _enqueue(store: Store, environment: Environment, way: Configuration, one: int, many: int) -> Sample:
    with producer(environment, store.target, way) as enqueuing:
        enqueuing.seconds("one", first=0, count=max(10, one // 10))
        enqueuing.seconds("many", first=0, count=BATCH, batch=BATCH)
        store.settle()
        single = enqueuing.seconds("one", first=0, count=one)
        bulk = enqueuing.seconds("many", first=0, count=many, batch=BATCH)
    return {"enqueue one": one / single, "enqueue many": many / bulk}


def _latency(store: Store, environment: Environment, way: Configuration, jobs: int) -> Sample:
    with (
        stamps() as file,
        worker(environment, store.target, way, stamps=file, stride=1) as running,
        producer(environment, store.target, way) as enqueuing,
    ):
        enqueuing.moments("paced", first=0, count=WARM_UP, pace=PACE)
        _entered(file, running, WARM_UP, within=START_SECONDS)
        time.sleep(REST_SECONDS)
        acknowledged = enqueuing.moments("paced", first=WARM_UP, count=jobs, pace=PACE)
        try:
            entered = dict(_entered(file, running, WARM_UP + jobs, within=LATENCY_SECONDS))
        except TooSlow as error:
            raise TooSlow(f"it can't keep up with {PACE} jobs a second: {error}") from None
    waits = [(entered[WARM_UP + place] - moment) * 1000 for place, moment in enumerate(acknowledged)]
    return {f"latency {name}": percentile(waits, share) for name, share in (("p50", 0.5), ("p99", 0.99))}


def _entered(file: Stamps, running: WorkerProcess, count: int, *, within: float) -> list[tuple[int, float]]:
    """Wait for so many stamps."""
    deadline = time.monotonic() + within
    while len(found := file.read()) < count:
        running.check()
        if time.monotonic() > deadline:
            raise TooSlow(f"{len(found)} of {count} stamps after {within:.0f} s")
        time.sleep(POLL)
    return found


def _finished(store: Store, running: WorkerProcess, jobs: int, *, within: float) -> float:
    """Wait until nothing is unfinished; when that was seen."""
    deadline = time.monotonic() + within
    while left := store.unfinished(jobs):
        running.check()
        if time.monotonic() > deadline:
            raise TooSlow(f"{left} jobs are not finished {within:.0f} s after the last one was entered")
        time.sleep(POLL)
    return time.monotonic()
