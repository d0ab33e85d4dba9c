"""The behaviours of plain steps that River pins, by their numbers; where ours differs the docstring says how."""

from __future__ import annotations

import asyncio
import threading

import psycopg
import pytest

from pgqueue import Context, PgQueue, State, current_context
from pgqueue.errors import InvalidJob, PgqueueError
from tests.conformance.kit import Json, Plays, cursor, fail, note, step, wait
from tests.engine.kit import value, working


def test_a_name_that_is_used_twice_fails_before_the_second_function_runs(plays: Plays) -> None:
    """1: the error names the step."""
    seen = plays.run([step("one", result=1), step("one", result=2)])

    assert seen.state is State.DISCARDED
    assert "step 'one': there was a step of that name in this attempt already" in seen.error
    assert seen.diary == ["one"]
    assert seen.checkpoint == {"done": {"one": 1}}


def test_a_name_that_is_used_twice_is_an_error_even_if_the_step_was_finished_before(plays_inside: Plays) -> None:
    """2: nothing runs."""
    id = plays_inside.enqueue([step("one"), step("one")])
    plays_inside.store(id, {"done": {"one": 1}})
    seen = plays_inside.work(id)

    assert "step 'one': there was a step of that name in this attempt already" in seen.error
    assert seen.diary == []
    assert seen.checkpoint == {"done": {"one": 1}}


def a_step() -> None:
    context = current_context()
    assert isinstance(context, Context)
    context.step("one", lambda: None)


@pytest.mark.parametrize("where", ["a function", "a coroutine", "a thread of the task's own"])
def test_a_step_outside_of_a_task_is_an_error(q: PgQueue, where: str) -> None:
    """3: `current_context()` raises it; River panics."""
    caught: list[BaseException] = []

    def attempt() -> None:
        try:
            a_step()
        except PgqueueError as error:
            caught.append(error)

    async def in_coroutine() -> None:
        attempt()

    @q.task
    def job() -> None:
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()

    match where:
        case "a function":
            attempt()
        case "a coroutine":
            asyncio.run(in_coroutine())
        case _:
            with working(q):
                assert q.wait(job.enqueue().id).state is State.COMPLETED
    assert [str(error) for error in caught] == [
        "there is no context here: current_context() works only inside a running task"
    ]


def test_a_failing_step_ends_the_attempt_and_those_before_it_stay_finished(plays: Plays) -> None:
    """4: stricter in that the code between the steps does not run on; a step that fails raises."""
    seen = plays.run([step("one"), step("two", fail("no two")), note("between"), step("three")])

    assert seen.state is State.DISCARDED
    assert seen.errors == [("OSError", "no two")]
    assert seen.diary == ["one", "two"]
    assert seen.checkpoint == {"done": {"one": None}}


def test_a_retry_runs_what_was_not_finished_and_success_leaves_nothing(plays: Plays) -> None:
    """5: stricter: River's success writes nothing, so that what the failure wrote stays; ours removes it."""
    seen = plays.run(
        [step("one", result={"n": 1}), step("two", fail())],
        [step("one"), step("two"), step("three", result="last")],
    )

    assert (seen.state, seen.job.attempt) == (State.COMPLETED, 2)
    assert seen.diary == ["one", "two", "two", "three"]
    assert seen.job.result == {"one": {"n": 1}, "two": None, "three": "last"}
    assert seen.checkpoint is None


def test_a_job_that_is_cancelled_in_a_step_which_returns_all_the_same_enters_no_further_step(plays: Plays) -> None:
    """6: stricter: River enters the next step's function, which has to look; here `step` itself raises."""
    id = plays.enqueue([step("one", wait("stubborn"), result=1), step("two"), step("three")])
    with plays.waiting():
        assert plays.q.cancel(id) == "requested"
        assert plays.q.wait(id).state is State.CANCELLED
    seen = plays.see(id)

    assert seen.diary == ["one", "waiting"]
    assert seen.checkpoint == {"done": {"one": 1}}


