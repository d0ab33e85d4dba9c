"""What River does not pin: what each end of an attempt leaves, and with what the next one goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pgqueue import State
from tests.conformance.deeds import Act
from tests.conformance.kit import (
    Plays,
    cancel,
    commit,
    cursor,
    die,
    discard,
    fail,
    insert,
    mark_cursor,
    save,
    set_cursor,
    snooze,
    step,
    wait,
)
from tests.engine.kit import PATIENCE, working

ROOT = Path(__file__).parents[2]
LEFT = {"done": {"one": 1}, "cursor": {"two": {"at": 7}}, "data": {"seen": [1]}}
GOES_ON = [step("one"), cursor("two", set_cursor({"at": 9}), result=2), step("three")]


def ends(*how: Act) -> list[Act]:
    """A run that ends in the middle of its second step."""
    return [step("one", result=1), cursor("two", save("seen", [1]), set_cursor({"at": 7}), *how), step("three")]


def assert_goes_on(plays: Plays, id: int) -> None:
    """A retry of the job begins where it was, and its success removes all but the data."""
    ran = len(plays.diary)
    seen = plays.retry(id)
    assert seen.diary[ran:] == ['two from {"at": 7}', "three"]
    assert seen.state is State.COMPLETED
    assert seen.job.result == {"one": 1, "two": 2, "three": None}
    assert seen.job.metadata == {"mine": 1, "pgqueue": {"data": {"seen": [1]}}}


@pytest.mark.parametrize(
    ("act", "state"),
    [
        (fail(), State.DISCARDED),
        (snooze(3600), State.SCHEDULED),
        (cancel("not wanted"), State.CANCELLED),
        (discard("no use"), State.DISCARDED),
    ],
    ids=["an error", "a snooze", "a cancel", "a discard"],
)
def test_a_job_that_ends_itself_in_a_cursor_step_goes_on_there(plays: Plays, act: Act, state: State) -> None:
    id = plays.enqueue(ends(act), GOES_ON, max_attempts=1, metadata={"mine": 1})
    seen = plays.reaches(id, state)

    assert seen.checkpoint == LEFT
    assert_goes_on(plays, id)


@pytest.mark.parametrize(("verb", "state"), [("cancel", State.CANCELLED), ("stop", State.STOPPED)])
def test_a_job_that_is_asked_to_end_in_a_cursor_step_goes_on_there(plays: Plays, verb: str, state: State) -> None:
    id = plays.enqueue(ends(wait()), GOES_ON, metadata={"mine": 1})
    with plays.waiting():
        assert getattr(plays.q, verb)(id) == "requested"
        plays.q.wait(id)
    seen = plays.see(id)

    assert (seen.state, seen.checkpoint) == (state, LEFT)
    assert_goes_on(plays, id)


def test_a_job_that_takes_too_long_in_a_cursor_step_goes_on_there(plays: Plays) -> None:
    with working(plays.q):
        plays.q.wait(plays.enqueue([]))  # the first run: now there is a process, whose start is not to be counted
        id = plays.enqueue([], ends(wait()), GOES_ON, max_attempts=1, timeout=3, metadata={"mine": 1})
        plays.q.wait(id)
    seen = plays.see(id)

    assert seen.errors == [("Timeout", "took longer than its time-out of 3 s")]
    assert seen.checkpoint == LEFT
    assert_goes_on(plays, id)


def test_a_job_that_a_deploy_interrupts_in_a_cursor_step_goes_on_there(plays: Plays) -> None:
    id = plays.enqueue(ends(wait()), GOES_ON, metadata={"mine": 1})
    with plays.waiting(grace=0):
        pass
    seen = plays.see(id)
    assert (seen.state, seen.job.attempt, seen.errors) == (State.AVAILABLE, 0, [])
    assert seen.checkpoint == LEFT

    after = plays.work(id)
    assert after.diary == ["one", "two from null", "waiting", 'two from {"at": 7}', "three"]
    assert (after.state, after.job.attempt) == (State.COMPLETED, 1)


def test_an_error_after_the_last_step_leaves_all_of_them_finished(plays: Plays) -> None:
    """After a panic River has lost the steps of that attempt."""
    seen = plays.run([step("one", result=1), cursor("two", set_cursor(5)), fail()], [step("one"), cursor("two")])

    assert (seen.state, seen.job.result) == (State.COMPLETED, {"one": 1, "two": None})
    assert seen.diary == ["one", "two from null"]


def test_the_cursor_of_the_very_first_step_is_kept(plays: Plays) -> None:
    """River, which writes only after a finished step, loses it."""
    seen = plays.run([cursor("first", set_cursor(3), fail())], [cursor("first")])

    assert (seen.state, seen.diary) == (State.COMPLETED, ["first from null", "first from 3"])


def test_a_retry_of_a_completed_job_starts_clean(plays_inside: Plays) -> None:
    acts = [step("one"), cursor("two", save("seen", 1), set_cursor(5))]
    id = plays_inside.enqueue(acts, metadata={"mine": 1})
    first = plays_inside.work(id)
    again = plays_inside.retry(id)

    assert again.diary == ["one", "two from null"] * 2
    assert first.job.metadata == again.job.metadata == {"mine": 1, "pgqueue": {"data": {"seen": 1}}}


@pytest.mark.parametrize("state", [State.DISCARDED, State.CANCELLED, State.STOPPED, State.SCHEDULED])
def test_a_restart_starts_clean_whatever_was_left(plays_inside: Plays, state: State) -> None:
    plays = plays_inside
    how = {State.DISCARDED: fail(), State.SCHEDULED: snooze(3600)}.get(state, wait())
    id = plays.enqueue(ends(how), [step("one", result=2), cursor("two"), step("three")], metadata={"mine": 1})
    plays.admin.execute("update pgqueue.job set max_attempts = 1")
    if how == wait():
        with plays.waiting():
            plays.q.cancel(id) if state is State.CANCELLED else plays.q.stop(id)
            plays.q.wait(id)
    else:
        plays.reaches(id, state)
    left = plays.see(id)
    ran = len(left.diary)
    assert (left.state, left.checkpoint) == (state, LEFT)

    seen = plays.retry(id, restart=True)
    assert seen.diary[ran:] == ["one", "two from null", "three"]
    assert seen.job.result == {"one": 2, "two": None, "three": None}
    assert seen.job.metadata == {"mine": 1}


def test_a_process_that_dies_in_a_step_has_told_how_far_it_was(plays_apart: Plays) -> None:
    plays = plays_apart
    seen = plays.run(ends(die()), GOES_ON, metadata={"mine": 1})

    assert seen.diary == ["one", "two from null", 'two from {"at": 7}', "three"]
    assert (seen.state, seen.job.attempt, seen.job.crashes) == (State.COMPLETED, 1, 1)
    assert seen.job.result == {"one": 1, "two": 2, "three": None}
    assert seen.job.metadata == {"mine": 1, "pgqueue": {"data": {"seen": [1]}}}


def test_a_job_whose_worker_is_killed_in_a_step_goes_on_from_what_was_marked(
    plays_inside: Plays, fresh_db: str
) -> None:
    """A step that was finished in memory only runs again; `checkpoint_every` would keep it."""
    plays = plays_inside
    id = plays.enqueue(
        [step("one"), cursor("two", commit(insert(4), mark_cursor(4)), die())], [step("one"), cursor("two")]
    )
    with subprocess.Popen([sys.executable, "-m", "tests.conformance.deeds", fresh_db], cwd=ROOT) as worker:
        assert worker.wait(PATIENCE) == -signal.SIGKILL
    plays.admin.execute("update pgqueue.worker set seen_at = seen_at - interval '1 hour'")
    seen = plays.work(id)

    assert seen.diary == ["one", "two from null", "one", "two from 4"]
    assert [type for type, _ in seen.errors] == ["WorkerLost"]
    assert (seen.state, seen.job.attempt, seen.checkpoint) == (State.COMPLETED, 1, None)
    assert plays.imported() == [4]
