"""One run of `pgqueue bench`: what its workloads share, from the note that it exists to the removal of all it made.

Guarantees: a request to end is obeyed between two statements, so that no connection is left in the middle of one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, TypeVar

from pgqueue import PgQueue
from pgqueue.bench import trace
from pgqueue.bench.crew import Crew
from pgqueue.bench.tasks import Setup, define
from pgqueue.errors import PgqueueError
from pgqueue.store import bench
from pgqueue.store.statement import Statement

T = TypeVar("T")
Show = Callable[[int, int, str], object]

LOOK = 0.01  # seconds between looks at how far the workers are
SHOW = 0.1
SETTLE = 0.5  # seconds from the registration of workers to the first job
PATIENCE = 60.0  # seconds without progress after which there will be none
BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of it. `duration` in seconds, `rate` in jobs a second."""

    jobs: int
    duration: float
    rate: float
    processes: int
    executor: Literal["async", "thread", "process"]
    concurrency: int


class Interrupted(BaseException):
    """Somebody asked the run to end."""


class Run:
    """A run in progress. Leaving the block stops its workers and removes what it made.

    show    called with how far a workload is, of how much, and in words
    wanted  asked between two statements: is the run to go on?
    removed  nothing of it is left
    """

    def __init__(self, q: PgQueue, plan: Plan, *, show: Show, wanted: Callable[[], bool]) -> None:
        self.q = q
        self.plan = plan
        self._show = show
        self._wanted = wanted
        self._shown = 0.0
        self.removed = False
        self.trace = trace.Trace(q)
        self.queue = self.trace.queue
        setup = Setup(queue=self.queue, schema=q.schema, pooled=q.pooled, executor=plan.executor)
        self.tasks = define(q, setup)
        self._crew = Crew(q, setup, count=plan.processes, concurrency=plan.concurrency)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        try:
            self._tell("stopping the workers")
            self._crew.stop()
            trace.remove(self.q, self.queue, lambda done, total: self.show(done, total, "removing the jobs"))
            self.removed = True
        finally:
            self.trace.close()

    def ask(self, statement: Statement[T]) -> T:
        """Run a statement, unless the run is to end.

        raises  Interrupted; PgqueueError if a worker has ended
        """
        self.check()
        return self.q.pool.run(statement)

    def check(self) -> None:
        """Raise Interrupted if the run is to end, PgqueueError if a worker has ended."""
        if not self._wanted():
            raise Interrupted
        self._crew.check()

    def show(self, done: float, total: float, text: str) -> None:
        """Say how far it is, but not more often than anybody can read."""
        if time.monotonic() - self._shown >= SHOW:
            self._shown = time.monotonic()
            self._show(int(done * 1000), int(total * 1000), text)

    def start_workers(self) -> None:
        """Have all workers ready."""
        if self._crew.started:
            return
        self._tell(f"starting {self.plan.processes} worker{'s' * (self.plan.processes > 1)}")
        self._crew.start()
        started = time.monotonic()
        while self.ask(bench.working(self.queue, schema=self.q.schema)) < self.plan.processes:
            if time.monotonic() - started > PATIENCE:
                raise PgqueueError(f"the workers of the bench were not ready within {PATIENCE:g} s")
            time.sleep(LOOK)
        time.sleep(SETTLE)

    def fill(self, jobs: int, *, first: int = 0) -> list[int]:
        """Enqueue so many that do nothing; answers with their ids."""
        ids: list[int] = []
        while len(ids) < jobs:
            self.check()
            size = min(BATCH, jobs - len(ids))
            rows = [(first + len(ids) + number,) for number in range(size)]
            ids += [job.id for job in self.tasks.noop.enqueue_many(rows)]
            self.show(len(ids), jobs, f"enqueuing {jobs:,} jobs")
        return ids

    def completed(self) -> int:
        """How many jobs of this run are completed."""
        return self.ask(bench.completed(self.queue, worker=self.trace.worker, schema=self.q.schema))

    def await_completed(self, goal: int, *, since: int, what: str) -> None:
        """Wait until so many jobs are completed, of which `since` were before.

        raises  PgqueueError if there is no progress any more
        """
        last, moved = since, time.monotonic()
        while True:
            asked = time.monotonic()
            done, now = self.completed(), time.monotonic()
            if done >= goal:
                return
            if done > last:
                last, moved = done, now
            if now - moved > PATIENCE:
                raise PgqueueError(f"{goal - done:,} of {goal - since:,} jobs are not completed, none within a minute")
            self.show(done - since, goal - since, f"{what}: {done - since:,} of {goal - since:,} jobs")
            time.sleep(max(LOOK, 5 * (now - asked)))  # looking must not be what is measured

    def _tell(self, text: str) -> None:
        self._shown = time.monotonic()
        self._show(0, 1, text)