@pytest.mark.parametrize("first", [step, cursor])
def test_steps_with_and_without_a_cursor_share_their_names(plays_inside: Plays, first: type[object]) -> None:
    """7: the second function does not run."""
    acts = [step("one"), cursor("one")]
    seen = plays_inside.run(acts if first is step else acts[::-1])

    assert "step 'one': there was a step of that name in this attempt already" in seen.error
    assert seen.diary == ["one" if first is step else "one from null"]
    assert seen.checkpoint == {"done": {"one": None}}


# A job in the state that an earlier attempt left. River's users make it with rivertest, ours with SQL.


def test_a_step_that_the_row_says_is_done_is_not_run(plays: Plays) -> None:
    """21: River says which step was the last; here it is said of each, with its result."""
    id = plays.enqueue([step("one"), step("two"), step("three")])
    plays.store(id, {"done": {"one": [1], "two": None}})
    seen = plays.work(id)

    assert seen.diary == ["three"]
    assert seen.job.result == {"one": [1], "two": None, "three": None}


def test_what_the_application_has_in_metadata_stays_beside_the_steps(plays_inside: Plays) -> None:
    """22: also when the attempt adds to what the row says."""
    mine = {"mine": {"done": {"one": 2}}, "done": 3}
    id = plays_inside.enqueue([step("one"), step("two"), fail()], metadata=mine)
    plays_inside.store(id, {"done": {"one": 1}})
    seen = plays_inside.work(id)

    assert seen.diary == ["two"]
    assert seen.job.metadata == mine | {"pgqueue": {"done": {"one": 1, "two": None}}}


def test_the_api_refuses_to_set_what_a_job_has_done(plays_inside: Plays, admin: psycopg.Connection) -> None:
    """24: different: River's test worker may; here the key `pgqueue` is refused by Python and by SQL."""
    metadata = {"pgqueue": {"done": {"one": 1}}}
    with pytest.raises(InvalidJob, match="the key 'pgqueue' is reserved for checkpoints"):
        plays_inside.enqueue([step("one")], metadata=metadata)
    with pytest.raises(psycopg.Error, match="pgqueue"):
        admin.execute("""select pgqueue.enqueue('play', metadata => '{"pgqueue": {"done": {"one": 1}}}')""")

    assert value(admin, "select count(*) from pgqueue.job") == 0


def test_a_name_that_is_used_twice_is_an_error_even_if_a_later_step_was_finished(plays_inside: Plays) -> None:
    """28: stricter: River skips all up to the later step; here the first runs, because it is not recorded as done."""
    id = plays_inside.enqueue([step("one"), step("one"), step("three")])
    plays_inside.store(id, {"done": {"three": 3}})
    seen = plays_inside.work(id)

    assert "step 'one': there was a step of that name in this attempt already" in seen.error
    assert seen.diary == ["one"]
    assert seen.checkpoint == {"done": {"one": None, "three": 3}}


@pytest.mark.parametrize("stored", [{}, {"done": {}}, {"done": {}, "cursor": {}, "data": {}}, {"another": "key"}])
def test_an_empty_record_is_none(plays_inside: Plays, stored: Json) -> None:
    """29: a saved step with an empty name can't be: such a name is refused."""
    id = plays_inside.enqueue([step("one"), cursor("two")])
    plays_inside.store(id, stored)

    assert plays_inside.work(id).diary == ["one", "two from null"]
    assert "step '': a step needs a name" in plays_inside.run([step("")]).error


@pytest.mark.parametrize(
    "stored", [{"cursor": [1]}, {"done": {"one": 1}, "data": None}, "x"], ids=["a part", "another part", "all"]
)
def test_a_damaged_record_fails_before_any_step_runs_and_stays_as_it_is(plays: Plays, stored: Json) -> None:
    """30: different: the code before the first step runs, as a task need not have one; the error says what to do."""
    id = plays.enqueue([note("before"), step("one"), step("two")], metadata={"mine": 1})
    plays.store(id, stored)
    seen = plays.work(id)

    assert seen.state is State.DISCARDED
    assert f"job {id} (play): its checkpoint can't be read" in seen.error
    assert "retry(restart=True)" in seen.error
    assert seen.diary == ["before"]
    assert seen.job.metadata == {"mine": 1, "pgqueue": stored}
    anew = plays.retry(id, restart=True)
    assert (anew.state, anew.diary) == (State.COMPLETED, ["before", "before", "one", "two"])
