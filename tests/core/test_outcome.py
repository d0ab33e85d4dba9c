"""What a job becomes, given how its attempt ended: the whole table."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from pgqueue.core.outcome import (
    ERROR_LIMIT,
    NOTHING,
    Asked,
    Crashed,
    Ended,
    Expired,
    Interrupted,
    Outcome,
    Raised,
    Returned,
    TimedOut,
    decide,
    storable,
)
from pgqueue.core.retry import Retry
from pgqueue.core.signals import Cancel, Discard, RetryAfter, Snooze
from pgqueue.core.states import State, Verb

RETRY = Retry(max_attempts=3, base=2, cap=100, jitter=0)

# How it ended, attempts and crashes before, what it becomes: (state, delay, attempt cost, crash cost, solo)
TABLE: list[tuple[Ended, int, int, tuple[State, float | None, int, int, bool]]] = [
    (NOTHING, 0, 0, (State.COMPLETED, None, 0, 0, False)),
    (Returned("1"), 2, 2, (State.COMPLETED, None, 0, 0, False)),
    (Raised(ValueError()), 0, 0, (State.RETRYABLE, 2, 1, 0, False)),
    (Raised(ValueError()), 1, 0, (State.RETRYABLE, 4, 1, 0, False)),
    (Raised(ValueError()), 2, 0, (State.DISCARDED, None, 1, 0, False)),
    (Raised(ValueError()), 9, 0, (State.DISCARDED, None, 1, 0, False)),
    (TimedOut(5), 0, 0, (State.RETRYABLE, 2, 1, 0, False)),
    (TimedOut(5), 2, 0, (State.DISCARDED, None, 1, 0, False)),
    (Raised(RetryAfter(7)), 0, 0, (State.RETRYABLE, 7, 1, 0, False)),
    (Raised(RetryAfter(7)), 2, 0, (State.DISCARDED, None, 1, 0, False)),
    (Raised(Snooze(7)), 2, 0, (State.SCHEDULED, 7, 0, 0, False)),
    (Raised(Snooze(timedelta(days=1))), 0, 0, (State.SCHEDULED, 86400, 0, 0, False)),
    (Raised(Cancel()), 0, 0, (State.CANCELLED, None, 0, 0, False)),
    (Raised(Discard()), 0, 0, (State.DISCARDED, None, 1, 0, False)),
    (Interrupted(), 2, 2, (State.AVAILABLE, None, 0, 0, False)),
    (Asked(Verb.CANCEL), 0, 0, (State.CANCELLED, None, 0, 0, False)),
    (Asked(Verb.STOP, ValueError()), 2, 0, (State.STOPPED, None, 0, 0, False)),
    (Crashed("killed"), 0, 0, (State.AVAILABLE, None, 0, 1, True)),
    (Crashed("killed"), 0, 1, (State.AVAILABLE, None, 0, 1, True)),
    (Crashed("killed"), 0, 2, (State.DISCARDED, None, 0, 1, False)),
    (Expired(), 0, 0, (State.DISCARDED, None, 0, 0, False)),
]


@pytest.mark.parametrize(("ended", "attempt", "crashes", "expected"), TABLE)
def test_decide(ended: Ended, attempt: int, crashes: int, expected: tuple[State, float | None, int, int, bool]) -> None:
    outcome = decide(ended, attempt=attempt, crashes=crashes, retry=RETRY)
    assert (outcome.state, outcome.delay, outcome.attempt_cost, outcome.crash_cost, outcome.solo) == expected


def test_the_table_has_every_way_to_end() -> None:
    assert {type(ended) for ended, *_ in TABLE} == set(Ended.__args__)


@pytest.mark.parametrize(("ended", "attempt", "crashes", "expected"), TABLE)
def test_an_outcome_without_success_says_why_unless_it_is_nobodys_fault(
    ended: Ended, attempt: int, crashes: int, expected: object
) -> None:
    outcome = decide(ended, attempt=attempt, crashes=crashes, retry=RETRY)
    quiet = isinstance(ended, Returned | Interrupted) or (isinstance(ended, Raised) and isinstance(ended.error, Snooze))
    assert (outcome.error is None) == quiet


HOSTILE = "\0 and \ud800 and " + "x" * ERROR_LIMIT * 2


@pytest.mark.parametrize(
    "ended",
    [
        Raised(ValueError(HOSTILE), HOSTILE), Raised(Cancel(HOSTILE)), Raised(Discard(HOSTILE)),
        Raised(RetryAfter(1, HOSTILE)), Crashed(HOSTILE),
    ],
    ids=["error", "cancel", "discard", "retry after", "crash"],
)  # fmt: skip
def test_whatever_a_task_says_can_be_stored(ended: Ended) -> None:
    error = decide(ended, attempt=0, crashes=0, retry=RETRY).error
    assert error is not None
    for text in filter(None, error.values()):
        text.encode()
        assert "\0" not in text
        assert len(text) <= ERROR_LIMIT + 100


def test_an_exception_that_cannot_be_printed_is_recorded_all_the_same() -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    error = decide(Raised(Unprintable()), attempt=0, crashes=0, retry=RETRY).error
    assert error is not None
    assert "RuntimeError" in str(error["message"])


def test_the_job_s_own_class_is_named_with_its_module() -> None:
    error = decide(Raised(json.JSONDecodeError("m", "d", 0), "tb"), attempt=0, crashes=0, retry=RETRY).error
    assert error == {
        "type": "json.decoder.JSONDecodeError",
        "message": "m: line 1 column 1 (char 0)",
        "traceback": "tb",
    }


@pytest.mark.parametrize("text", ["", "plain", "ä€😀", "\\x00", "x" * ERROR_LIMIT])
def test_what_can_be_stored_is_left_as_it_is(text: str) -> None:
    assert storable(text) == text


def test_the_middle_of_a_long_text_is_left_out() -> None:
    text = storable("begin" + "x" * 3 * ERROR_LIMIT + "end")
    assert text.startswith("begin")
    assert text.endswith("end")
    assert "characters left out" in text
    assert len(storable("\0" * 10 * ERROR_LIMIT)) <= ERROR_LIMIT + 100


def test_an_outcome_is_a_value() -> None:
    assert decide(NOTHING, attempt=0, crashes=0, retry=RETRY) == Outcome(state=State.COMPLETED)
