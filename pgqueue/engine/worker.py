"""A worker: one process (or part of one) that runs jobs. Puts the engine's parts together and ends them in order.

Guarantees: it comes back after any outage of the database. When it can't be sure of its lease any more it stops by
itself (`lease` less a margin after the last acknowledged heartbeat): claims nothing, gives back what waits, interrupts
what runs. When asked to stop it hands back what has not started, lets the rest finish for `grace` seconds, then
interrupts it; nothing of that costs a job an attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from pgqueue.core.outcome import Asked, Ended, Interrupted
from pgqueue.core.states import Verb
from pgqueue.db.failure import DatabaseError, is_outage
from pgqueue.db.listen import Listener
from pgqueue.db.session import Session
from pgqueue.engine.backoff import Backoff
from pgqueue.engine.claimer import Claimer
from pgqueue.engine.completer import Clock, Completer
from pgqueue.engine.executors import AsyncExecutor, ThreadExecutor
from pgqueue.engine.heartbeat import Heartbeat
from pgqueue.engine.lane import FOREVER, Attempt, Executor, Lane, Reason
from pgqueue.engine.place import check_importable
from pgqueue.engine.processes import ProcessExecutor
from pgqueue.store import cluster
from pgqueue.tasks.task import Task

log = logging.getLogger("pgqueue.worker")

LOOKS = (0.0, 0.005, 0.025, 0.1, 0.5)  # seconds after lying down at which to look for what was being committed then
INTERRUPTED_WAIT = 2.0  # seconds that interrupted attempts get to end
CLAIM_WAIT = 5.0  # seconds for the answer to a claim that is under way
FLUSH_WAIT = 10.0  # seconds for the database to take the last outcomes
HASTY_FLUSH_WAIT = 1.0
VERSION = "0.1.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How a worker works.

    queues      name -> how many of its jobs run at once
    lease       seconds for which its jobs stay its own after a heartbeat; it gives up `margin` seconds earlier
    grace       seconds that running jobs get when it is stopped
    dsn         for claiming and completing; `pooled`: there is a PgBouncer in transaction mode behind it
    direct_dsn  for LISTEN; None: it polls
    """

    queues: Mapping[str, int]
    dsn: str
    direct_dsn: str | None
    pooled: bool = False
    schema: str = "pgqueue"
    name: str | None = None
    lease: float = 15.0
    margin: float = 4.0
    grace: float = 20.0

    @property
    def trust(self) -> float:
        """Seconds after an acknowledged heartbeat for which the worker's jobs are its own beyond doubt."""
        return self.lease - self.margin


