"""The behaviours of cursor steps that River pins, by their numbers; where ours differs the docstring says how."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from pgqueue import Context, PgQueue, Retry, State
from tests.conformance.deeds import Scene
from tests.conformance.kit import Executor, Plays, cursor, fail, note, set_cursor, step, wait
from tests.engine.kit import run_alone


def test_a_cursor_is_kept_with_the_steps_before_it_when_its_step_fails(plays: Plays) -> None:
    """8: at first the cursor is None, where River gives the zero value of its type."""
    seen = plays.run([step("one"), cursor("two", set_cursor({"id": 41}), set_cursor({"id": 42}), fail())])

    assert seen.diary == ["one", "two from null"]
    assert seen.checkpoint == {"done": {"one": None}, "cursor": {"two": {"id": 42}}}


def test_a_retry_gives_the_step_its_cursor_and_success_leaves_nothing(plays: Plays) -> None:
    """9: stricter: River's success leaves the cursor in the row."""
    again = [step("one"), cursor("two", result=2), step("three")]
    seen = plays.run([step("one"), cursor("two", set_cursor({"id": 42}), fail())], again)

    assert seen.diary == ["one", "two from null", 'two from {"id": 42}', "three"]
    assert seen.job.result == {"one": None, "two": 2, "three": None}
    assert (seen.state, seen.checkpoint) == (State.COMPLETED, None)


def test_the_cursor_of_a_finished_step_is_removed(plays: Plays) -> None:
    """10: it is gone, where River writes a null."""
    seen = plays.run(
        [step("one"), cursor("two", set_cursor({"id": 42}), fail())],
        [step("one"), cursor("two", set_cursor({"id": 43})), step("three", fail("no three"))],
    )

    assert seen.diary == ["one", "two from null", 'two from {"id": 42}', "three"]
    assert seen.error == "no three"
    assert seen.checkpoint == {"done": {"one": None, "two": None}}


def test_a_cursor_outside_of_a_step_is_an_error(plays: Plays) -> None:
    """11: stricter: in a step without a cursor it is one too, where River stores what nothing ever removes."""
    outside = plays.run([step("one"), set_cursor(1), step("two")])
    assert "set_cursor outside a step" in outside.error
    assert outside.diary == ["one"]
    assert outside.checkpoint == {"done": {"one": None}}

    inside = plays.run([step("plain", set_cursor(1))])
    assert "set_cursor in step 'plain', which has no cursor" in inside.error
    assert inside.checkpoint is None


@dataclass
class Place:
    """A cursor with a type."""

    id: int
    tags: list[str]


def test_cursors_of_different_types_may_follow_each_other(q: PgQueue, admin: psycopg.Connection) -> None:
    """12: only the second one is stored, since the first step was finished."""
    seen: list[object] = []
    stored: list[object] = []

    @q.task(retry=Retry(max_attempts=2, cap=0))
    def job(ctx: Context) -> None:
        def first(cursor: int | None) -> str:
            seen.append(cursor)
            ctx.set_cursor(7)
            return "first is done"

        def second(cursor: Place | None) -> None:
            seen.append(cursor)
            if cursor is None:
                ctx.set_cursor(Place(8, ["a"]))
                raise OSError
            row = admin.execute("select metadata -> 'pgqueue' from pgqueue.jobs where id = %s", [ctx.job.id]).fetchone()
            stored.append(row)

        seen.append(ctx.step_cursor("first", first, type=int))
        ctx.step_cursor("second", second, type=Place)

    assert run_alone(q, job.enqueue().id).state is State.COMPLETED
    assert seen == [None, "first is done", None, "first is done", Place(8, ["a"])]
    assert stored == [({"done": {"first": "first is done"}, "cursor": {"second": {"id": 8, "tags": ["a"]}}},)]


def test_several_steps_may_have_a_cursor_left(plays_inside: Plays) -> None:
    """13: different: the saved step needs no rule of its own; a step that isn't done runs, with the cursor it has."""
    id = plays_inside.enqueue([cursor("one"), cursor("two")])
    plays_inside.store(id, {"cursor": {"one": 123, "two": "abc"}})
    seen = plays_inside.work(id)

    assert seen.diary == ["one from 123", 'two from "abc"']
    assert (seen.state, seen.checkpoint) == (State.COMPLETED, None)


