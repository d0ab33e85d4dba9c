"""The heartbeat of a worker, in a thread and on a connection of its own.

Guarantees: as long as the process lives and the database answers, the worker's lease is renewed, whatever user code
does to the event loop or how long it waits for locks. (Only a C call that keeps the interpreter's lock stops it.)
Between beats the same thread does what must happen somewhere: stage due jobs, rescue those of dead workers, fold sums.
All workers do that; none needs to be elected, because every such statement passes over what others are doing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from pgqueue.db.failure import DatabaseError, is_outage
from pgqueue.db.session import SyncSession
from pgqueue.engine.backoff import Backoff
from pgqueue.engine.lane import FOREVER
from pgqueue.store import cluster
from pgqueue.store.statement import Statement

T = TypeVar("T")
log = logging.getLogger("pgqueue.heartbeat")

BEAT = 2.0  # seconds
STAGE = 5000  # jobs at once
TIDY_EVERY = 60.0


class Heartbeat:
    """The thread.

    running     how many attempts run now
    doubtful    ids whose state is to be looked up with the next beat
    on_pulse    called (in this thread) with what each beat found
    trust       seconds after an acknowledged beat for which the lease is the worker's beyond doubt
    last_beat   monotonic time at which the last acknowledged beat was sent
    lapses      how often that was more than `trust` after the one before: others may have taken the jobs meanwhile
    """

    def __init__(
        self,
        dsn: str,
        *,
        pooled: bool,
        schema: str,
        worker: int,
        identity: cluster.Identity,
        trust: float,
        running: Callable[[], int],
        doubtful: Callable[[], Sequence[int]],
        on_pulse: Callable[[cluster.Pulse], object],
    ) -> None:
        self._session = SyncSession(dsn, role="heartbeat", pooled=pooled, answer_within=identity.lease / 2)
        self._schema = schema
        self._worker = worker
        self._identity = identity
        self._running = running
        self._doubtful = doubtful
        self._on_pulse = on_pulse
        self.last_beat = time.monotonic()
        self.lapses = 0
        self._trust = trust
        self._wake = threading.Condition()
        self._wake_at = 0.0  # monotonic; when to beat next
        self._stopping = False
        self._tidied = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="pgqueue-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Beat no more; returns when the thread has ended."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def hurry(self, delay: float = 0.0) -> None:
        """Beat in `delay` seconds if that is sooner than planned. Called from any thread."""
        with self._wake:
            when = time.monotonic() + delay
            if when < self._wake_at:
                self._wake_at = when
                self._wake.notify()

    def _loop(self) -> None:
        backoff = Backoff(cap=BEAT)
        while not self._stopping:
            try:
                wait = self._beat()
                backoff.reset()
            except DatabaseError as error:
                if not is_outage(error):
                    log.error("heartbeat failed, will try again: %s", str(error).strip())
                elif backoff.failures == 0:
                    log.warning("no heartbeat, the database is away: %s", str(error).strip())
                wait = backoff.next()
            except Exception:
                log.exception("heartbeat failed, will try again")
                wait = backoff.next()
            self._sleep(wait)
        self._session.close()

    def _sleep(self, seconds: float) -> None:
        with self._wake:
            self._wake_at = min(self._wake_at, time.monotonic() + seconds)
            while not self._stopping and (left := self._wake_at - time.monotonic()) > 0:
                self._wake.wait(left)

    def _beat(self) -> float:
        """Beat once and do what is due; returns the seconds until the next beat."""
        sent = time.monotonic()
        self._wake_at = FOREVER  # who calls hurry() from here on is not content with this beat
        pulse = self._run(
            cluster.pulse(
                self._worker,
                running=self._running(),
                queues=list(self._identity.queues),
                kinds=self._identity.kinds,
                doubtful=self._doubtful(),
                schema=self._schema,
            )
        )
        if not pulse.beating:
            self._run(cluster.revive(self._worker, self._identity, schema=self._schema))
        if sent - self.last_beat > self._trust:
            self.lapses += 1
        self.last_beat = sent
        self._on_pulse(pulse)
        if pulse.orphans_in is not None and pulse.orphans_in <= 0:
            self.hurry(self._rescue())
        if pulse.due_in is not None and pulse.due_in <= 0:
            staged = self._run(cluster.stage(STAGE, schema=self._schema))
            self.hurry(0.0 if staged == STAGE else BEAT)
        if sent - self._tidied > TIDY_EVERY:
            self._tidied = sent
            self._run(cluster.tidy(schema=self._schema))
        soon = [seconds for seconds in (pulse.due_in, pulse.orphans_in) if seconds is not None and seconds > 0]
        return max(0.0, min(BEAT, *soon) - (time.monotonic() - sent)) if soon else BEAT

    def _rescue(self) -> float:
        """Take jobs from dead workers; returns the seconds until it is worth another try."""
        rescued, left = self._run(cluster.rescue(schema=self._schema))
        if rescued:
            log.warning("took %d jobs from workers that stopped sending heartbeats", rescued)
        return 0.0 if rescued and not left else BEAT

    def _run(self, statement: Statement[T]) -> T:
        return self._session.run(statement)
