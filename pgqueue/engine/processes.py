"""Where attempts run that may crash, or block, or have to be killed: each in a process of its own.

A thread of a ThreadExecutor owns one process and waits for it; the process is started when first needed and runs many
attempts, one at a time. So a death is always one attempt's.

Guarantees: the death of a process is the end of its one attempt only; every interrupted attempt ends within
`grace` + `kill_after` seconds. Processes are started by exec, never by fork alone, and die with their worker.
"""

from __future__ import annotations

import logging
import multiprocessing.spawn
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import msgspec
from msgspec import Raw

from pgqueue.core.outcome import NOTHING, Crashed, Ended, Raised, RemoteError, RemoteRetryAfter, Returned
from pgqueue.core.signals import Cancel, Discard, Snooze
from pgqueue.engine.death import how_it_ended
from pgqueue.engine.executors import Report, ThreadExecutor, raised
from pgqueue.engine.lane import Attempt, Reason
from pgqueue.engine.line import NULL, Ask, Boot, Failure, Hello, Line, Note, Result, Run, ToParent, encode
from pgqueue.engine.place import Place, check_not_nested, main_module, place_of
from pgqueue.tasks.task import Task

log = logging.getLogger("pgqueue.processes")

CONTEXT = "pgqueue.app:child_context"  # by name: it stands above the engine
LOOK_EVERY = 1.0  # seconds after which a process that says nothing is looked for: its heirs may hold its pipe open
HELD_BACK = (signal.SIGTERM, signal.SIGINT)  # until the child has its own handlers; see `child`
START = (
    "import sys; sys.path[:] = sys.argv[3:]; del sys.argv[3:];"
    " from pgqueue.engine.child import main; main()"
)  # fmt: skip

_decode = msgspec.json.Decoder(ToParent).decode
OnNote = Callable[[Attempt, bytes], None]
Stages = deque[tuple[float, Callable[[], None]]]  # when (monotonic) to do what


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessOptions:
    """How patient it is with processes.

    grace       seconds that a cancelled or stopped attempt has before SIGTERM; all others get that at once
    kill_after  seconds from SIGTERM to SIGKILL
    close_wait  seconds that an idle process has to end when it is told to
    """

    grace: float = 5.0
    kill_after: float = 2.0
    close_wait: float = 2.0


@dataclass(frozen=True, slots=True)
class About:
    """What the processes are told; see `ProcessExecutor`."""

    context: str
    settings: Mapping[str, object]


