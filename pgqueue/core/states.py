"""The states of a job, and what each verb does in each of them. Code, tests and the README read this table.

A verb answers with the state that the job has afterwards, with `requested` (a claimed job: its worker is asked), or
with `already <state>`: it did nothing, and this is why.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job stands."""

    PENDING = "pending"  # waits for other jobs
    SCHEDULED = "scheduled"  # waits for a time
    AVAILABLE = "available"  # may run now
    RUNNING = "running"  # held by a worker
    RETRYABLE = "retryable"  # failed, waits for its next attempt
    COMPLETED = "completed"
    CANCELLED = "cancelled"  # by someone
    DISCARDED = "discarded"  # gave up, expired or quarantined; the reason is recorded
    STOPPED = "stopped"  # parked by someone; retry resumes it


FINAL = frozenset({State.COMPLETED, State.CANCELLED, State.DISCARDED, State.STOPPED})
LIVE = frozenset(State) - FINAL


class Verb(StrEnum):
    """What people do to a job."""

    CANCEL = "cancel"
    STOP = "stop"
    RETRY = "retry"
    RESCHEDULE = "reschedule"
    SET_PRIORITY = "set_priority"
    DELETE = "delete"


REQUESTED = "requested"
DELETED = "deleted"
_P, _S, _A, _R, _T, *_ = State


def _row(pending: str, scheduled: str, available: str, running: str, retryable: str, final: str) -> dict[State, str]:
    """Answers of one verb by state; an empty answer stands for `already <state>`."""
    live = dict(zip((_P, _S, _A, _R, _T), (pending, scheduled, available, running, retryable), strict=True))
    return {state: live.get(state, final) or f"already {state}" for state in State}


VERBS: dict[Verb, dict[State, str]] = {
    Verb.CANCEL: _row("cancelled", "cancelled", "cancelled", REQUESTED, "cancelled", ""),
    Verb.STOP: _row("stopped", "stopped", "stopped", REQUESTED, "stopped", ""),
    Verb.RETRY: _row("", "available", "", "", "available", "available"),
    Verb.RESCHEDULE: _row("", "scheduled", "scheduled", "", "retryable", ""),
    Verb.SET_PRIORITY: _row("pending", "scheduled", "available", "", "retryable", ""),
    Verb.DELETE: _row(DELETED, DELETED, DELETED, "", DELETED, DELETED),
}