def test_an_import_that_fails_at_an_item_goes_on_with_the_next_one(plays: Plays, admin: psycopg.Connection) -> None:
    """20: end to end. Stricter: the completed row keeps neither step nor cursor."""
    id = plays.enqueue(
        [step("one"), cursor("two", note("item 1"), set_cursor(1), fail("after item 1"))],
        [step("one"), cursor("two", wait("deaf"), note("item 2"), set_cursor(2))],
        metadata={"mine": True},
    )
    with plays.waiting():
        between = plays.see(id)
        plays.open_gate()
        plays.q.wait(id)
    after = plays.see(id)

    assert between.checkpoint == {"done": {"one": None}, "cursor": {"two": 1}}
    assert (between.state, between.errors) == (State.RUNNING, [("OSError", "after item 1")])
    assert after.diary == ["one", "two from null", "item 1", "two from 1", "waiting", "item 2"]
    assert (after.state, after.job.attempt, after.errors) == (State.COMPLETED, 2, between.errors)
    assert after.job.metadata == {"mine": True}
    attempts = admin.execute(
        "select attempt, state, error from pgqueue.job_attempts where job_id = %s order by 1", [id]
    )
    assert attempts.fetchall() == [(1, "retryable", "after item 1"), (2, "completed", None)]


def test_a_cursor_that_the_row_has_is_where_its_step_goes_on(plays: Plays) -> None:
    """23: the steps that are recorded as done are not run, whichever they are."""
    id = plays.enqueue([step("one"), cursor("two", set_cursor({"id": 10}), fail()), step("three")])
    plays.store(id, {"done": {"one": 5, "three": 6}, "cursor": {"two": {"id": 9}}})
    seen = plays.work(id)

    assert seen.diary == ['two from {"id": 9}']
    assert seen.checkpoint == {"done": {"one": 5, "three": 6}, "cursor": {"two": {"id": 10}}}


def test_a_job_whose_first_step_has_a_cursor_goes_on_there(plays: Plays) -> None:
    """25: River saves no such cursor by itself, and does it only for one that was set beforehand."""
    id = plays.enqueue([cursor("first"), step("second")])
    plays.store(id, {"cursor": {"first": [3, "c"]}})

    assert plays.work(id).diary == ['first from [3, "c"]', "second"]


def test_what_the_application_has_in_metadata_outlives_steps_and_cursors(plays_inside: Plays) -> None:
    """26: success removes `done` and `cursor` of the key `pgqueue`, and no key of the same name elsewhere."""
    mine = {"cursor": {"one": 1}, "done": {"one": 2}, "mine": [None]}
    id = plays_inside.enqueue([cursor("one"), cursor("two", set_cursor(1))], metadata=mine)
    plays_inside.store(id, {"cursor": {"one": 5}, "data": {"total": 7}})
    seen = plays_inside.work(id)

    assert seen.diary == ["one from 5", "two from null"]
    assert seen.job.metadata == mine | {"pgqueue": {"data": {"total": 7}}}


def test_a_job_may_move_between_executors(q: PgQueue, admin: psycopg.Connection, scene: Scene) -> None:
    """27: where River moves it between languages. Stricter: a cursor that is used up is gone, not null."""
    executors: tuple[Executor, ...] = ("thread", "async", "process")
    first, second, third = (Plays(PgQueue(scene.dsn), admin, scene, executor) for executor in executors)
    id = first.enqueue(
        [step("one", result=1), cursor("two", set_cursor(1), fail())],
        [step("one"), cursor("two", set_cursor(2), fail())],
        [step("one"), cursor("two"), step("three", fail())],
        [step("one"), cursor("two"), step("three")],
        max_attempts=1,
        metadata={"mine": 1},
    )
    one, two = {"done": {"one": 1}}, {"done": {"one": 1, "two": None}}
    assert first.work(id).checkpoint == one | {"cursor": {"two": 1}}
    assert second.retry(id).checkpoint == one | {"cursor": {"two": 2}}
    assert third.retry(id).checkpoint == two
    seen = first.retry(id)
    for each in (first, second, third):
        each.q.close()

    assert seen.diary == ["one", "two from null", "two from 1", "two from 2", "three", "three"]
    assert (seen.state, seen.job.metadata) == (State.COMPLETED, {"mine": 1})
