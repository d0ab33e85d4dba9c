"""A process of its own for jobs: runs one attempt at a time, as told by the worker that started it, and says how it
ended.

Guarantees: it ends with its worker; it never outlives it by more than the job it runs where the system has no signal
for that (macOS). Leaves Ctrl-C and the SIGTERM of a service manager to its worker, and obeys a SIGTERM that the
worker announced: `Terminated` is raised in the function, a coroutine is cancelled.
Never: talks to the database by itself; unpickles anything.
"""

from __future__ import annotations

import asyncio
import contextvars
import faulthandler
import functools
import importlib
import inspect
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

import msgspec

from pgqueue.core.job import Claimed
from pgqueue.core.outcome import Raised, Returned, describe, storable
from pgqueue.core.signals import Cancel, Discard, RetryAfter, Snooze
from pgqueue.engine.death import mortal
from pgqueue.engine.executors import agive_back, give_back, returned, traceback_of
from pgqueue.engine.lane import Reason
from pgqueue.engine.line import NULL, Ask, Boot, Failure, Hello, Line, Note, Result, Run, ToChild, encode
from pgqueue.engine.place import Main, Place, find
from pgqueue.extension import Leftover, Lent, context_here
from pgqueue.tasks.args import ArgsCodec
from pgqueue.tasks.task import Sender

HELD_BACK = (signal.SIGTERM, signal.SIGINT)  # blocked by the worker until the process can deal with them

_decode = msgspec.json.Decoder(ToChild).decode


class Terminated(BaseException):
    """Raised in a function whose time to end by itself is over; the process is killed soon after."""


@dataclass(frozen=True, slots=True)
class ChildJob:
    """What a context may know of its attempt.

    sender    of the task, in this process; None if a plain function was found in its place
    is_async  the task is a coroutine function
    settings  what the worker gave to its ProcessExecutor
    """

    job: Claimed
    queue: str
    lease: int
    timeout: float | None
    sender: Sender | None
    is_async: bool
    settings: Mapping[str, object]


class Flags:
    """What the worker wants of the running attempt, and the way back to it. Any thread may ask.

    leftover, lent  what its contexts share
    """

    def __init__(self, line: Line, serial: int) -> None:
        self._line = line
        self._serial = serial
        self._lock = threading.RLock()  # a signal handler may interrupt its holder
        self._over = False
        self._reason: Reason | None = None
        self.began = time.monotonic()
        self.leftover: Leftover | None = None
        self.lent: Lent | None = None
        self.final = False  # a SIGTERM that comes now is the worker's
        self.on_ask: Callable[[], None] | None = None  # called when the first request is read, by whoever reads it

    @property
    def reason(self) -> Reason | None:
        """Why the attempt is to end; None: it is not."""
        self.look()
        return self._reason

    def note(self, value: object) -> None:
        """Give the worker something that JSON can say; it has it even if this process dies right after."""
        with self._lock:
            if not self._over:
                self._line.send(Note(self._serial, msgspec.Raw(encode(value))))

    def look(self) -> None:
        """Read what the worker has said since; until the attempt is over that is nothing but requests about it."""
        with self._lock, suppress(BlockingIOError):
            while not self._over and self._reason is not Reason.LOST:
                if not self._line.fill(socket.MSG_DONTWAIT):
                    self._asked(Reason.LOST)  # the worker is gone
                while (raw := self._line.take()) is not None:
                    said = _decode(raw)
                    if isinstance(said, Ask) and said.serial == self._serial:
                        self.final = self.final or said.final
                        self._asked(said.reason)

    def _asked(self, reason: Reason) -> None:
        first = self._reason is None
        self._reason = reason
        if first and self.on_ask is not None:
            self.on_ask()

    def close(self) -> None:
        """The attempt is over: what arrives from now on is for the next one."""
        with self._lock:
            self._over = True


class Known(NamedTuple):
    """A function that has been found."""

    fn: Callable[..., Any]
    codec: ArgsCodec
    is_async: bool
    sender: Sender | None


