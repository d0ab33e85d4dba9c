"""What River does not pin: marks in the caller's transaction, whatever becomes of that and of the attempt."""

from __future__ import annotations

import pytest

from pgqueue import State
from tests.conformance.deeds import Act
from tests.conformance.kit import (
    Json,
    Plays,
    catch,
    commit,
    complete,
    cursor,
    die,
    fail,
    insert,
    mark,
    mark_cursor,
    note,
    rollback,
    save,
    set_cursor,
    snooze,
    step,
    wait,
)
from tests.engine.kit import value

CALLS = pytest.mark.parametrize("call", [mark(), mark_cursor(2), complete("refused")], ids=lambda act: str(act.do))

# The transaction is rolled back, and then ... River takes the mark for made: the end of the attempt writes it.


def test_a_step_whose_mark_is_rolled_back_runs_again_after_an_error(plays: Plays) -> None:
    seen = plays.run(
        [step("one"), step("two", rollback(insert(1), mark()), fail())],
        [step("one"), step("two", commit(insert(1), mark())), step("three")],
    )

    assert seen.diary == ["one", "two", "two", "three"]
    assert (seen.state, plays.imported()) == (State.COMPLETED, [1])


def test_a_step_whose_mark_is_rolled_back_is_not_done_though_its_function_returns(plays: Plays) -> None:
    """The row alone decides (it says no); the attempt itself goes on."""
    seen = plays.run([step("one", rollback(insert(1), mark())), step("two"), fail()], [step("one"), step("two")])

    assert seen.diary == ["one", "two", "one"]
    assert (seen.state, plays.imported()) == (State.COMPLETED, [])


def test_a_cursor_whose_mark_is_rolled_back_stays_where_it_was(plays: Plays) -> None:
    seen = plays.run(
        [cursor("one", commit(insert(1), mark_cursor(1)), rollback(insert(2), mark_cursor(2)), fail())],
        [cursor("one", rollback(mark_cursor(3)))],
    )

    assert seen.diary == ["one from null", "one from 1"]
    assert (seen.state, seen.checkpoint, plays.imported()) == (State.COMPLETED, None, [1])


def test_a_cursor_step_that_used_marks_is_not_done_by_its_return(plays: Plays) -> None:
    """R6: after a `*_tx` call the row alone decides; the next attempt goes on from the last committed cursor."""
    seen = plays.run([cursor("one", commit(mark_cursor(1))), step("two"), fail()], [cursor("one"), step("two")])

    assert (seen.state, seen.diary) == (State.COMPLETED, ["one from null", "two", "one from 1"])


@pytest.mark.parametrize("end", [die(), fail(), snooze(0)], ids=["a crash", "an error", "a snooze"])
@CALLS
def test_a_mark_that_is_rolled_back_never_happened_whatever_comes_next(plays_apart: Plays, call: Act, end: Act) -> None:
    seen = plays_apart.run(
        [cursor("one", rollback(insert(1), call), end)], [cursor("one", commit(insert(1)), result="again")]
    )

    assert seen.diary == ["one from null", "one from null"]
    assert seen.job.result == {"one": "again"}
    assert (seen.state, plays_apart.imported()) == (State.COMPLETED, [1])


def test_a_job_whose_completion_is_rolled_back_has_failed_though_it_returned(plays: Plays) -> None:
    seen = plays.run(
        [step("one", result=1), rollback(insert(1), complete("never"))],
        [step("one"), commit(insert(1), complete("committed"))],
    )

    assert [message for _, message in seen.errors] == [
        "complete_tx was rolled back or never committed; commit before the task returns"
    ]
    assert (seen.state, seen.job.result) == (State.COMPLETED, "committed")
    assert (seen.diary, plays.imported()) == (["one"], [1])


# The transaction is committed, and then ...


@pytest.mark.parametrize("end", [fail(), snooze(0), die()], ids=["an error", "a snooze", "a crash"])
def test_a_step_that_fails_after_its_mark_was_committed_is_done(plays_apart: Plays, end: Act) -> None:
    """So set_step_tx is to be the last act of its step."""
    plays = plays_apart
    seen = plays.run([step("one", commit(insert(1), mark()), end)], [step("one", commit(insert(1))), step("two")])

    assert (seen.state, seen.diary, plays.imported()) == (State.COMPLETED, ["one", "two"], [1])


