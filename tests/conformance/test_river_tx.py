"""The behaviours of marks in the caller's transaction that River pins, by their numbers; and that no number is missing.

Where ours differs the docstring says how.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import psycopg
import pytest

from pgqueue import PgQueue, State, current_context
from pgqueue.errors import PgqueueError
from tests.conformance.deeds import Act
from tests.conformance.kit import (
    Plays,
    catch,
    commit,
    complete,
    cursor,
    insert,
    mark,
    mark_cursor,
    note,
    step,
    wait,
)
from tests.engine.kit import value


def test_a_step_that_is_marked_is_done_while_its_job_runs(plays: Plays) -> None:
    """14: different: the mark is a row beside the job's; the view shows both as one."""
    id = plays.enqueue([step("one", commit(insert(1), mark()), wait("deaf"))])
    with plays.waiting():
        seen = plays.see(id)
        metadata = value(plays.admin, "select metadata from pgqueue.job")
        plays.open_gate()
        ended = plays.q.wait(id)

    assert (seen.state, seen.checkpoint) == (State.RUNNING, {"done": {"one": None}})
    assert metadata == {}, "the row of a running job isn't written"
    assert plays.imported() == [1]
    assert (ended.state, ended.metadata) == (State.COMPLETED, {})
    assert value(plays.admin, "select count(*) from pgqueue.checkpoint") == 0


def test_a_marked_cursor_is_in_the_row_only(plays: Plays) -> None:
    """15: different: River mirrors it in what the attempt's end will write; here the row alone decides."""
    id = plays.enqueue([step("one"), cursor("two", commit(insert(1), mark_cursor({"id": 7})), wait("deaf"))])
    with plays.waiting():
        seen = plays.see(id)
        plays.admin.execute("delete from pgqueue.checkpoint")
        plays.q.cancel(id)
        plays.open_gate()
        ended = plays.q.wait(id)

    assert seen.checkpoint == {"cursor": {"two": {"id": 7}}}
    assert plays.imported() == [1]
    # What the test took out of the table is nowhere else; and the step, which used a mark, is done only by a mark.
    assert plays.checkpoint(id) == ({"done": {"one": None}} if ended.state is State.CANCELLED else None)


@pytest.mark.parametrize("call", [mark(), mark_cursor(1)], ids=["set_step_tx", "set_step_cursor_tx"])
def test_a_mark_for_a_job_that_does_not_run_any_more_is_refused(plays: Plays, call: Act) -> None:
    """16: after a complete_tx; a job that somebody else has ended is LeaseLost (18)."""
    seen = plays.run([cursor("one", commit(complete("in time")), catch(commit(insert(1), call)))])

    assert seen.diary in (["one from null", "caught LeaseLost"], ["one from null", "caught StepError"])
    assert (seen.state, seen.job.result, seen.errors) == (State.COMPLETED, "in time", [])
    assert plays.imported() == []


@pytest.mark.parametrize("call", [mark(), mark_cursor(1)], ids=["set_step_tx", "set_step_cursor_tx"])
def test_a_mark_outside_of_a_step_is_refused_and_the_transaction_goes_on(plays: Plays, call: Act) -> None:
    """17: nothing was sent, so that the transaction can still commit."""
    seen = plays.run([step("one"), commit(insert(1), catch(call)), step("two")])

    assert (seen.state, seen.diary) == (State.COMPLETED, ["one", "caught StepError", "two"])
    assert plays.imported() == [1]


@pytest.mark.parametrize("call", [mark(), mark_cursor(1), complete()], ids=lambda act: str(act.do))
def test_a_mark_for_a_job_that_is_gone_is_refused_and_the_transaction_can_not_commit(plays: Plays, call: Act) -> None:
    """18: different: LeaseLost, as for every job that isn't the attempt's any more, where River says not found."""
    id = plays.enqueue([cursor("one", wait("deaf"), commit(insert(1), catch(call))), note("the end")])
    with plays.waiting():
        plays.admin.execute("delete from pgqueue.job where id = %s", [id])
        plays.open_gate()
        plays.heard("the end")

    assert plays.diary == ["one from null", "waiting", "caught LeaseLost", "the end"]
    assert plays.imported() == []
    assert value(plays.admin, "select count(*) from pgqueue.checkpoint") == 0


def test_a_task_that_is_called_as_a_function_has_no_context_to_mark_anything(
    q: PgQueue, admin: psycopg.Connection, fresh_db: str
) -> None:
    """19: River's test worker panics with advice if the job was not inserted; ours needs none to call a function."""

    @q.task
    def job(n: int) -> None:
        with psycopg.connect(fresh_db) as conn:
            conn.execute("insert into imported values (%s)", [n])
            with pytest.raises(PgqueueError, match="works only inside a running task"):
                current_context()
            conn.commit()

    job(1)
    assert value(admin, "select array_agg(n) from imported") == [1]


def docstrings(path: Path) -> list[str]:
    found = ast.parse(path.read_text()).body
    return [ast.get_docstring(node) or "" for node in found if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_none_of_the_thirty_behaviours_is_missing_or_twice() -> None:
    files = Path(__file__).parent.glob("test_river_*.py")
    numbers = [re.match(r"(\d+): ", text) for path in files for text in docstrings(path)]
    assert sorted(int(number[1]) for number in numbers if number) == list(range(1, 31))
