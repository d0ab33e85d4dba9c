"""Keeps N worker processes alive: `pgqueue worker --processes N`.

One thread and no database: it waits for signals and for the death of its children, and acts.
SIGTERM, SIGINT   stop in order; the second time: at once (the signal is passed on); the third time: SIGKILL
SIGHUP            restart one worker after the other
SIGQUIT           passed on, for a dump of the stacks
Guarantees: a worker that dies is replaced, later and later if it keeps dying; none outlives the supervisor for longer
than it takes to stop in order (Linux). It reaps whatever the system gives it to reap, so it may be process 1.
Workers stand in process groups of their own: Ctrl-C comes to them through the supervisor only, and so once. With
systemd, for the same reason: `KillMode=mixed`.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from types import FrameType

from pgqueue.engine.death import how_it_ended, mortal

log = logging.getLogger("pgqueue.supervisor")

NUMBER = "PGQUEUE_WORKER_NUMBER"
REFUSALS = 3
HEEDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast dead workers are replaced, in seconds.

    first, cap  the pause before a restart, doubled with each until `cap`
    steady      a worker that lived so long has started: a rolling restart goes on, and it has not refused to start
    reset       a worker that lived so long was sound: the pause is `first` again
    """

    first: float = 1.0
    cap: float = 30.0
    steady: float = 5.0
    reset: float = 60.0


class Phase(Enum):
    """What the supervisor is about."""

    RUN = auto()
    STOP = auto()  # in order
    STOP_NOW = auto()
    KILL = auto()


class Slot:
    """The place of one worker, whichever process it is just now. Times are monotonic seconds.

    start_at  when to start the next process, while there is none
    refusals  processes in a row that ended by an error soon after their start
    replacing it has been told to end because another is to take its place
    """

    def __init__(self, number: int, pace: Pace) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.start_at = 0.0
        self.refusals = 0
        self.replacing = False
        self._pace = pace
        self._pause = pace.first

    def is_steady(self, now: float) -> bool:
        """Whether its process has started without complaint."""
        return self.process is not None and now - self.started_at >= self._pace.steady

    def ended(self, code: int, now: float) -> None:
        """Its process is gone: when shall the next one start?"""
        lived = now - self.started_at
        self.process = None
        if self.replacing:
            self.replacing = False
            self.start_at = now
            return
        self.refusals = self.refusals + 1 if code > 0 and lived < self._pace.steady else 0
        if lived >= self._pace.reset:
            self._pause = self._pace.first
        self.start_at = now + self._pause
        self._pause = min(self._pace.cap, 2 * self._pause)


