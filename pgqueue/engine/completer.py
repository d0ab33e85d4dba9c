"""Writes down how attempts ended: in batches, fenced, until the database has said yes or no.

Guarantees: an outcome is kept until the database has recorded it or says that the lease or claim is gone; sending one
twice is harmless (the fence lets only the first through). One bad outcome fails itself, not its batch. A row that
somebody's transaction holds delays only itself. Attempts that succeeded (the many) go by `complete`, an array each
column; those with a large result or a checkpoint, and all others, by `settle`, as one JSON document.
Never: gives up. While the database is away it holds what it has, and the claimer stops claiming.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from pgqueue.core.outcome import Ended, Outcome, Raised, Returned, Uncommitted, decide
from pgqueue.core.states import State
from pgqueue.db.failure import DatabaseError, is_outage, is_transient
from pgqueue.db.session import Session
from pgqueue.engine.backoff import Backoff
from pgqueue.engine.keeping import Keeping
from pgqueue.engine.lane import Attempt, Lease
from pgqueue.store import jobs

log = logging.getLogger("pgqueue.completer")

BATCH = 1000  # outcomes in a statement
BATCH_BYTES = 16 * 1024 * 1024  # of results and errors; a jsonb array of 256 MiB would be refused
SMALL = 4096  # characters of a result that goes the short way
LOCKED_AGAIN = 0.1  # seconds until a row that was locked is tried again
UNSTORABLE = "Unstorable"  # the error of an outcome that was refused
BACKLOG = 5000  # outcomes not written yet at which no more jobs are claimed


class Ending(NamedTuple):
    """An attempt, what its job becomes because of how it ended, and what it adds to the job's checkpoint."""

    attempt: Attempt
    outcome: Outcome
    checkpoint: str | None = None

    @property
    def size(self) -> int:
        """Characters of result, error and checkpoint."""
        size = len(self.outcome.result or "") + len(self.checkpoint or "")
        if self.outcome.error is not None:
            size += sum(len(text or "") for text in self.outcome.error.values())
        return size


class Row(msgspec.Struct, omit_defaults=True):
    """One ending as `settle` wants it. (A dict with a null for each default costs 2 µs more, and the server too.)"""

    id: int
    claim: int
    lease: int
    state: str
    attempt_cost: int
    crash_cost: int
    finished_at: datetime
    started_at: datetime | None = None
    delay: float | None = None
    solo: bool = False
    error: Mapping[str, str | None] | None = None
    result: msgspec.Raw | None = None
    checkpoint: msgspec.Raw | None = None


class Clock:
    """The database's time, from the monotonic clock: `offset_us` was taken with the last claim."""

    def __init__(self) -> None:
        self.offset_us = int((time.time() - time.monotonic()) * 1e6)

    def set(self, database_us: int) -> None:
        """The database's clock showed `database_us` at most a moment ago; so it is never ahead of it."""
        self.offset_us = database_us - int(time.monotonic() * 1e6)

    def at(self, monotonic: float) -> int:
        """Microseconds since 1970 by the database's clock."""
        return self.offset_us + int(monotonic * 1e6)

    def monotonic(self, instant: datetime) -> float:
        """When the monotonic clock will show, or showed, that the database's clock is at `instant`."""
        return instant.timestamp() - self.offset_us / 1e6