class Child:
    """A process that runs attempts, as its owner sees it. Used by one thread."""

    def __init__(self, about: About) -> None:
        """Start it.

        raises  OSError if the system can't
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = _start(theirs)
        self.line = Line(ours)
        self.pid = self._process.pid
        self.has_started = False  # it has said hello
        self.is_spent = False  # a SIGTERM may still be on its way to it
        self.serial = 0
        with suppress(OSError):  # if it is dead already, that is found out when it does not answer
            self.line.send(Boot(sys.argv, *main_module(), about.context, Raw(encode(about.settings))))

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def run(self, attempt: Attempt, place: Place) -> None:
        """Tell it to run an attempt.

        raises  OSError if it is dead
        """
        self.serial += 1
        self.line.send(_run(attempt, place, self.serial))

    def ask(self, reason: Reason) -> None:
        """Ask it to end its attempt."""
        self.line.send(Ask(self.serial, reason))

    def terminate(self, reason: Reason) -> None:
        """Make it end its attempt."""
        self.line.send(Ask(self.serial, reason, final=True))
        self.signal(signal.SIGTERM)

    def signal(self, signum: signal.Signals) -> None:
        """Send it a signal; no matter if it has ended."""
        self.is_spent = True
        self._process.send_signal(signum)

    def end(self, seconds: float) -> int:
        """Hang up, and wait for its end, but not long. Returns its exit code."""
        self.line.sock.close()
        if self.is_spent:
            self._process.kill()  # it has had its time to end
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            log.warning("process %d did not end by itself", self.pid)
            self._process.kill()
            return self._process.wait()


class Owner:
    """A thread's own process, and how the thread waits for it while the event loop may ring for an interruption."""

    def __init__(self, about: About, options: ProcessOptions, on_note: OnNote) -> None:
        self._about = about
        self._options = options
        self._on_note = on_note
        self._child: Child | None = None
        self._bell, self._rung = socket.socketpair()
        self._bell.setblocking(False)

    def run(self, attempt: Attempt, place: Place) -> Ended:
        """Run an attempt to its end.

        raises  OSError if the system can't start a process
        """
        attempt.on_interrupt = self._ring
        try:
            if attempt.reason is not None:  # asked to end before it began
                return raised(InterruptedError(), attempt)
            child = self._begin(attempt, place)
            try:
                ended = self._wait(child, attempt)
            except BaseException:
                child.is_spent = True  # who knows what it still has to say
                raise
            finally:
                if child.is_spent:
                    self._part(child)
            return ended
        finally:
            attempt.on_interrupt = None

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._part(self._child)
        self._bell.close()
        self._rung.close()

    def _begin(self, attempt: Attempt, place: Place) -> Child:
        """Tell a process to run the attempt: the thread's own, or a fresh one."""
        child = self._child
        if child is not None:
            try:
                child.run(attempt, place)
                return child
            except OSError:  # it died in its sleep: no attempt's fault
                log.warning("process %d %s while it was idle", child.pid, how_it_ended(self._part(child)))
        child = self._child = Child(self._about)
        with suppress(OSError):  # dead already: that is found out below
            child.run(attempt, place)
        return child

    def _part(self, child: Child) -> int:
        if child is self._child:
            self._child = None
        return child.end(self._options.close_wait)

    def _ring(self) -> None:
        with suppress(OSError):  # full: it has been rung; closed: the thread has ended
            self._bell.send(b".")

    def _wait(self, child: Child, attempt: Attempt) -> Ended:
        line = child.line
        line_fd, rung_fd = line.sock.fileno(), self._rung.fileno()
        ears = select.poll()
        ears.register(line_fd, select.POLLIN)
        ears.register(rung_fd, select.POLLIN)
        stages: Stages | None = None
        try:
            while True:
                if stages is None and attempt.reason is not None:
                    stages = self._stages(child, attempt.reason)
                heard = [fd for fd, _ in ears.poll(1000 * _take(stages))]
                if rung_fd in heard:
                    self._rung.recv(64)
                if line_fd not in heard:
                    if not child.is_alive:
                        break
                elif not line.fill():
                    break
                while (raw := line.take()) is not None:
                    if (ended := self._heard(_decode(raw), child, attempt)) is not None:
                        return ended
        except (BrokenPipeError, ConnectionResetError):
            pass
        return self._died(child, attempt)

    def _heard(self, said: ToParent, child: Child, attempt: Attempt) -> Ended | None:
        """What the child said, if it is how the attempt ended."""
        match said:
            case Hello():
                child.has_started = True
            case Note(serial, value) if serial == child.serial:
                self._on_note(attempt, bytes(value))
            case Result(serial, value) if serial == child.serial:
                text = bytes(value)
                return NOTHING if text == NULL else Returned(text.decode())
            case Failure() as failure if failure.serial == child.serial:
                error = _revived(failure)
                return Raised(error, failure.traceback) if attempt.reason is None else raised(error, attempt)
        return None

    def _stages(self, child: Child, reason: Reason) -> Stages:
        """When to do what so that an attempt ends; a worker that stops or lost its lease has least time."""
        options = self._options
        ask = time.monotonic()
        term = ask + (options.grace if reason in (Reason.CANCEL, Reason.STOP) else 0.0)
        kill = term + options.kill_after / (2 if reason in (Reason.SHUTDOWN, Reason.LOST) else 1)
        stages: list[tuple[float, Callable[[], None]]] = [
            (term, lambda: child.terminate(reason)),
            (kill, lambda: child.signal(signal.SIGKILL)),
        ]
        if ask < term:
            stages.insert(0, (ask, lambda: child.ask(reason)))
        return deque(stages)

    def _died(self, child: Child, attempt: Attempt) -> Ended:
        how = how_it_ended(self._part(child))
        log.warning("job %d (%s): its process %d %s", attempt.job.id, attempt.job.kind, child.pid, how)
        if attempt.reason is not None:
            return raised(InterruptedError(how), attempt)
        if not child.has_started and how.startswith("exited"):
            return Raised(OSError(f"its process could not be started: it {how}; what it wrote to stderr says why"))
        return Crashed(f"its process {how}")


