"""A worker's side of one queue: the jobs it holds, and how many of them run at once.

A Lane keeps the order of the claim and never runs more than `limit` attempts, whichever executors they need. An
executor that ends an attempt takes the next one straight from the lane, in its own thread: no hop through the event
loop for each job. All of a Lane may be called from any thread, except where it says otherwise.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from pgqueue.core.job import Claimed
from pgqueue.extension import Leftover, Lent, Parted
from pgqueue.tasks.task import Task

FOREVER = float("inf")


class Reason(StrEnum):
    """Why a running attempt is being interrupted."""

    TIMEOUT = "timeout"
    CANCEL = "cancel"
    STOP = "stop"
    SHUTDOWN = "shutdown"
    LOST = "lost"  # the lease may be another's by now
    EXPIRED = "expired"  # it had not started in time


class Lease:
    """A claimed batch. `open` counts its jobs that are neither reported nor given back."""

    __slots__ = ("id", "open", "solo")

    def __init__(self, id: int, open: int, *, solo: bool = False) -> None:
        self.id = id
        self.open = open
        self.solo = solo


class Executor(Protocol):
    """Runs attempts and reports each to the completer; then takes the lane's next one, if it is for this executor."""

    def start(self, attempt: Attempt) -> None:
        """Run it. Called from any thread."""


class Attempt:
    """One attempt at one job, from claim to outcome.

    started_at    monotonic seconds; 0 while it waits in the lane
    finished_at   monotonic seconds; 0 until it has ended
    expires       monotonic seconds after which it is not started any more
    deadline      monotonic seconds at which its time-out strikes
    result        the JSON text that it returned, if that goes the short way; see the completer
    reason        why it is being interrupted; None: it is not. The first reason stands
    leftover      what it has for the next attempt, if its task has used any
    kept          what of that was made durable; kept_at: when it was looked at, in monotonic seconds
    lent          what is to be closed when its function has ended, if there is anything
    on_interrupt  how its executor makes it end, set while it runs; called by the event loop's thread
    """

    __slots__ = (
        "deadline", "executor", "expires", "finished_at", "job", "kept", "kept_at", "lane", "lease", "leftover",
        "lent", "on_interrupt", "reason", "result", "started_at", "task",
    )  # fmt: skip

    def __init__(self, job: Claimed, task: Task[..., object], lane: Lane, lease: Lease, executor: Executor) -> None:
        self.job = job
        self.task = task
        self.lane = lane
        self.lease = lease
        self.executor = executor
        self.started_at = self.finished_at = 0.0
        self.expires = self.deadline = FOREVER
        self.result: str | None = None
        self.reason: Reason | None = None
        self.on_interrupt: Callable[[], object] | None = None
        self.leftover: Leftover | None = None
        self.lent: Lent | None = None
        self.kept: Parted | None = None
        self.kept_at = 0.0

    @property
    def timeout(self) -> float | None:
        """Seconds it may take: the job's own limit, else its task's."""
        return self.job.timeout or self.task.timeout

    def begin(self) -> None:
        """Its executor starts it now, unless there is a `reason` not to."""
        now = time.monotonic()
        if now > self.expires:
            self.reason = Reason.EXPIRED
            return
        self.started_at = self.kept_at = now
        timeout = self.job.timeout or self.task.timeout  # as the property, which costs a call
        if timeout:
            self.deadline = now + timeout

    def interrupt(self, reason: Reason) -> None:
        """Ask it to end. On the event loop's thread."""
        if self.reason is None:
            self.reason = reason
            if self.on_interrupt is not None:
                self.on_interrupt()


class Lane:
    """The held jobs of one queue.

    limit     attempts at once
    on_low    called (from any thread) when the buffer is down to `low_water`: time to claim more. Once, until
              whoever claims sets `low_water` again: to call it for each job costs 5 % of a no-op

    An attempt that ends takes the next one out of the buffer without a lock: one that twenty threads want for each of
    their short jobs is handed from thread to thread by the operating system, at a fifth of the speed.
    """

    __slots__ = ("_lock", "_offered", "buffer", "limit", "low_water", "on_low", "open", "queue", "running")

    def __init__(self, queue: str, limit: int, on_low: Callable[[], None]) -> None:
        self.queue = queue
        self.limit = limit
        self.on_low = on_low
        self.low_water = 0
        self.buffer: deque[Attempt] = deque()  # always this one: threads take from it meanwhile
        self.running = 0
        self.open = True
        self._offered = 0
        self._lock = threading.Lock()

    @property
    def finished(self) -> int:
        """Attempts ended so far; the claimer measures its rate by it."""
        return self._offered - len(self.buffer) - self.running

    def offer(self, attempts: list[Attempt]) -> None:
        """Take in claimed jobs, and start as many as the limit allows. On the event loop's thread."""
        self._offered += len(attempts)
        self.buffer.extend(attempts)
        self.start_more()

    def start_more(self) -> None:
        """Start waiting attempts while there are free slots."""
        while self.open:
            with self._lock:
                if self.running >= self.limit or not self.buffer:
                    return
                self.running += 1
            attempt = self._take()
            if attempt is not None:
                attempt.executor.start(attempt)
                continue
            with self._lock:
                self.running -= 1

    def next(self, executor: Executor) -> Attempt | None:
        """An attempt of `executor` has ended: its slot goes to the next one, returned if it is for that executor."""
        attempt = self._take() if self.open else None
        if attempt is None:
            with self._lock:
                self.running -= 1
        if len(self.buffer) <= self.low_water:  # after the slot is free: whoever claims for it may look at once
            self.low_water = -1
            self.on_low()
        if attempt is None:
            self.start_more()  # one may have come after we looked
            return None
        if attempt.executor is executor:
            return attempt
        attempt.executor.start(attempt)
        return None

    def drop(self, chosen: Callable[[Attempt], bool] = lambda attempt: True) -> list[Attempt]:
        """Remove attempts that have not started, and return them. On the event loop's thread."""
        waiting = []
        while (attempt := self._take()) is not None:
            waiting.append(attempt)
        dropped = [attempt for attempt in waiting if chosen(attempt)]
        self._offered -= len(waiting)
        self.offer([attempt for attempt in waiting if not chosen(attempt)])
        return dropped

    def _take(self) -> Attempt | None:
        try:
            return self.buffer.popleft()
        except IndexError:
            return None