@pytest.mark.parametrize("end", [fail(), snooze(0), die()], ids=["an error", "a snooze", "a crash"])
def test_a_cursor_step_that_fails_after_a_mark_goes_on_from_it(plays_apart: Plays, end: Act) -> None:
    plays = plays_apart
    seen = plays.run(
        [cursor("one", commit(insert(1), mark_cursor(1)), commit(insert(2), mark_cursor(2)), end)],
        [cursor("one", commit(insert(3), mark_cursor(3), mark()))],
    )

    assert seen.diary == ["one from null", "one from 2"]
    assert (seen.state, seen.checkpoint, plays.imported()) == (State.COMPLETED, None, [1, 2, 3])


def test_a_marked_step_has_the_result_of_its_mark_in_this_attempt_and_later_ones(plays: Plays) -> None:
    """What the function returns isn't remembered, so it isn't used either."""
    acts = [step("one", commit(insert(1), mark({"n": 1})), result="returned"), step("two", commit(mark()), result=2)]
    first = plays.run(acts)
    assert first.job.result == {"one": {"n": 1}, "two": None}

    plays.admin.execute("truncate imported")
    second = plays.run([], [*acts, fail()], [step("one"), step("two")])
    assert (second.diary[2:], second.job.result) == (["one", "two"], first.job.result)


def test_a_cursor_step_may_be_marked_as_done(plays: Plays) -> None:
    """The mark of the step removes its cursor."""
    seen = plays.run([cursor("one", commit(mark_cursor(1)), commit(mark_cursor(2), mark())), step("two", fail())])

    assert seen.checkpoint == {"done": {"one": None}}


def test_a_savepoint_takes_its_mark_along(plays_inside: Plays) -> None:
    plays = plays_inside
    savepoint, back = Act("sql", "savepoint s"), Act("sql", "rollback to s")
    seen = plays.run([cursor("one", commit(mark_cursor(1), savepoint, mark_cursor(2), back), fail())])

    assert seen.checkpoint == {"cursor": {"one": 1}}


@pytest.mark.parametrize(
    ("acts", "said", "left"),
    [
        ([commit(mark_cursor(1)), set_cursor(2)], "set_cursor after set_step_cursor_tx", 1),
        ([set_cursor(2), commit(mark_cursor(1))], "set_step_cursor_tx after set_cursor", 2),
    ],
    ids=["the mark first", "the mark last"],
)
def test_a_step_sets_its_cursor_in_one_way_only(plays: Plays, acts: list[Act], said: str, left: int) -> None:
    seen = plays.run([cursor("one", *acts)])

    assert said in seen.error
    assert seen.checkpoint == {"cursor": {"one": left}}


# complete_tx


def test_a_job_that_is_completed_in_a_transaction_keeps_its_data_and_no_steps(plays: Plays) -> None:
    seen = plays.run(
        [step("one"), cursor("two", set_cursor(2)), save("n", 3), commit(insert(1), complete({"rows": 1}))],
        metadata={"mine": 1},
    )

    assert (seen.state, seen.job.result, seen.errors) == (State.COMPLETED, {"rows": 1}, [])
    assert seen.job.metadata == {"mine": 1, "pgqueue": {"data": {"n": 3}}}
    assert plays.imported() == [1]


@pytest.mark.parametrize("end", [note("returns"), fail(), snooze(3600), die()], ids=lambda act: str(act.do))
def test_nothing_that_comes_after_a_committed_completion_changes_it(plays_apart: Plays, end: Act) -> None:
    plays = plays_apart
    seen = plays.run([step("one", commit(insert(1), mark(), complete("done"))), step("two"), end], [note("never")])

    assert (seen.state, seen.job.result, seen.job.crashes) == (State.COMPLETED, "done", 0)
    assert (seen.errors, seen.checkpoint, plays.imported()) == ([], None, [1])
    assert "never" not in plays.diary
    assert value(plays.admin, "select count(*) from pgqueue.checkpoint") == 0