class ProcessExecutor(ThreadExecutor):
    """Runs attempts in processes of their own, each waited for by a thread.

    context   "module:name" of what makes contexts there, called with a ChildJob and Flags; see `child`
    settings  JSON values for it
    on_note   called (in any thread) with what the context of a running attempt sent: JSON
    """

    def __init__(
        self,
        report: Report,
        *,
        context: str = CONTEXT,
        settings: Mapping[str, object] | None = None,
        options: ProcessOptions | None = None,
        on_note: OnNote = lambda attempt, note: None,
    ) -> None:
        check_not_nested()
        self._about = About(context, settings or {})
        self._options = options or ProcessOptions()
        self._on_note = on_note
        self._own = threading.local()
        self._places: dict[Task[..., object], Place] = {}
        super().__init__(report, make_context=lambda attempt: None, run=self._run, end=self._end)

    def _run(self, attempt: Attempt) -> Ended:
        try:
            place = self._places.get(attempt.task)
            if place is None:
                place = self._places[attempt.task] = place_of(attempt.task)
            owner: Owner | None = getattr(self._own, "owner", None)
            if owner is None:
                owner = self._own.owner = Owner(self._about, self._options, self._on_note)
            return owner.run(attempt, place)
        except Exception as error:  # no process to be had, or no function: this attempt's failure, not the worker's
            log.exception("job %d (%s) could not be run in a process", attempt.job.id, attempt.job.kind)
            return raised(error, attempt)

    def _end(self) -> None:
        owner: Owner | None = getattr(self._own, "owner", None)
        if owner is not None:
            owner.close()


def _start(theirs: socket.socket) -> subprocess.Popen[bytes]:
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
    paths = [path or os.getcwd() for path in sys.path]
    python = os.fsdecode(multiprocessing.spawn.get_executable())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        return subprocess.Popen(
            [python, *flags, "-c", START, str(os.getpid()), str(theirs.fileno()), *paths],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _take(stages: Stages | None) -> float:
    """Take the stages that are due; returns the seconds until the next one, but not too many."""
    while stages:
        left = stages[0][0] - time.monotonic()
        if left > 0:
            return min(LOOK_EVERY, left)
        stages.popleft()[1]()
    return LOOK_EVERY


def _run(attempt: Attempt, place: Place, serial: int) -> Run:
    job = attempt.job
    return Run(
        serial=serial, module=place.module, qualname=place.qualname, args=Raw(job.args),
        metadata=Raw(job.metadata or NULL), id=job.id, claim=job.claim, kind=job.kind,
        queue=attempt.lane.queue, lease=attempt.lease.id, attempt=job.attempt, max_attempts=job.max_attempts,
        crashes=job.crashes, timeout=attempt.timeout, expires_at=job.expires_at, tenant=job.tenant,
        priority=job.priority,
    )  # fmt: skip


def _revived(failure: Failure) -> Exception:
    """The exception that was raised there, as far as it matters: its words, or which Signal it was."""
    reason = failure.reason or ""
    match failure.signal:
        case "Snooze":
            return Snooze(failure.delay or 0.0)
        case "Cancel":
            return Cancel(reason)
        case "Discard":
            return Discard(reason)
        case "RetryAfter":
            return RemoteRetryAfter(failure.type, failure.message, delay=failure.delay or 0.0, reason=reason)
    return RemoteError(failure.type, failure.message)
