"""What `pgqueue bench` measures. Each workload begins with an empty queue and gives one Figure or several, by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import count

from pgqueue.bench import trace
from pgqueue.bench.figures import Figure, figure
from pgqueue.bench.run import BATCH, LOOK, SETTLE, Run
from pgqueue.store import bench
from pgqueue.tasks.task import Call

WARM_UP = 20
BACKLOG = 10_000  # jobs that wait in `mixed`, at most
URGENT = 1  # priority of the single jobs in `mixed`
PATIENCE = 0.2  # seconds of waiting after which it is asked again whether the run is to end
AFTER_COMMIT = "COMMIT to start"


def enqueue(run: Run) -> dict[str, Figure]:
    """One by one, for `duration` at most; then in bulk. No worker is there."""
    run.q.pause(run.queue)
    for number in range(min(WARM_UP, run.plan.jobs)):
        run.tasks.noop.enqueue(number)  # opens the connection, and lets it prepare the statement
    one = _enqueue_one(run)
    many = _enqueue_many(run)
    trace.empty(run.q, run.queue)
    return {"enqueue_one": one, "enqueue_many": many}


def _enqueue_one(run: Run) -> Figure:
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < run.plan.jobs and (spent := time.perf_counter() - started) < run.plan.duration:
        run.check()
        times.append(_timed(lambda: run.tasks.noop.enqueue(len(times))))
        done = max(len(times) / run.plan.jobs, spent / run.plan.duration)
        run.show(done, 1, f"enqueuing one by one: {len(times):,} jobs")
    return figure(len(times), time.perf_counter() - started, times=times, timed="one enqueue and COMMIT")


def _enqueue_many(run: Run) -> Figure:
    times: list[float] = []
    started, done = time.perf_counter(), 0
    while done < run.plan.jobs:
        run.check()
        rows = [(done + number,) for number in range(min(BATCH, run.plan.jobs - done))]
        times.append(_timed(lambda rows=rows: run.tasks.noop.enqueue_many(rows)))  # type: ignore[misc]
        done += len(rows)
        run.show(done, run.plan.jobs, f"enqueuing {BATCH:,} at once: {done:,} jobs")
    spent = time.perf_counter() - started
    return figure(done, spent, times=times, timed=f"{min(BATCH, run.plan.jobs):,} jobs and COMMIT")


def drain(run: Run) -> dict[str, Figure]:
    """Jobs that wait when the workers may begin, from the first start to the last completion seen committed."""
    run.q.pause(run.queue)
    ids = run.fill(run.plan.jobs)
    run.start_workers()
    before = run.completed()
    run.q.resume(run.queue)
    run.await_completed(before + len(ids), since=before, what="draining")
    seen = time.perf_counter()
    ago = run.ask(bench.first_start(run.queue, first=ids[0], last=ids[-1], schema=run.q.schema))
    assert ago is not None, "they are completed"
    return {"drain": figure(len(ids), ago - (time.perf_counter() - seen))}


def latency(run: Run) -> dict[str, Figure]:
    """Single jobs at an even pace, for workers that have nothing else to do."""
    run.start_workers()
    run.q.resume(run.queue)
    before = run.completed()
    call = run.tasks.stamp.using()
    warm = _Paced(run, call, rate=max(WARM_UP, run.plan.rate))
    while len(warm.committed) < WARM_UP:
        warm.step()
    run.await_completed(before + WARM_UP, since=before, what="warming up")
    time.sleep(SETTLE)
    paced = _Paced(run, call, rate=run.plan.rate)
    while (spent := paced.spent) < run.plan.duration or not paced.committed:
        paced.step()
        run.show(spent, run.plan.duration, f"one job at a time: {len(paced.committed):,} jobs")
    spent = paced.spent
    run.await_completed(before + WARM_UP + len(paced.committed), since=before, what="waiting for the last ones")
    return {"latency": figure(len(paced.committed), spent, times=paced.waits(), timed=AFTER_COMMIT)}


def mixed(run: Run) -> dict[str, Figure]:
    """Bulk that keeps the workers busy, and single jobs of a higher priority among it."""
    run.start_workers()
    run.q.resume(run.queue)
    before = run.completed()
    paced = _Paced(run, run.tasks.stamp.using(priority=URGENT), rate=run.plan.rate)
    bulk, done, numbers = 0, 0, count()
    while (spent := paced.spent) < run.plan.duration or not paced.committed:
        done = run.completed() - before
        if bulk + len(paced.committed) - done <= BACKLOG - BATCH:
            run.tasks.noop.enqueue_many([(next(numbers),) for _ in range(BATCH)])
            bulk += BATCH
        paced.step(at_most=LOOK)
        run.show(spent, run.plan.duration, f"all at once: {done:,} jobs completed")
    done, spent = run.completed() - before, paced.spent
    run.await_completed(before + bulk + len(paced.committed), since=before, what="working off the rest")
    single = len(paced.committed)
    return {
        "mixed": figure(done, spent),
        "mixed_enqueue": figure(single, spent, times=paced.times, timed="one enqueue and COMMIT"),
        "mixed_latency": figure(single, spent, times=paced.waits(), timed=AFTER_COMMIT),
    }


class _Paced:
    """Enqueues single jobs, `rate` a second.

    committed  id -> when its COMMIT had been acknowledged, in nanoseconds of the monotonic clock
    times      how long each enqueue took with its COMMIT, in seconds
    """

    def __init__(self, run: Run, call: Call[[int], int], *, rate: float) -> None:
        self._run = run
        self._call = call
        self._rate = rate
        self._started = time.monotonic()
        self.committed: dict[int, int] = {}
        self.times: list[float] = []

    @property
    def spent(self) -> float:
        return time.monotonic() - self._started

    def step(self, *, at_most: float = PATIENCE) -> None:
        """Enqueue the next one if it is due, or wait for that, `at_most` so many seconds."""
        self._run.check()
        ahead = len(self.times) / self._rate - self.spent
        if ahead > 0:
            time.sleep(min(ahead, at_most))
        if ahead > at_most:
            return
        started = time.monotonic_ns()
        job = self._call.enqueue(len(self.times))
        self.committed[job.id] = ended = time.monotonic_ns()
        self.times.append((ended - started) / 1e9)

    def waits(self) -> list[float]:
        """Seconds from each COMMIT to the start, once all are completed; the news may come after the start: zero."""
        first, last = min(self.committed), max(self.committed)
        starts = self._run.ask(
            bench.results(self._run.queue, first=first, last=last, schema=self._run.q.schema),
        )
        return [max(0, starts[id] - committed) / 1e9 for id, committed in self.committed.items()]


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


WORKLOADS: Mapping[str, Callable[[Run], dict[str, Figure]]] = {
    "enqueue": enqueue,
    "drain": drain,
    "latency": latency,
    "mixed": mixed,
}
