"""Keeps the lanes supplied: claims as many jobs as there are free slots, and some ahead.

One loop serves all queues of the worker in turn. It sleeps when no lane has both room and work, and is woken by NOTIFY,
by the pulse, or by a lane that runs low. NOTIFY is a hint: before it sleeps, and soon after, it looks for itself.
A queue of which this worker finishes over 800 jobs a second isn't slept on: it is looked at every 2 ms, so that nobody
has to send this worker a NOTIFY. (With one in every commit eight producers kept 0.67 of their rate, 16 only 1,329 of
2,000 jobs a second; below 800 a second being woken is 1 ms faster and costs nobody anything.)

How much ahead: what the lane has lately finished in half a second, at most three batches; so short jobs come 500 at a
time, and of long ones no more are held than will start soon. What is ahead is given back when the worker stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from pgqueue.db.failure import DatabaseError, is_outage
from pgqueue.db.session import Session
from pgqueue.engine.backoff import Backoff
from pgqueue.engine.completer import BACKLOG, Clock, Completer
from pgqueue.engine.lane import Attempt, Executor, Lane, Lease
from pgqueue.engine.marks import Marks
from pgqueue.store import jobs
from pgqueue.tasks.task import Task

log = logging.getLogger("pgqueue.claimer")

BATCH = 500
AHEAD = 3 * BATCH
AHEAD_SECONDS = 0.5
SMOOTHING = 0.2  # seconds after which a lane's rate is forgotten
QUIET_FOR = 0.1  # seconds for which a queue has had work when NOTIFY is not wanted any more
BUSY, CALM = 800.0, 400.0  # jobs a second from which, and down to which, it isn't wanted either
LOOK_EVERY = 0.002  # seconds, in a queue that is busy
ALLOWED_AGAIN = 0.1  # seconds after which to ask again whether claiming is allowed
AGAIN = 0.005  # seconds after which to look again for what another worker may have had locked


class Alarm:
    """Rings once, some seconds after it was set; set anew it forgets the time before."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """On the event loop's thread."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = asyncio.get_running_loop().call_later(seconds, self._ring)


