"""What River does not pin: code that changed between attempts, steps used as they can't be, and the limits."""

from __future__ import annotations

import asyncio

import pytest

from pgqueue import AsyncContext, PgQueue, Retry, State
from pgqueue.core.checkpoint import CURSOR_LIMIT, RESULT_LIMIT, TOTAL_LIMIT
from tests.conformance.deeds import Act
from tests.conformance.kit import (
    Json,
    Plays,
    catch,
    cursor,
    fail,
    meanwhile,
    note,
    save,
    set_cursor,
    step,
    wait,
)
from tests.engine.kit import errors_of, run_alone

# The code of the job changes between two attempts. River goes by the place of the last finished step.

BEFORE = [step("one", result=1), step("two", result=2), cursor("three", set_cursor(3), fail())]


@pytest.mark.parametrize(
    ("after", "ran"),
    [
        ([step("uno"), step("two"), cursor("three")], ["uno", "three from 3"]),
        ([step("one"), step("two"), cursor("drei")], ["drei from null"]),
        ([cursor("three")], ["three from 3"]),
        ([step("one")], []),
        ([step("zero"), step("one"), step("two"), cursor("three")], ["zero", "three from 3"]),
        ([step("one"), cursor("more"), step("two"), cursor("three")], ["more from null", "three from 3"]),
        ([step("one"), step("two"), cursor("three"), step("four")], ["three from 3", "four"]),
        ([cursor("three"), step("two"), step("one")], ["three from 3"]),
        ([step("two"), step("four"), cursor("three"), step("one")], ["four", "three from 3"]),
        ([step("one"), step("two"), step("three")], ["three"]),
        ([cursor("one"), step("two"), cursor("three")], ["three from 3"]),
        ([note("no steps any more")], ["no steps any more"]),
    ],
    ids=[
        "renamed", "renamed with its cursor", "removed", "removed with its cursor", "put first", "put between",
        "put last", "reordered", "reordered with a new one", "without its cursor now", "with a cursor now", "no steps",
    ],
)  # fmt: skip
def test_after_a_deploy_runs_what_has_not_run_wherever_it_stands(
    plays_inside: Plays, after: list[Act], ran: list[str]
) -> None:
    seen = plays_inside.run(BEFORE, after)

    assert seen.diary == ["one", "two", "three from null", *ran]
    assert (seen.state, seen.checkpoint) == (State.COMPLETED, None)


def test_what_the_code_has_no_more_is_kept_for_the_code_that_has_it(plays: Plays) -> None:
    """A deploy that is rolled back: nothing that was done is done again."""
    seen = plays.run(BEFORE, [step("four"), fail()], [step("one"), step("two"), cursor("three"), step("four")])

    assert seen.diary == ["one", "two", "three from null", "four", "three from 3"]
    assert seen.job.result == {"one": 1, "two": 2, "three": None, "four": None}


def test_a_step_that_has_no_cursor_any_more_removes_it_when_it_is_finished(plays_inside: Plays) -> None:
    seen = plays_inside.run(BEFORE, [step("three"), fail()])

    assert seen.checkpoint == {"done": {"one": 1, "two": 2, "three": None}}


def test_a_step_that_is_reached_by_one_attempt_only_is_remembered_by_all(plays: Plays) -> None:
    """A step under a condition; River would never find it again."""
    seen = plays.run([step("maybe", result=1), fail()], [step("always"), fail()], [step("maybe"), step("always")])

    assert (seen.state, seen.diary) == (State.COMPLETED, ["maybe", "always"])
    assert seen.job.result == {"maybe": 1, "always": None}


# Steps in steps, and beside each other


@pytest.mark.parametrize("inner", [step("inner"), cursor("inner")], ids=["step", "cursor"])
@pytest.mark.parametrize("outer", [step, cursor], ids=["in a step", "in a cursor step"])
def test_a_step_inside_a_step_fails_before_its_function_runs(plays: Plays, outer: object, inner: Act) -> None:
    acts = (set_cursor(5), inner) if outer is cursor else (inner,)
    seen = plays.run([step("one"), cursor("outer", *acts) if outer is cursor else step("outer", *acts)])

    assert "step 'inner' inside step 'outer'" in seen.error
    assert seen.diary == ["one", "outer from null" if outer is cursor else "outer"]
    left = {"done": {"one": None}}
    assert seen.checkpoint == (left | {"cursor": {"outer": 5}} if outer is cursor else left)