# Another attempt may run the job


@CALLS
def test_a_zombie_can_not_commit_what_it_did(plays: Plays, call: Act) -> None:
    """The error is the server's: who catches it has a transaction that can only be rolled back."""
    zombie = [cursor("one", commit(insert(1), mark_cursor(1)), wait("deaf"), commit(insert(2), catch(call)))]
    id = plays.enqueue([*zombie, note("the zombie ends")], [cursor("one", commit(insert(3), mark_cursor(3)))])
    with plays.waiting():
        plays.take_away()
        plays.q.wait(id)
        plays.open_gate()
        plays.heard("the zombie ends")
    seen = plays.see(id)

    assert seen.diary == ["one from null", "waiting", "one from 1", "caught LeaseLost", "the zombie ends"]
    assert (seen.state, seen.job.result, seen.checkpoint) == (State.COMPLETED, {"one": None}, None)
    assert plays.imported() == [1, 3]


def test_a_zombie_and_what_it_remembers_do_not_touch_the_attempt_that_runs(plays: Plays) -> None:
    """Its outcome comes while its heir is in the middle of its second step."""
    zombie = [step("one", result="zombie"), cursor("two", set_cursor("zombie"), wait("deaf")), note("the zombie ends")]
    hold = Act("hear", "the zombie ends")  # until this was written
    heir = [step("one", result="heir"), cursor("two", note("heir"), hold)]
    id = plays.enqueue(zombie, heir)
    with plays.waiting():
        plays.take_away()
        plays.heard("heir")
        plays.open_gate()
        plays.heard("the zombie ends")
        plays.q.wait(id)
    seen = plays.see(id)

    assert seen.diary[:5] == ["one", "two from null", "waiting", "one", "two from null"]
    assert seen.job.result == {"one": "heir", "two": None}
    assert (seen.state, seen.checkpoint) == (State.COMPLETED, None)


# Somebody else ends the job meanwhile


@pytest.mark.parametrize(("verb", "state"), [("cancel", State.CANCELLED), ("stop", State.STOPPED)])
def test_a_step_may_be_marked_as_done_though_the_job_is_asked_to_end(plays: Plays, verb: str, state: State) -> None:
    """It still holds its job, and what it has committed is kept; a cursor's mark is a place to end, with its work."""
    acts = [catch(commit(insert(1), mark_cursor(1))), commit(insert(2), mark())]
    id = plays.enqueue([cursor("one", wait("stubborn"), *acts), step("two")], [cursor("one"), step("two")])
    with plays.waiting():
        assert getattr(plays.q, verb)(id) == "requested"
        plays.q.wait(id)
    seen = plays.see(id)

    assert (seen.state, seen.diary) == (state, ["one from null", "waiting", "caught Cancel"])
    assert (seen.checkpoint, plays.imported()) == ({"done": {"one": None}}, [2])
    assert plays.retry(id).diary[3:] == ["two"]


@pytest.mark.parametrize("deleted", [False, True], ids=["cancelled", "deleted"])
@CALLS
def test_a_mark_for_a_job_that_was_ended_by_somebody_is_refused(plays_inside: Plays, call: Act, deleted: bool) -> None:
    """Its worker was presumed dead when the cancel was fulfilled."""
    plays = plays_inside
    acts = [cursor("one", commit(insert(1), mark_cursor(1)), wait("deaf"), commit(insert(2), catch(call)))]
    id = plays.enqueue([*acts, note("the end")])
    with plays.waiting():
        assert plays.q.cancel(id) == "requested"
        plays.take_away()
        assert plays.q.job(id).state is State.CANCELLED
        if deleted:
            assert plays.q.delete(id) == "deleted"
        plays.open_gate()
        plays.heard("the end")

    assert plays.diary == ["one from null", "waiting", "caught LeaseLost", "the end"]
    assert plays.imported() == [1]
    left: Json = None if deleted else {"cursor": {"one": 1}}
    assert plays.checkpoint(id) == left
    assert value(plays.admin, "select count(*) from pgqueue.checkpoint") == 0