class Supply:
    """One lane and what the claimer knows of its queue.

    promising  it may have work: claim from it as soon as there is room
    busy       it has work so often that looking costs less than being woken. Nobody wakes us for it then: it is
               promising, or will be when its alarm rings
    alarm      makes it promising
    was_empty  it had none when we last looked
    chunk      jobs per row of `ready`, lately
    recheck    when to look again for what another worker may have had locked
    """

    def __init__(self, lane: Lane, alarm: Alarm) -> None:
        self.lane = lane
        self.alarm = alarm
        self.marks = Marks()
        self.promising = True
        self.promising_since = time.monotonic()
        self.busy = False
        self.paused = False
        self.suspect = False
        self.was_empty = False
        self.chunk = 1.0
        self.recheck = Backoff(first=AGAIN, cap=1.0)
        self._rate = 0.0
        self._measured = (time.monotonic(), 0)

    def promise(self) -> None:
        """There may be work."""
        if not self.promising:
            self.promising = True
            self.promising_since = time.monotonic()

    def room(self) -> int:
        """How many jobs it should be given now; 0 unless it is worth a claim."""
        lane = self.lane
        self._measure()
        ahead = min(AHEAD, int(self._rate * AHEAD_SECONDS))
        lane.low_water = ahead // 2
        free = lane.limit - lane.running
        room = free + ahead - len(lane.buffer)
        if room <= 0 or (len(lane.buffer) > ahead // 2 and free <= len(lane.buffer)):
            return 0
        return min(BATCH, room)

    def _measure(self) -> None:
        since, finished = self._measured
        now = time.monotonic()
        if now - since > 0.02:
            rate = (self.lane.finished - finished) / (now - since)
            self._rate += (rate - self._rate) * min(1.0, (now - since) / SMOOTHING)
            self._measured = (now, self.lane.finished)
            busy = self._rate > (CALM if self.busy else BUSY)
            if busy and not self.busy:
                self.promise()
            self.busy = busy


class Claimer:
    """The loop that claims.

    executor_of  which executor runs an attempt of a task
    solo         the executor of jobs that may have killed a worker
    held         every attempt that is neither reported nor given back; what is claimed is added
    allowed      False while the worker's own lease is in doubt: nothing is claimed
    """

    def __init__(
        self,
        session: Session,
        *,
        schema: str,
        worker: int,
        lanes: Sequence[Lane],
        tasks: Mapping[str, Task[..., object]],
        completer: Completer,
        clock: Clock,
        executor_of: Callable[[Task[..., object]], Executor],
        solo: Executor,
        held: set[Attempt],
    ) -> None:
        self._session = session
        self._schema = schema
        self._worker = worker
        self._supplies = {lane.queue: Supply(lane, Alarm(partial(self.wake, lane.queue))) for lane in lanes}
        self._by_kind = {kind: (task, executor_of(task)) for kind, task in tasks.items()}
        self._kinds = sorted(tasks)
        self._completer = completer
        self._clock = clock
        self._solo = solo
        self._held = held
        self._leases = 0
        self._in_doubt: tuple[Supply, Lease] | None = None  # a claim that has not been answered
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._alarm = Alarm(self._wake.set)
        self._asleep = False
        self._stopping = asyncio.Event()
        self._quiet: frozenset[str] = frozenset()
        self._backoff = Backoff(cap=5.0)
        self.allowed = True

    def wake(self, queue: str) -> None:
        """There may be work in `queue`. On the event loop's thread."""
        supply = self._supplies.get(queue)
        if supply is not None:
            supply.promise()
            self._wake.set()

    def wake_all(self) -> None:
        """There may be work anywhere. On the event loop's thread."""
        for supply in self._supplies.values():
            supply.promise()
        self._wake.set()

    def pulse(self, *, busy: Sequence[str], suspect: Sequence[str], paused: Sequence[str]) -> None:
        """What the heartbeat saw. On the event loop's thread."""
        for queue, supply in self._supplies.items():
            supply.paused = queue in paused
            supply.suspect = queue in suspect
            if queue in busy:
                supply.promise()
        self._wake.set()

    def low(self) -> None:
        """A lane runs low. Called from any thread."""
        if self._asleep:
            self._asleep = False
            with contextlib.suppress(RuntimeError):  # a thread that outlived the worker
                self._loop.call_soon_threadsafe(self._wake.set)

    def stop(self) -> None:
        """Claim no more: `run` returns when the claim under way has been answered."""
        self._stopping.set()
        self._wake.set()

    async def run(self, gate: Callable[[frozenset[str]], None]) -> None:
        """Claim until stopped. `gate` is told in which queues there is nothing to claim."""
        while not self._stopping.is_set():
            self._wake.clear()
            self._asleep = True  # from here on a lane that runs low sets the event again
            claimed = await self._round()
            self._quiet = self._quiet_queues()
            gate(self._quiet)
            if not claimed:
                if any(self._supplies[queue].promising for queue in self._quiet):
                    self._alarm.set(QUIET_FOR)
                await self._wake.wait()

    def _quiet_queues(self) -> frozenset[str]:
        """The queues to sleep on: those without work; one that has got some for a moment yet, it may be soon done."""
        now = time.monotonic()
        return frozenset(
            queue
            for queue, supply in self._supplies.items()
            if not supply.busy
            and (not supply.promising or (queue in self._quiet and now - supply.promising_since < QUIET_FOR))
        )

    async def _round(self) -> bool:
        """Claim once for each lane that wants it; did any get something?"""
        if not self.allowed or self._completer.backlog > BACKLOG:
            self._alarm.set(ALLOWED_AGAIN)
            return False
        claimed = False
        for supply in self._supplies.values():
            room = supply.room()
            if supply.paused or room == 0:
                continue
            try:
                if supply.suspect:
                    claimed = await self._claim_suspect(supply) or claimed
                if supply.promising:
                    claimed = await self._claim(supply, room) or claimed
                self._backoff.reset()
            except DatabaseError as error:
                self.wake(supply.lane.queue)
                await self._recover(error)
        return claimed

    async def _claim(self, supply: Supply, room: int) -> bool:
        full = supply.marks.full_is_due
        # New priorities are asked for beforehand where jobs wait anyway; one that we woke up for isn't kept waiting.
        ask_first = full and not supply.was_empty
        supply.was_empty = False
        if ask_first:
            await self._survey(supply, full=full)
        lease = self._new_lease(supply)
        started = time.monotonic()
        batch = await self._session.run(
            jobs.claim(
                supply.lane.queue,
                worker=self._worker,
                lease=lease.id,
                kinds=self._kinds,
                marks=supply.marks.start(full=full),
                chunks=max(1, min(room, round(room / supply.chunk + 0.5))),
                limit=room,
                schema=self._schema,
            )
        )
        supply.marks.scanned(time.monotonic() - started, full=full)
        self._accept(supply, lease, batch)
        if len(batch.jobs) < room:
            await asyncio.sleep(0)  # they start: making the next statement would keep them waiting for 0.4 ms
        if batch.voids:
            await self._session.run(jobs.unvoid(supply.lane.queue, batch.voids, schema=self._schema))
        if len(batch.jobs) < room:
            await self._look(supply, found=bool(batch.marks))
        return bool(batch.marks)

    async def _claim_suspect(self, supply: Supply) -> bool:
        lease = self._new_lease(supply, solo=True)
        batch = await self._session.run(
            jobs.claim_suspect(
                supply.lane.queue, worker=self._worker, lease=lease.id, kinds=self._kinds, schema=self._schema
            )
        )
        self._accept(supply, lease, batch)
        supply.suspect = bool(batch.jobs)
        return supply.suspect

    def _new_lease(self, supply: Supply, *, solo: bool = False) -> Lease:
        self._leases += 1
        lease = Lease(self._worker << 32 | self._leases, 0, solo=solo)
        self._in_doubt = supply, lease
        return lease

    def _accept(self, supply: Supply, lease: Lease, batch: jobs.Batch) -> None:
        self._in_doubt = None
        if batch.clock_us is None:
            return
        self._clock.set(batch.clock_us)
        supply.marks.advance(batch.marks)
        lease.open = len(batch.jobs)
        if not batch.jobs:  # only void entries: the lease holds nothing
            self._completer.release(lease)
            return
        if batch.chunks:
            supply.chunk = max(1.0, len(batch.jobs) / batch.chunks)
        attempts = []
        for job in batch.jobs:
            task, executor = self._by_kind[job.kind]
            attempt = Attempt(job, task, supply.lane, lease, self._solo if lease.solo else executor)
            if job.expires_at is not None:
                attempt.expires = self._clock.monotonic(job.expires_at)
            attempts.append(attempt)
        self._held.update(attempts)
        supply.lane.offer(attempts)

    async def _look(self, supply: Supply, *, found: bool) -> None:
        """The queue gave less than there was room for: is there more, at another priority or locked by others?"""
        supply.promising = False  # before we ask: what wakes us from here on may have come too late for the answer
        if supply.busy:
            supply.alarm.set(LOOK_EVERY)
            if found and not supply.marks.full_is_due:
                return
        full = supply.marks.full_is_due or not (found or supply.busy)
        discovered, more = await self._survey(supply, full=full)
        if discovered or (more and found):
            supply.recheck.reset()
            self.wake(supply.lane.queue)
        elif not more:
            supply.was_empty = True
            supply.recheck.reset()
        elif not supply.busy:  # another worker has it locked this instant, or it is paused, or our heartbeat is late
            supply.alarm.set(supply.recheck.next())

    async def _survey(self, supply: Supply, *, full: bool) -> tuple[bool, bool]:
        """Have priorities turned up that were not known, and have those that were known more work for us?"""
        started = time.monotonic()
        priorities, more = await self._session.run(
            jobs.survey(supply.lane.queue, kinds=self._kinds, marks=supply.marks.start(full=full), schema=self._schema)
        )
        supply.marks.scanned(time.monotonic() - started, full=full)
        if priorities:
            supply.marks.discover(priorities)
        return bool(priorities), more

    async def _recover(self, error: DatabaseError) -> None:
        """A claim failed. If its answer was lost it may have been committed: then we ask for its jobs again."""
        if not is_outage(error):
            log.error("claiming failed, will try again: %s", str(error).strip())
        elif self._backoff.failures == 0:
            log.warning("the database is away, trying again until it is back: %s", str(error).strip())
        await self._rest()
        while self._in_doubt is not None:
            try:
                await self._resolve(*self._in_doubt)
                self._in_doubt = None
            except DatabaseError as again:
                log.debug("still away: %s", again)
                if self._stopping.is_set():  # rescue finds those jobs
                    return
                await self._rest()

    async def _resolve(self, supply: Supply, lease: Lease) -> None:
        """Make sure that a claim doesn't take effect any more; if it has, accept what it brought."""
        if not await self._session.run(jobs.forget(lease.id, worker=self._worker, schema=self._schema)):
            batch = await self._session.run(jobs.held(lease.id, schema=self._schema))
            if batch.jobs:  # else it may be the tombstone of an earlier try: that has to stay
                self._accept(supply, lease, batch)

    async def _rest(self) -> None:
        """Sleep after a failure, unless it is time to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._backoff.next()):
                await self._stopping.wait()