class Child:
    """The process's only loop."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._main = Main(None, None)
        self._context = ""
        self._settings: Mapping[str, object] = {}
        self._known: dict[Place, Known] = {}
        self._flags: Flags | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner = asyncio.Runner()  # one event loop for all: pools of connections outlive an attempt

    def serve(self) -> None:
        """Run what comes until the worker hangs up."""
        with self._runner:
            self._serve()

    def _serve(self) -> None:
        self._line.send(Hello())
        while (raw := self._receive()) is not None:
            match _decode(raw):
                case Boot(argv, name, path, context, settings):
                    sys.argv[:] = argv
                    self._main = Main(name, path)
                    self._context = context
                    self._settings = msgspec.json.decode(settings)
                case Run() as run:
                    answer = self._run(run)
                    _flush()
                    self._line.send(answer)
                case Ask():
                    pass  # about an attempt that had ended meanwhile

    def terminate(self, signum: int, frame: FrameType | None) -> None:
        """On SIGTERM: end the attempt, if it was the worker that sent it; it announces that."""
        if self._flags is None:
            return
        self._flags.look()
        if self._flags.final and self._flags.on_ask is None:
            raise Terminated("the time to end by itself was over")

    def _receive(self) -> bytes | None:
        while (raw := self._line.take()) is None:
            if not self._line.fill():
                return None
        return raw

    def _run(self, run: Run) -> Result | Failure:
        flags = self._flags = Flags(self._line, run.serial)
        try:
            ended = returned(contextvars.copy_context().run(self._call, run, flags))
        except BaseException as error:  # SystemExit too is the task's failure
            ended = Raised(error, traceback_of(error, ours=__file__))
        finally:
            flags.close()
            self._flags = None
        match ended:
            case Returned(text):
                return Result(run.serial, msgspec.Raw(NULL if text is None else text.encode()))
            case Raised(cause, text):
                try:
                    return failure(run.serial, cause, text)
                except BaseException as broken:  # what a task raises may bring methods of its own
                    return Failure(
                        run.serial, "ValueError", f"how it ended can't be told: {type(broken).__name__}", text
                    )
        raise AssertionError(ended)

    def _call(self, run: Run, flags: Flags) -> object:
        known = self._find(Place(run.module, run.qualname))
        args, kwargs = known.codec.call_args(bytes(run.args))
        make = functools.cache(lambda: make_context(self._context, _child_job(run, known, self._settings), flags))
        context_here.set(make)
        if known.codec.takes_context:
            args = [make(), *args]
        if known.is_async:
            return self._run_coroutine(_closing(flags, known.fn(*args, **kwargs)), flags)
        try:
            return known.fn(*args, **kwargs)
        finally:
            if flags.lent is not None:
                give_back(flags.lent)

    def _find(self, place: Place) -> Known:
        known = self._known.get(place)
        if known is None:
            fn, task = find(place, self._main)
            sender = None if task is None else task.sender
            known = self._known[place] = Known(fn, ArgsCodec(fn), inspect.iscoroutinefunction(fn), sender)
        return known

    def _run_coroutine(self, coroutine: Coroutine[Any, Any, object], flags: Flags) -> object:
        """Run a coroutine; it is cancelled as soon as anybody reads that it is to end."""
        if self._loop is None:
            self._loop = self._runner.get_loop()
            self._loop.add_reader(self._line.sock, self._look)  # to stay: adding it each time costs 70 us
        loop = self._loop
        task = loop.create_task(coroutine)

        def asked() -> None:
            loop.call_soon_threadsafe(task.cancel)

        flags.on_ask = asked
        return loop.run_until_complete(task)

    def _look(self) -> None:
        if self._flags is None or self._flags.reason is Reason.LOST:
            assert self._loop is not None
            self._loop.remove_reader(self._line.sock)  # the worker is gone, and that is readable for ever


async def _closing(flags: Flags, coroutine: Coroutine[Any, Any, object]) -> object:
    try:
        return await coroutine
    finally:
        if flags.lent is not None:
            await agive_back(flags.lent)


def make_context(factory: str, job: ChildJob, flags: Flags) -> object:
    """The context of an attempt, made by the function that `factory` ("module:name") names."""
    module, _, name = factory.partition(":")
    make: Callable[[ChildJob, Flags], object] = getattr(importlib.import_module(module), name)
    return make(job, flags)


def failure(serial: int, error: BaseException, text: str | None) -> Failure:
    """An exception in words, with the values of those that steer the job."""
    words = describe(error, text)
    said = Failure(serial, words["type"] or "", words["message"] or "", words["traceback"])
    replace = msgspec.structs.replace
    match error:
        case RetryAfter(delay=delay, reason=reason):
            return replace(said, signal="RetryAfter", delay=delay.total_seconds(), reason=storable(str(reason)))
        case Snooze(delay=delay):
            return replace(said, signal="Snooze", delay=delay.total_seconds())
        case Cancel(reason=reason):
            return replace(said, signal="Cancel", reason=storable(str(reason)))
        case Discard(reason=reason):
            return replace(said, signal="Discard", reason=storable(str(reason)))
    return said


def _child_job(run: Run, known: Known, settings: Mapping[str, object]) -> ChildJob:
    metadata = None if bytes(run.metadata) == NULL else bytes(run.metadata).decode()
    job = Claimed(
        id=run.id, claim=run.claim, kind=run.kind, args=bytes(run.args).decode(), metadata=metadata,
        attempt=run.attempt, max_attempts=run.max_attempts, crashes=run.crashes, timeout=run.timeout,
        expires_at=run.expires_at, tenant=run.tenant, priority=run.priority,
    )  # fmt: skip
    return ChildJob(job, run.queue, run.lease, run.timeout, known.sender, known.is_async, settings)


def _flush() -> None:
    """What the job printed is to be seen now, not when 8 KiB have come together."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or None
            stream.flush()


def main() -> None:
    """Serve the worker whose id is the first argument, over the socket that is the second."""
    mortal(int(sys.argv[1]), signal.SIGKILL)()
    sock = socket.socket(fileno=int(sys.argv[2]))
    sock.set_inheritable(False)
    os.register_at_fork(after_in_child=sock.close)  # so that the worker hears of our end, whoever lives on
    faulthandler.enable()
    faulthandler.register(signal.SIGQUIT)
    child = Child(Line(sock))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, child.terminate)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
    with suppress(BrokenPipeError, ConnectionResetError):  # the worker is gone, and nobody is left to be told
        child.serve()
