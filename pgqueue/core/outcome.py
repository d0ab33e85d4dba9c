"""How an attempt ended, and what its job becomes because of it. Pure: no clock, no database, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, assert_never

from pgqueue.core.retry import Retry
from pgqueue.core.signals import Cancel, Discard, RetryAfter, Snooze, as_delay
from pgqueue.core.states import State, Verb

CRASHES_ALLOWED = 3


@dataclass(frozen=True, slots=True)
class Returned:
    """The task returned; `result` is JSON text, None for nothing."""

    result: str | None = None

    @property
    def size(self) -> int:
        """Characters of the result."""
        return 0 if self.result is None else len(self.result)


NOTHING = Returned()


@dataclass(frozen=True, slots=True)
class Raised:
    """The task raised; `traceback` is text."""

    error: BaseException
    traceback: str | None = None


class RemoteError(Exception):
    """An exception that was raised in another process, known by its words; its class may not exist here."""

    def __init__(self, type: str, message: str) -> None:
        self.type = type
        Exception.__init__(self, message)


class RemoteRetryAfter(RemoteError, RetryAfter):
    """A RetryAfter that was raised in another process."""

    def __init__(self, type: str, message: str, *, delay: float, reason: str) -> None:
        RemoteError.__init__(self, type, message)
        self.delay = as_delay(delay)
        self.reason = reason


class Uncommitted(Exception):
    """The task returned, but the transaction in which it had completed its job was not committed."""

    def __init__(self) -> None:
        super().__init__("complete_tx was rolled back or never committed; commit before the task returns")


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The attempt took longer than its time-out."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The worker stopped, or lost its lease, before the task was done: nobody's fault."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Someone wanted the job cancelled or stopped, and the attempt ended without success."""

    verb: Verb
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Crashed:
    """The process that ran this job alone died."""

    how: str


@dataclass(frozen=True, slots=True)
class Expired:
    """The job was claimed after its `expires_at`."""


Ended = Returned | Raised | TimedOut | Interrupted | Asked | Crashed | Expired


class Outcome(NamedTuple):
    """What the job's row becomes. (A tuple: a worker makes one for each job, and a frozen dataclass costs 2 µs more.)

    delay         seconds until the next attempt, for `scheduled` and `retryable`
    attempt_cost  1 if this attempt counts as failed; crash_cost likewise as crashed
    solo          run it alone next time
    error         type, message and traceback of what went wrong
    """

    state: State
    result: str | None = None
    error: dict[str, str | None] | None = None
    delay: float | None = None
    attempt_cost: int = 0
    crash_cost: int = 0
    solo: bool = False


def decide(ended: Ended, *, attempt: int, crashes: int, retry: Retry) -> Outcome:
    """Say what the row becomes, given how the attempt ended.

    attempt, crashes  as they were before this attempt; `retry.max_attempts` is the job's own if it has one
    """
    match ended:
        case Returned(result):
            return Outcome(state=State.COMPLETED, result=result)
        case Raised(Snooze(delay=delay)):
            return Outcome(state=State.SCHEDULED, delay=delay.total_seconds())  # a nap is not a failure
        case Raised(Cancel(reason=reason)):
            return Outcome(state=State.CANCELLED, error=_reason("Cancel", reason))
        case Raised(Discard(reason=reason)):
            return Outcome(state=State.DISCARDED, error=_reason("Discard", reason), attempt_cost=1)
        case Raised(error, traceback):
            return _failed(describe(error, traceback), error, attempt, retry)
        case TimedOut(seconds):
            return _failed(_reason("Timeout", f"took longer than its time-out of {seconds:g} s"), None, attempt, retry)
        case Interrupted():
            return Outcome(state=State.AVAILABLE)
        case Asked(verb, error):
            state = State.CANCELLED if verb is Verb.CANCEL else State.STOPPED
            return Outcome(state=state, error=_reason(verb.capitalize(), f"{state} while it was running"))
        case Crashed(how) if crashes + 1 >= CRASHES_ALLOWED:
            return Outcome(
                state=State.DISCARDED, error=_reason("WorkerLost", f"{how} (crash {crashes + 1})"), crash_cost=1
            )
        case Crashed(how):
            return Outcome(
                state=State.AVAILABLE,
                error=_reason("WorkerLost", f"{how} (crash {crashes + 1})"),
                crash_cost=1,
                solo=True,
            )
        case Expired():
            return Outcome(state=State.DISCARDED, error=_reason("Expired", "had not started when it expired"))
    assert_never(ended)


def _failed(error: dict[str, str | None], raised: BaseException | None, attempt: int, retry: Retry) -> Outcome:
    failures = attempt + 1
    if failures >= retry.max_attempts:
        return Outcome(state=State.DISCARDED, error=error, attempt_cost=1)
    delay = raised.delay if isinstance(raised, RetryAfter) else retry.delay(failures)
    return Outcome(state=State.RETRYABLE, error=error, delay=delay.total_seconds(), attempt_cost=1)


def _reason(type: str, message: str) -> dict[str, str | None]:
    return {"type": type, "message": storable(str(message)), "traceback": None}  # a task may give anything


ERROR_LIMIT = 32 * 1024


def describe(error: BaseException, traceback: str | None) -> dict[str, str | None]:
    """An error as text that PostgreSQL can store: no NUL, no lone surrogates, 32 Ki characters at most."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(error, RemoteError):
        name = error.type
    try:
        message = str(error)
    except BaseException as broken:  # an exception whose __str__ raises is still an error to record
        message = f"(its message can't be had: {type(broken).__name__})"
    return {
        "type": storable(name),
        "message": storable(message),
        "traceback": storable(traceback) if traceback else None,
    }


def storable(text: str) -> str:
    """`text` without what a JSON value can't hold in PostgreSQL, its middle cut out if it is over 32 Ki characters."""
    text = text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) > ERROR_LIMIT:
        half = ERROR_LIMIT // 2
        text = f"{text[:half]}\n... {len(text) - ERROR_LIMIT} characters left out ...\n{text[-half:]}"
    return text