class Completer:
    """The loop that writes outcomes.

    on_lost    called with the attempts whose lease or claim was gone
    on_waiting called with the seconds until a job of ours is due again
    """

    def __init__(
        self,
        session: Session,
        *,
        schema: str,
        clock: Clock,
        on_lost: Callable[[Sequence[int]], None],
        on_waiting: Callable[[float], None],
    ) -> None:
        self._session = session
        self._schema = schema
        self._clock = clock
        self._on_lost = on_lost
        self._on_waiting = on_waiting
        self._loop = asyncio.get_running_loop()
        self._completed: deque[Attempt] = deque()  # these returned nothing much
        self._ended: deque[Ending] = deque()
        self._unstarted: deque[Attempt] = deque()  # to be given back
        self._released: list[int] = []  # leases that hold nothing
        self._keeping = Keeping()
        self._locked: list[Ending] = []  # whose row somebody has locked
        self._in_hand = 0
        self._wake = asyncio.Event()
        self._asleep = False
        self._written = asyncio.Event()
        self._backoff = Backoff(cap=5.0)

    @property
    def backlog(self) -> int:
        """Outcomes that are not written yet."""
        ended = len(self._completed) + len(self._ended) + len(self._locked)
        return ended + len(self._unstarted) + len(self._released) + self._in_hand

    @property
    def locked(self) -> int:
        """How many of these wait for a row that somebody has locked."""
        return len(self._locked)

    def report(self, attempt: Attempt, ended: Ended) -> None:
        """An attempt has ended. Called from any thread."""
        attempt.finished_at = time.monotonic()
        leftover = attempt.leftover
        if isinstance(ended, Returned) and leftover is None and ended.size <= SMALL and not attempt.job.has_checkpoint:
            attempt.result = ended.result
            self._completed.append(attempt)
        else:
            if isinstance(ended, Returned) and leftover is not None and leftover.completing:
                ended = Raised(Uncommitted())  # if it was committed, the fence lets nothing through
            checkpoint = None if leftover is None else leftover.close()
            self._ended.append(Ending(attempt, outcome_of(attempt, ended), checkpoint))
        self._rouse()

    def give_back(self, attempts: Iterable[Attempt]) -> None:
        """These were never started: return them to their queue. Called from any thread."""
        self._unstarted.extend(attempts)
        self._rouse()

    def release(self, lease: Lease) -> None:
        """This lease turned out to hold nothing. On the event loop's thread."""
        self._released.append(lease.id)
        self._rouse()

    def keep(self, attempts: Iterable[Attempt]) -> None:
        """Make what these running attempts remember durable. On the event loop's thread."""
        self._keeping.add(attempts)
        self._rouse()

    async def flush(self) -> None:
        """Wait until all that was reported before is written."""
        while self.backlog:
            self._written.clear()
            await self._written.wait()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            self._asleep = True
            if not (self._completed or self._ended or self._unstarted or self._released or self._keeping):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOCKED_AGAIN if self._locked else None):
                        await self._wake.wait()
            self._wake.clear()
            self._asleep = False
            await self._write()
            self._written.set()

    def _rouse(self) -> None:
        if self._asleep:
            self._asleep = False  # one call through the loop wakes it for all that is reported meanwhile
            with contextlib.suppress(RuntimeError):  # a thread that outlived the worker: nobody writes any more
                self._loop.call_soon_threadsafe(self._wake.set)

    async def _write(self) -> None:
        if self._unstarted or self._released:
            await self._give_back()
        if self._keeping:
            await self._keep()
        endings = self._next_endings()
        completed = [self._completed.popleft() for _ in range(min(BATCH, len(self._completed)))]
        self._in_hand = len(endings) + len(completed)
        if endings:
            await self._settle(endings)
        self._in_hand = len(completed)
        if completed:
            await self._complete(completed)
        self._in_hand = 0

    def _next_endings(self) -> list[Ending]:
        """Those that were locked before, and as many others as a statement should carry."""
        endings, self._locked = self._locked, []
        size = sum(ending.size for ending in endings)
        while self._ended and len(endings) < BATCH and size < BATCH_BYTES:
            endings.append(self._ended.popleft())
            size += endings[-1].size
        return endings

    async def _complete(self, attempts: list[Attempt]) -> None:
        attempts.sort(key=_job_id)  # jobs are locked in this order
        acks = self._acks(attempts)
        whole, part = _close(attempt.lease for attempt in attempts)
        while True:
            try:
                lost = await self._session.run(jobs.complete(acks, whole=whole, part=part, schema=self._schema))
                break
            except DatabaseError as error:
                # A row is locked, or two of us met in a ring: pass over what is locked. Or a result is refused.
                if is_transient(error) or _is_poison(error):
                    _reopen(attempt.lease for attempt in attempts)
                    await self._settle([Ending(a, Outcome(state=State.COMPLETED, result=a.result)) for a in attempts])
                    return
                await self._wait_out(error)
        self._backoff.reset()
        if lost:
            self._on_lost(lost)

    def _acks(self, attempts: Sequence[Attempt]) -> jobs.Acks:
        offset = self._clock.offset_us
        results = [attempt.result for attempt in attempts]
        return jobs.Acks(
            [attempt.job.id for attempt in attempts],
            [attempt.job.claim for attempt in attempts],
            [attempt.lease.id for attempt in attempts],
            [offset + int(attempt.started_at * 1e6) for attempt in attempts],
            [offset + int(attempt.finished_at * 1e6) for attempt in attempts],
            results if any(results) else None,
        )

    async def _settle(self, endings: list[Ending]) -> None:
        """Write outcomes of every kind; those whose rows are locked are kept for later."""
        leases = [ending.attempt.lease for ending in endings]
        whole, part = _close(leases)
        statement = jobs.settle(self._document(endings), whole=whole, part=part, schema=self._schema)
        while True:
            try:
                recorded = await self._session.run(statement)
                break
            except DatabaseError as error:
                if _is_poison(error):
                    _reopen(leases)
                    await self._isolate(endings, error)
                    return
                await self._wait_out(error)
        self._backoff.reset()
        locked = [ending for ending in endings if recorded.get(ending.attempt.job.id) is False]
        _reopen(ending.attempt.lease for ending in locked)
        self._locked += locked
        lost = [
            attempt.job.id for attempt, _, _ in endings
            if attempt.job.id not in recorded and not (attempt.leftover and attempt.leftover.completing)
        ]  # fmt: skip
        if lost:
            self._on_lost(lost)
        delays = [outcome.delay or 0.0 for _, outcome, _ in endings if outcome.delay is not None or outcome.solo]
        if delays:
            self._on_waiting(min(delays))

    async def _isolate(self, endings: list[Ending], error: DatabaseError) -> None:
        """PostgreSQL refuses a value among these: find which, and let that attempt alone fail."""
        if len(endings) > 1:
            half = len(endings) // 2
            await self._settle(endings[:half])
            await self._settle(endings[half:])
            return
        (ending,) = endings
        attempt, outcome, _ = ending
        text = f"its outcome could not be stored: {error.diag.message_primary}"
        log.error("job %d: %s", attempt.job.id, text)
        if outcome.error is None:
            await self._settle([ending._replace(outcome=outcome_of(attempt, Raised(ValueError(text))))])
        elif outcome.error["type"] != UNSTORABLE:
            unstorable = {"type": UNSTORABLE, "message": text, "traceback": None}
            await self._settle([ending._replace(outcome=outcome._replace(error=unstorable))])
        else:
            log.critical("job %d: it stays as it is until this worker ends", attempt.job.id)

    async def _give_back(self) -> None:
        attempts = [self._unstarted.popleft() for _ in range(len(self._unstarted))]
        released, self._released = self._released, []
        self._in_hand = len(attempts) + len(released)
        held = sorted((a.job.id, a.job.claim, a.lease.id) for a in attempts)
        whole, part = _close(attempt.lease for attempt in attempts)
        try:
            await self._session.run(jobs.give_back(held, whole=whole + released, part=part, schema=self._schema))
            self._backoff.reset()
        except DatabaseError as error:
            _reopen(attempt.lease for attempt in attempts)
            self._released += released
            if is_transient(error):  # as in `_complete`; these go to the end of their queue
                await self._settle([Ending(a, Outcome(state=State.AVAILABLE, solo=a.lease.solo)) for a in attempts])
                return
            self._unstarted.extend(attempts)
            await self._wait_out(error)

    async def _keep(self) -> None:
        """A statement's worth; if it fails, there will be more to keep the next time."""
        part = self._keeping.take()
        if part is None:
            return
        try:
            self._keeping.kept(await self._session.run(jobs.keep(part, schema=self._schema)))
        except DatabaseError as error:
            log.info("checkpoints could not be kept, the next time they will: %s", str(error).strip())

    def _document(self, endings: Iterable[Ending]) -> str:
        ordered = sorted(endings, key=lambda ending: ending.attempt.job.id)
        return msgspec.json.encode([self._row(ending) for ending in ordered]).decode()

    def _row(self, ending: Ending) -> Row:
        attempt, outcome, checkpoint = ending
        return Row(
            id=attempt.job.id,
            claim=attempt.job.claim,
            lease=attempt.lease.id,
            state=outcome.state.value,
            attempt_cost=outcome.attempt_cost,
            crash_cost=outcome.crash_cost,
            finished_at=_instant(self._clock.at(attempt.finished_at or time.monotonic())),
            started_at=_instant(self._clock.at(attempt.started_at)) if attempt.started_at else None,
            delay=outcome.delay,
            solo=outcome.solo,
            error=outcome.error,
            result=None if outcome.result is None else msgspec.Raw(outcome.result.encode()),
            checkpoint=None if checkpoint is None else msgspec.Raw(checkpoint.encode()),
        )

    async def _wait_out(self, error: DatabaseError) -> None:
        text = str(error).strip()
        if is_outage(error):
            if self._backoff.failures == 0:
                log.warning("the database is away; %d outcomes are kept until it is back: %s", self.backlog, text)
        elif not is_transient(error):
            log.error("outcomes could not be written, will try again: %s", text)
        elif self._backoff.failures == 0:
            log.info("outcomes wait for others' locks: %s", text)
        await asyncio.sleep(self._backoff.next())