class Supervisor:
    """Runs `processes` times the program `argv`, each with its number, from 1, in PGQUEUE_WORKER_NUMBER."""

    def __init__(
        self, argv: Sequence[str], *, processes: int, env: Mapping[str, str] | None = None, pace: Pace | None = None
    ) -> None:
        self._argv = list(argv)
        self._env = dict(os.environ if env is None else env)
        self._pace = pace or Pace()
        self._slots = [Slot(number, self._pace) for number in range(1, processes + 1)]
        self._phase = Phase.RUN
        self._to_replace: list[Slot] = []  # those whose turn in the rolling restart is still to come
        self._failed = False
        self._bell, self._rung = socket.socketpair()

    def run(self) -> int:
        """Supervise until all have ended; returns the exit status: 0 if that was in order. In the main thread only."""
        self._bell.setblocking(False)
        wakeup = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        before = {signum: signal.signal(signum, _heed) for signum in HEEDED}
        try:
            while self._phase is Phase.RUN or any(slot.process for slot in self._slots):
                self._step()
        finally:
            signal.set_wakeup_fd(wakeup)
            for signum, handler in before.items():
                signal.signal(signum, handler)
            self._bell.close()
            self._rung.close()
        log.info("all workers have ended")
        return 1 if self._failed else 0

    def _step(self) -> None:
        """Do what is due, and wait for the next thing to happen."""
        now = time.monotonic()
        wait: float | None = None
        if self._phase is Phase.RUN:
            for slot in self._slots:
                if slot.process is None and slot.start_at <= now:
                    self._start(slot)
            self._roll(now)
            wait = self._next_at(now)
        readable, _, _ = select.select([self._rung], [], [], wait)
        received = self._rung.recv(4096) if readable else b""
        for signum in received:  # before the dead are counted: that one was told to stop makes its end an orderly one
            self._receive(signal.Signals(signum))
        self._reap()

    def _next_at(self, now: float) -> float | None:
        """Seconds until something is due without a signal; None: nothing."""
        times = [slot.start_at for slot in self._slots if slot.process is None]
        if self._to_replace:
            young = [slot for slot in self._slots if slot.process is not None and not slot.is_steady(now)]
            times += [slot.started_at + self._pace.steady for slot in young]
        return max(0.0, min(times) - now) if times else None

    def _receive(self, signum: signal.Signals) -> None:
        match signum:
            case signal.SIGTERM | signal.SIGINT:
                self._stop(signum)
            case signal.SIGHUP if self._phase is Phase.RUN:
                log.info("SIGHUP: restarting %d workers, one after the other", len(self._slots))
                self._to_replace = list(self._slots)
            case signal.SIGQUIT:
                self._tell_all(signum)

    def _stop(self, signum: signal.Signals) -> None:
        self._phase = {Phase.RUN: Phase.STOP, Phase.STOP: Phase.STOP_NOW}.get(self._phase, Phase.KILL)
        log.info("%s: %s", signum.name, self._phase.name.lower().replace("_", " "))
        self._tell_all(signal.SIGKILL if self._phase is Phase.KILL else signal.SIGTERM)

    def _tell_all(self, signum: signal.Signals) -> None:
        for slot in self._slots:
            if slot.process is not None:
                os.kill(slot.process.pid, signum)  # only we reap, so the id is still its own

    def _roll(self, now: float) -> None:
        """Replace the next worker if all of them are well."""
        if self._to_replace and all(slot.is_steady(now) and not slot.replacing for slot in self._slots):
            slot = self._to_replace.pop(0)
            assert slot.process is not None
            slot.replacing = True
            os.kill(slot.process.pid, signal.SIGTERM)

    def _start(self, slot: Slot) -> None:
        env = {**self._env, NUMBER: str(slot.number)}
        slot.started_at = time.monotonic()
        die_with_us = mortal(os.getpid(), signal.SIGTERM)

        def prepare() -> None:
            die_with_us()
            for signum in HEEDED:
                signal.signal(signum, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)

        signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)  # what comes before the exec is for the worker, not our bell
        try:
            slot.process = subprocess.Popen(
                self._argv,
                env=env,
                process_group=0,
                preexec_fn=prepare,  # safe: there is one thread
            )
        except (OSError, subprocess.SubprocessError) as error:
            log.error("worker %d could not be started: %s", slot.number, error)
            slot.ended(1, time.monotonic())
            self._give_up_if_all_refuse()
        else:
            log.info("worker %d started (process %d)", slot.number, slot.process.pid)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)

    def _reap(self) -> None:
        """Take note of all that have died: workers, and orphans if we are process 1."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for slot in self._slots:
                if slot.process is not None and slot.process.pid == pid:
                    self._ended(slot, slot.process, os.waitstatus_to_exitcode(status))

    def _ended(self, slot: Slot, process: subprocess.Popen[bytes], code: int) -> None:
        now = time.monotonic()
        process.returncode = code
        lived = now - slot.started_at
        expected = code == 0 and (self._phase is not Phase.RUN or slot.replacing)
        slot.ended(code, now)
        log.log(
            logging.INFO if expected else logging.ERROR,
            "worker %d (process %d) %s after %.1f s", slot.number, process.pid, how_it_ended(code), lived,
        )  # fmt: skip
        if self._phase is not Phase.RUN:
            self._failed = self._failed or not expected
        elif slot.start_at > now:
            log.info("worker %d is started again in %.1f s", slot.number, slot.start_at - now)
            self._give_up_if_all_refuse()

    def _give_up_if_all_refuse(self) -> None:
        """One that does not start among others that run is tried again and again; if none starts it's no use."""
        if all(slot.refusals >= REFUSALS for slot in self._slots):
            log.error(
                "no worker starts: each ended by itself within %g s, %d times in a row; this is an error in the"
                " configuration, see what they wrote above",
                self._pace.steady, REFUSALS,
            )  # fmt: skip
            self._failed = True
            self._phase = Phase.STOP
            self._tell_all(signal.SIGTERM)


def _heed(signum: int, frame: FrameType | None) -> None:
    """The wake-up descriptor has its number."""