class Worker:
    """One worker. Use it for one `run`."""

    def __init__(
        self,
        options: WorkerOptions,
        *,
        tasks: Mapping[str, Task[..., object]],
        make_context: Callable[[Attempt], object],
        make_process_executor: Callable[[Callable[[Attempt, Ended], None]], Executor] | None = None,
        on_note: Callable[[Attempt, bytes], None] = lambda attempt, note: None,
    ) -> None:
        self.options = options
        self._tasks = tasks
        self._make_context = make_context
        self._make_process_executor = make_process_executor
        self._on_note = on_note
        check_importable(tasks.values())
        self._held: set[Attempt] = set()
        self._sessions: list[Session] = []
        self._doubtful: list[int] = []
        self._fenced = False
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self.ready = asyncio.Event()  # it has a worker row and claims
        self.id = 0
        self.install = UUID(int=0)  # which database it works for, once it is ready

    def stop(self) -> None:
        """Stop in order; a second call: at once. On the event loop's thread."""
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    async def run(self) -> None:
        """Work until stopped."""
        try:
            await self._run()
        finally:
            for session in self._sessions:
                await session.close()

    async def _run(self) -> None:
        self._identity = _identity(self.options, sorted(self._tasks))
        if not await self._register():
            return
        log.info("worker %s (%d) takes from %s", self._identity.name, self.id, ", ".join(self.options.queues))
        self._assemble()
        self._heartbeat.start()
        try:
            await self._work()
        finally:
            for executor in self._executors.values():
                if isinstance(executor, ThreadExecutor):
                    executor.close()
            await asyncio.to_thread(self._heartbeat.stop)
            await self._sign_off()

    async def _register(self) -> bool:
        backoff = Backoff()
        session = self._session("register")
        while not self._stop.is_set():
            try:
                self.id, self.install = await session.run(cluster.register(self._identity, schema=self.options.schema))
                await session.close()
                return True
            except DatabaseError as error:
                if not is_outage(error):
                    raise
                log.warning("the database can't be reached, trying again: %s", str(error).strip())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), backoff.next())
        return False

    def _assemble(self) -> None:
        loop = asyncio.get_running_loop()
        options = self.options
        self._clock = Clock()
        self._heartbeat = Heartbeat(  # around the pooler if there is a way: a full pool is no reason to lose the lease
            options.direct_dsn or options.dsn, pooled=options.pooled and options.direct_dsn is None,
            schema=options.schema, worker=self.id, identity=self._identity,
            trust=options.trust,
            running=lambda: sum(lane.running for lane in self._lanes), doubtful=self._take_doubtful,
            on_pulse=lambda pulse: loop.call_soon_threadsafe(self._pulsed, pulse),
        )  # fmt: skip
        self._completer = Completer(
            self._session("complete"), schema=options.schema, clock=self._clock, on_lost=self._lost,
            on_waiting=self._heartbeat.hurry,
        )  # fmt: skip
        self._lanes = [Lane(queue, limit, self._low) for queue, limit in options.queues.items()]
        self._executors: dict[str, Executor] = {
            "async": AsyncExecutor(self._report, self._make_context),
            "thread": ThreadExecutor(self._report, self._make_context),
        }
        if self._make_process_executor is not None:
            self._executors["process"] = self._make_process_executor(self._report)
        else:
            settings = {
                "dsn": options.dsn, "schema": options.schema, "pooled": options.pooled, "install": str(self.install),
            }  # fmt: skip
            self._executors["process"] = ProcessExecutor(self._report, settings=settings, on_note=self._on_note)
        self._claimer = Claimer(
            self._session("claim"), schema=options.schema, worker=self.id, lanes=self._lanes, tasks=self._tasks,
            completer=self._completer, clock=self._clock, executor_of=lambda task: self._executors[task.executor],
            solo=self._executors["process"], held=self._held,
        )  # fmt: skip

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as group:
            background = [group.create_task(self._completer.run()), group.create_task(self._watch())]
            gate: Callable[[frozenset[str]], None] = lambda queues: None  # noqa: E731
            if self.options.direct_dsn is None:
                log.warning("no direct connection is configured: polling instead of LISTEN")
            else:
                listener = self._listener(self.options.direct_dsn)
                gate = listener.want_gates
                background.append(group.create_task(listener.run()))
            claiming = group.create_task(self._claimer.run(gate))
            self.ready.set()
            await self._stop.wait()
            await self._wind_down(claiming)
            for task in background:
                task.cancel()

    def _listener(self, dsn: str) -> Listener:
        loop = asyncio.get_running_loop()

        def look_soon(queues: frozenset[str]) -> None:
            for delay in LOOKS:
                for queue in queues:
                    loop.call_later(delay, self._claimer.wake, queue)

        listener = Listener(
            dsn, schema=self.options.schema,
            on_ready=lambda queue: self._claimer.wake_all() if queue is None else self._claimer.wake(queue),
            on_control=self._told,
        )  # fmt: skip
        listener.on_gates = look_soon
        return listener

    async def _wind_down(self, claiming: asyncio.Task[None]) -> None:
        log.info("stopping: %d jobs are running", sum(lane.running for lane in self._lanes))
        self._claimer.stop()
        for lane in self._lanes:
            lane.open = False
        self._return_waiting()
        await asyncio.wait({claiming}, timeout=CLAIM_WAIT)
        claiming.cancel()  # its answer hasn't come; if it ever does, rescue finds those jobs
        self._return_waiting()
        await self._until_idle(self.options.grace, self._stop_now)
        for attempt in list(self._held):
            attempt.interrupt(Reason.SHUTDOWN)
        await self._until_idle(INTERRUPTED_WAIT)
        for attempt in list(self._held):  # threads that do not look at their context: they end with the process
            log.warning("job %d (%s) did not stop; it is given back all the same", attempt.job.id, attempt.job.kind)
            self._report(attempt, Interrupted())
        try:
            async with asyncio.timeout(HASTY_FLUSH_WAIT if self._stop_now.is_set() else FLUSH_WAIT):
                await self._completer.flush()
        except TimeoutError:
            log.error(
                "%d outcomes could not be written (%d wait for rows that others have locked); their jobs run again",
                self._completer.backlog, self._completer.locked,
            )  # fmt: skip

    def _return_waiting(self) -> None:
        for lane in self._lanes:
            self._give_back(lane.drop())

    def _give_back(self, attempts: Sequence[Attempt]) -> None:
        self._held.difference_update(attempts)
        self._completer.give_back(attempts)

    async def _until_idle(self, seconds: float, or_event: asyncio.Event | None = None) -> None:
        deadline = time.monotonic() + seconds
        # Looked at now and then: attempts end in threads and processes too.
        while self._held and time.monotonic() < deadline and not (or_event and or_event.is_set()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def _sign_off(self) -> None:
        session = self._session("sign off")
        try:
            async with asyncio.timeout(5):
                await session.run(cluster.sign_off(self.id, schema=self.options.schema))
        except (DatabaseError, TimeoutError) as error:
            log.warning("could not sign off; the lease runs out by itself: %s", error)
        finally:
            await session.close()

    # What the parts tell each other -------------------------------------------------------------------------------

    def _report(self, attempt: Attempt, ended: Ended) -> None:
        """An executor: an attempt has ended. Any thread. Only the first report about an attempt counts."""
        try:
            self._held.remove(attempt)
        except KeyError:
            return
        self._completer.report(attempt, ended)

    def _low(self) -> None:
        self._claimer.low()

    def _lost(self, ids: Sequence[int]) -> None:
        log.warning("%d outcomes came too late, their jobs belong to others or were closed: %s", len(ids), ids[:20])

    def _told(self, what: str | None) -> None:
        """A control notification: look, and if it names a job of ours, find out about that one."""
        if what is not None and what.isascii() and what.isdecimal() and len(what) < 19:  # anybody may send anything
            if all(attempt.job.id != int(what) for attempt in list(self._held)):
                return
            self._doubtful.append(int(what))
        self._heartbeat.hurry()

    def _take_doubtful(self) -> Sequence[int]:
        taken, self._doubtful = self._doubtful, []
        return taken

    def _pulsed(self, pulse: cluster.Pulse) -> None:
        self._claimer.pulse(busy=pulse.busy, suspect=pulse.suspect, paused=pulse.paused)
        if pulse.requests or pulse.closed:
            for attempt in list(self._held):
                if attempt.job.id in pulse.requests:
                    self._ask(attempt, pulse.requests[attempt.job.id])
                elif attempt.job.id in pulse.closed:
                    attempt.interrupt(Reason.LOST)
        if pulse.paused:
            for lane in self._lanes:
                if lane.queue in pulse.paused:
                    self._give_back(lane.drop())

    def _ask(self, attempt: Attempt, verb: Verb) -> None:
        if attempt.started_at:
            attempt.interrupt(Reason.CANCEL if verb is Verb.CANCEL else Reason.STOP)
        for waiting in attempt.lane.drop(lambda a: a is attempt):
            self._report(waiting, Asked(verb))

    async def _watch(self) -> None:
        """Time-outs, and the worker's own lease."""
        lapses = 0
        while True:
            now = time.monotonic()
            nearest = FOREVER
            for attempt in list(self._held):
                if attempt.started_at and attempt.deadline <= now:
                    attempt.interrupt(Reason.TIMEOUT)
                elif attempt.deadline < nearest:
                    nearest = attempt.deadline
            if to_keep := list(self._to_keep(now)):
                self._completer.keep(to_keep)
            lapsed, lapses = self._heartbeat.lapses > lapses, self._heartbeat.lapses
            overdue = now - self._heartbeat.last_beat > self.options.trust
            if overdue is not self._fenced:
                self._fence(overdue)
            elif lapsed:  # it is over already: the whole process slept, or the event loop did when it happened
                self._fence(True)
                self._fence(False)
            await asyncio.sleep(0.05 if nearest - now < 2 else 0.5)

    def _to_keep(self, now: float) -> Iterator[Attempt]:
        """The attempts whose steps are to be made durable now."""
        for attempt in list(self._held):
            every = attempt.task.checkpoint_every
            if every is not None and attempt.leftover is not None and now - attempt.kept_at >= every:
                attempt.kept_at = now
                yield attempt

    def _fence(self, overdue: bool) -> None:
        self._fenced = overdue
        self._claimer.allowed = not overdue
        if not overdue:
            log.warning("heartbeats are acknowledged again")
            return
        log.error(
            "no heartbeat was acknowledged for %.0f s: interrupting all jobs, others may run them",
            self.options.trust,
        )
        self._return_waiting()
        for attempt in list(self._held):
            attempt.interrupt(Reason.LOST)

    def _session(self, role: str) -> Session:
        session = Session(self.options.dsn, role=role, pooled=self.options.pooled)
        self._sessions.append(session)
        return session


def _identity(options: WorkerOptions, kinds: Sequence[str]) -> cluster.Identity:
    host = socket.gethostname()
    return cluster.Identity(
        name=options.name or f"{host}:{os.getpid()}", host=host, pid=os.getpid(), version=VERSION,
        lease=options.lease, queues=dict(options.queues), kinds=kinds,
    )  # fmt: skip