def outcome_of(attempt: Attempt, ended: Ended) -> Outcome:
    """What the job becomes, whatever a task may have raised."""
    job, retry = attempt.job, attempt.task.retry
    try:
        if job.max_attempts not in (None, retry.max_attempts):
            retry = replace(retry, max_attempts=job.max_attempts)
        return decide(ended, attempt=job.attempt, crashes=job.crashes, retry=retry)
    except BaseException as broken:  # what a task raises may bring methods of its own, and may lack a delay or a reason
        error = ValueError(f"how it ended can't be told: {type(broken).__name__}")
        return decide(Raised(error), attempt=job.attempt, crashes=job.crashes, retry=retry)


def _job_id(attempt: Attempt) -> int:
    return attempt.job.id


def _close(leases: Iterable[Lease]) -> tuple[list[int], list[int]]:
    """Count one job of each lease as done with; which leases are so altogether, and which are not?"""
    counts = Counter(leases)
    for lease, count in counts.items():
        lease.open -= count
    whole = sorted(lease.id for lease in counts if lease.open <= 0)
    part = sorted(lease.id for lease in counts if lease.open > 0)
    return whole, part


def _reopen(leases: Iterable[Lease]) -> None:
    for lease in leases:
        lease.open += 1


def _is_poison(error: DatabaseError) -> bool:
    """Is it the data's fault? Classes 22 (data), 23 (constraints) and 54 (limits) of SQLSTATE."""
    return (error.sqlstate or "")[:2] in ("22", "23", "54") and not is_outage(error)


def _instant(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / 1e6, UTC)
