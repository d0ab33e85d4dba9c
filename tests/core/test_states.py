"""The verb table is complete and keeps to its own rules."""

from __future__ import annotations

import pytest

from pgqueue.core.states import DELETED, FINAL, LIVE, REQUESTED, VERBS, State, Verb


def test_every_verb_has_an_answer_in_every_state() -> None:
    assert set(VERBS) == set(Verb)
    assert all(set(row) == set(State) for row in VERBS.values())


def test_an_answer_is_a_state_requested_deleted_or_why_nothing_was_done() -> None:
    for row in VERBS.values():
        for state, answer in row.items():
            assert answer in {*State, REQUESTED, DELETED, f"already {state}"}


def test_states_are_live_or_final() -> None:
    assert set(State) == LIVE | FINAL
    assert not LIVE & FINAL


@pytest.mark.parametrize("verb", Verb)
def test_no_verb_takes_a_running_job_from_its_worker(verb: Verb) -> None:
    assert VERBS[verb][State.RUNNING] in {REQUESTED, "already running"}


@pytest.mark.parametrize("state", sorted(FINAL))
def test_only_retry_and_delete_touch_a_final_job(state: State) -> None:
    assert {verb for verb in Verb if VERBS[verb][state] != f"already {state}"} == {Verb.RETRY, Verb.DELETE}
