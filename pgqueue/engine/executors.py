"""Where attempts run: coroutines on the event loop, functions in threads. (`processes` has the third.)

Both run one attempt after another in the same coroutine or thread while the lane has work for them, and report how
each `Ended`. An executor knows nothing of the database.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import queue
import threading
import traceback
from collections.abc import Callable
from functools import partial

from pgqueue.core.outcome import NOTHING, Asked, Ended, Expired, Interrupted, Raised, Returned, TimedOut
from pgqueue.core.states import Verb
from pgqueue.engine.lane import Attempt, Reason
from pgqueue.extension import Lent, context_here
from pgqueue.tasks.json_text import encode_result

log = logging.getLogger("pgqueue.worker")

Report = Callable[[Attempt, Ended], None]
GIVE_BACK_WITHIN = 5.0  # seconds
YIELD_EVERY = 64  # jobs that a coroutine runs before it lets others on the event loop


def call_arguments(
    attempt: Attempt, make_context: Callable[[Attempt], object]
) -> tuple[list[object], dict[str, object]]:
    """The decoded arguments of an attempt, after its context if the task takes one.

    raises  InvalidArguments, InvalidJob if the stored arguments do not fit the task's signature (any more)
    """
    task = attempt.task
    args, kwargs = task.codec.call_args(attempt.job.args)
    if task.takes_context:
        return [make_context(attempt), *args], kwargs
    return args, kwargs


def returned(value: object) -> Ended:
    """The end of an attempt that returned `value`; a value that JSON can't hold is the attempt's failure."""
    if value is None:
        return NOTHING
    try:
        text = encode_result(value)
    except Exception as error:
        return Raised(error)
    return NOTHING if text is None else Returned(text.decode())


def raised(error: BaseException, attempt: Attempt) -> Ended:
    """The end of an attempt that raised: its interruption, if it was asked to end, else a failure."""
    match attempt.reason:
        case Reason.TIMEOUT:
            return TimedOut(attempt.timeout or 0.0)
        case Reason.CANCEL:
            return Asked(Verb.CANCEL, error)
        case Reason.STOP:
            return Asked(Verb.STOP, error)
        case Reason.SHUTDOWN | Reason.LOST:
            return Interrupted()
        case Reason.EXPIRED:
            return Expired()
    return Raised(error, traceback_of(error))


def traceback_of(error: BaseException, ours: str = __file__) -> str:
    """Where it was raised, from the task's own code on: frames of the file `ours` above that are nobody's concern."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == ours:
        trace = trace.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, trace, limit=-50))
    except BaseException as broken:  # an exception may bring methods of its own
        return f"(its traceback can't be had: {type(broken).__name__})"


def give_back(lent: Lent) -> None:
    """The function of an attempt has ended: close what it was lent. That this fails isn't the job's failure."""
    try:
        lent.close()
    except BaseException as error:
        log.warning("what an attempt was lent could not be closed: %r", error)


async def agive_back(lent: Lent) -> None:
    """As `give_back`, of a coroutine. A cancellation that is still under way ends this only, and not for long."""
    try:
        async with asyncio.timeout(GIVE_BACK_WITHIN):
            await lent.aclose()
    except BaseException as error:
        log.warning("what an attempt was lent could not be closed: %r", error)