def test_a_step_inside_a_step_is_refused_even_if_it_was_finished(plays_inside: Plays) -> None:
    seen = plays_inside.run([step("one"), step("two", step("one"))])

    assert "step 'one' inside step 'two'" in seen.error
    assert seen.checkpoint == {"done": {"one": None}}


def test_a_job_may_catch_what_a_step_raises_and_go_on(plays: Plays) -> None:
    """River's job fails all the same at its end. Here a step is a call: who catches its error decides."""
    acts = [catch(step("one", fail())), catch(step("two", step("three"))), step("three"), note("after")]
    seen = plays.run([*acts, fail()], [step("one"), step("two"), step("three")])

    first = ["one", "caught OSError", "two", "caught StepError", "three", "after"]
    assert seen.diary == [*first, "one", "two"]
    assert seen.state is State.COMPLETED


def test_steps_at_the_same_time_are_refused_and_the_first_goes_on(plays: Plays) -> None:
    """In two threads, or two asyncio tasks."""
    seen = plays.run(
        [
            meanwhile(step("one", wait("deaf"), result=1), catch(step("two")), catch(cursor("three"))),
            step("two"),
            fail(),
        ],
        [step("one"), step("two"), step("three")],
    )

    assert seen.diary == ["one", "waiting", "caught StepError", "caught StepError", "two", "three"]
    assert (seen.state, seen.job.result) == (State.COMPLETED, {"one": 1, "two": None, "three": None})


def test_gathered_steps_fail_the_attempt_and_the_one_that_ran_is_not_taken_for_done(q: PgQueue) -> None:
    ran: list[str] = []

    @q.task(retry=Retry(max_attempts=1))
    async def job(ctx: AsyncContext) -> None:
        async def work(name: str) -> str:
            ran.append(name)
            await asyncio.sleep(0)
            return name

        await asyncio.gather(ctx.step("one", work, "one"), ctx.step("two", work, "two"))

    ended = run_alone(q, job.enqueue().id)
    assert ran == ["one"]
    assert ended.state is State.DISCARDED
    assert "step 'two' inside step 'one': steps can neither be nested nor run at the same time" in str(
        errors_of(ended)[0][1]
    )


# Limits


FULL = "x" * (CURSOR_LIMIT - 2)  # with its quotes


def test_a_cursor_may_have_64_kib_and_not_a_byte_more(plays: Plays) -> None:
    """The error leaves the cursor before it in place."""
    seen = plays.run([cursor("one", set_cursor(FULL), set_cursor(FULL + "y"))])

    assert f"step 'one': its cursor: {CURSOR_LIMIT + 1} bytes of JSON, the limit is {CURSOR_LIMIT}" in seen.error
    assert seen.checkpoint == {"cursor": {"one": FULL}}


def test_a_result_may_have_256_kib_and_not_a_byte_more(plays: Plays) -> None:
    """The step whose result is too long has run, and runs again: it isn't done."""
    full = "é" * (RESULT_LIMIT // 2 - 1)  # two bytes each
    seen = plays.run([step("one", result=full), step("two", result=full + "x")])

    assert f"step 'two': its result: {RESULT_LIMIT + 1} bytes of JSON, the limit is {RESULT_LIMIT}" in seen.error
    assert seen.checkpoint == {"done": {"one": full}}


@pytest.mark.parametrize("last", [step("last", result="y" * 9000), save("last", "y" * 9000)], ids=["step", "save"])
def test_all_together_may_have_a_mebibyte(plays_inside: Plays, last: Act) -> None:
    id = plays_inside.enqueue([step("first", result=1), last])
    stored: Json = {"done": {f"step {n}": "x" * 260_000 for n in range(4)}}
    plays_inside.store(id, stored)
    seen = plays_inside.work(id)

    assert f"the limit is {TOTAL_LIMIT}" in seen.error
    assert seen.checkpoint == {"done": stored["done"] | {"first": 1}}