class AsyncExecutor:
    """Runs `async def` tasks as coroutines of the worker's event loop.

    A job runs in the asyncio task of the job before it, which saves a third of the cost of a no-op job on Python 3.11;
    a job that left context variables changed, or was cancelled, takes its asyncio task with it.
    """

    def __init__(self, report: Report, make_context: Callable[[Attempt], object]) -> None:
        self._report = report
        self._make_context = make_context
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._tasks: set[asyncio.Task[None]] = set()
        self._clean = contextvars.copy_context()

    def start(self, attempt: Attempt) -> None:
        """Run it; see `Executor`."""
        if threading.get_ident() == self._thread:
            self._spawn(attempt)
        else:
            self._loop.call_soon_threadsafe(self._spawn, attempt)

    def _spawn(self, attempt: Attempt) -> None:
        task = self._loop.create_task(self._run(attempt), context=self._clean.copy())
        self._tasks.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._tasks.discard)

    async def _run(self, attempt: Attempt) -> None:
        current = asyncio.current_task()
        assert current is not None
        before = contextvars.copy_context()
        upcoming: Attempt | None = attempt
        count = 0
        while upcoming is not None:
            attempt = upcoming
            attempt.begin()
            attempt.on_interrupt = current.cancel
            token = context_here.set(partial(self._make_context, attempt))
            try:
                if attempt.reason is not None:  # asked to end before it began
                    raise asyncio.CancelledError
                args, kwargs = call_arguments(attempt, self._make_context)
                ended = returned(await attempt.task.fn(*args, **kwargs))  # type: ignore[misc]
            except BaseException as error:
                ended = raised(error, attempt)
            finally:
                attempt.on_interrupt = None
                context_here.reset(token)
            if attempt.lent is not None:
                await agive_back(attempt.lent)
            self._report(attempt, ended)
            upcoming = attempt.lane.next(self)
            if attempt.reason is not None or current.cancelling() or _differ(contextvars.copy_context(), before):
                break
            count += 1
            if count % YIELD_EVERY == 0:
                await asyncio.sleep(0)
        if upcoming is not None:
            self._spawn(upcoming)


def _differ(now: contextvars.Context, before: contextvars.Context) -> bool:
    """By identity: what a user's value does when it is compared (a numpy array raises) is not to be found out here."""
    if len(now) != len(before):
        return True
    for variable, value in now.items():  # noqa: SIM110 - any() takes three times as long, for every job
        if before.get(variable, now) is not value:
            return True
    return False


class ThreadExecutor:
    """Runs plain functions in threads, each until there is nothing more for it.

    A thread can't be stopped from outside: an interrupted attempt keeps its slot until its function returns, or makes a
    call on its context that raises then: any step or cursor; after a time-out also `connection()`, `http`, `save`.

    run  does that instead, for the executor of processes; `end` is called by each of its threads as it ends
    """

    def __init__(
        self,
        report: Report,
        make_context: Callable[[Attempt], object],
        run: Callable[[Attempt], Ended] | None = None,
        end: Callable[[], None] = lambda: None,
    ) -> None:
        self._report = report
        self._make_context = make_context
        self._run_one = run or self._call
        self._end = end
        self._inbox: queue.SimpleQueue[Attempt | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._threads = 0

    def start(self, attempt: Attempt) -> None:
        """Run it; see `Executor`."""
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
            else:
                self._threads += 1
                threading.Thread(target=self._work, name=f"pgqueue-{self._threads}", daemon=True).start()
        self._inbox.put(attempt)

    def close(self) -> None:
        """Let idle threads end; busy ones end with their attempt."""
        for _ in range(self._threads):
            self._inbox.put(None)

    def _work(self) -> None:
        while (attempt := self._inbox.get()) is not None:
            upcoming: Attempt | None = attempt
            while upcoming is not None:
                attempt = upcoming
                attempt.begin()
                try:
                    ended = contextvars.copy_context().run(self._run_one, attempt)
                except BaseException as error:  # no attempt takes its thread and its slot along
                    ended = Raised(error, traceback_of(error))
                self._report(attempt, ended)
                upcoming = attempt.lane.next(self)
            with self._lock:
                self._idle += 1
        self._end()

    def _call(self, attempt: Attempt) -> Ended:
        context_here.set(partial(self._make_context, attempt))
        try:
            if attempt.reason is not None:
                return raised(InterruptedError(), attempt)
            args, kwargs = call_arguments(attempt, self._make_context)
            return returned(attempt.task.fn(*args, **kwargs))
        except BaseException as error:  # SystemExit too is the task's failure, not the worker's
            return raised(error, attempt)
        finally:
            if attempt.lent is not None:
                give_back(attempt.lent)
