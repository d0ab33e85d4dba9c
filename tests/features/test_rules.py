"""What is refused leaves no trace; what comes too late is told so."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import pytest

from pgqueue import Context
from pgqueue.core.checkpoint import CURSOR_LIMIT, TOTAL_LIMIT
from pgqueue.errors import InvalidConnection, StepError
from pgqueue.features.memory import Memory, RemoteMemory, noted
from pgqueue.store.statement import Statement
from tests.features.kit import Job


def test_a_mark_on_something_that_is_no_connection_leaves_the_step_as_it_was() -> None:
    job = Job()
    ctx = job.context()

    def work() -> int:
        with pytest.raises(InvalidConnection):
            ctx.set_step_tx(object())
        return 7

    assert ctx.step("s", work) == 7
    with pytest.raises(InvalidConnection):
        ctx.complete_tx(object())
    assert job.leftover is not None
    assert not job.leftover.completing
    assert job.end() == {"done": {"s": 7}}


LATE: dict[str, Callable[[Context], object]] = {
    "step": lambda ctx: ctx.step("s", lambda: None),
    "step_cursor": lambda ctx: ctx.step_cursor("s", lambda cursor: None),
    "save": lambda ctx: ctx.save(a=1),
    "progress": lambda ctx: ctx.progress("half"),
}


@pytest.mark.parametrize("call", LATE)
def test_after_its_end_an_attempt_remembers_nothing_and_says_so(call: str) -> None:
    job = Job()
    ctx = job.context()
    ctx.save(before=1)
    memory = job.leftover
    job.end()
    job.leftover = memory  # the function's thread goes on
    with pytest.raises(StepError, match="the attempt that this context belongs to has ended"):
        LATE[call](ctx)


@pytest.mark.parametrize("call", LATE)
def test_nothing_is_added_to_a_job_that_may_be_completed(call: str) -> None:
    job = Job()
    ctx = job.context()
    ctx.save(before=1)
    assert isinstance(job.leftover, Memory)
    job.leftover.completion(None)
    with pytest.raises(StepError, match="after complete_tx"):
        LATE[call](ctx)
    assert job.leftover.completion({"again": "after a rollback"}).params["result"] == '{"again":"after a rollback"}'


CURSOR_CALLS: dict[str, Callable[[Memory], object]] = {
    "set_cursor": lambda memory: memory.set_cursor(1),
    "set_step_cursor_tx": lambda memory: memory.mark_cursor(1),
}


@pytest.mark.parametrize("verb", CURSOR_CALLS)
def test_a_cursor_that_is_set_elsewhere_is_told_where_it_belongs(verb: str) -> None:
    memory = Memory("job 1 (k)", Nowhere(), None)
    belongs = "call it inside the function of a step_cursor$"
    with pytest.raises(StepError, match=f"^{verb} outside a step: {belongs}"):
        CURSOR_CALLS[verb](memory)
    memory.enter("plain", object, has_cursor=False)
    with pytest.raises(StepError, match=f"^{verb} in step 'plain', which has no cursor: {belongs}"):
        CURSOR_CALLS[verb](memory)
    memory.leave("plain", None)
    assert memory.close() is None


def test_run_steps_asks_for_names_before_it_runs_anything() -> None:
    ran = []

    def first() -> None:
        ran.append(1)

    wrong: list[list[Callable[[], object]]] = [[first, partial(first)], [first, first], [first, lambda: None]]
    for steps in wrong:
        with pytest.raises(StepError, match=r"run_steps: .* each function needs a name of its own"):
            Job().context().run_steps(steps)
    assert ran == []


def test_what_was_saved_is_not_changed_by_accident() -> None:
    ctx = Job().context()
    ctx.save(a=1)
    with pytest.raises(TypeError):
        ctx.data["a"] = 2  # type: ignore[index]
    assert ctx.data == {"a": 1}


def test_marks_count_towards_the_limit_so_that_the_next_attempt_can_go_on() -> None:
    job = Job()
    ctx = job.context()
    ctx.save(a=1)
    assert isinstance(job.leftover, Memory)
    memory, count = job.leftover, 0

    def mark_more() -> None:
        nonlocal count
        while True:
            memory.enter(f"step {count}", object, has_cursor=True)
            memory.mark_cursor("x" * (CURSOR_LIMIT - 2))
            memory.leave(f"step {count}", None)
            count += 1

    with pytest.raises(StepError, match=f"the limit is {TOTAL_LIMIT}"):
        mark_more()
    assert count == TOTAL_LIMIT // CURSOR_LIMIT - 1


def test_a_checkpoint_that_is_over_its_limit_stops_a_step_before_its_function_runs() -> None:
    job = Job()
    job.stored = {"done": {"numbers": [int(1e308)] * 5000}}  # as PostgreSQL writes 1e308
    with pytest.raises(StepError, match="before it the checkpoint would have"):
        job.context().step("s", lambda: pytest.fail("it ran"))


def test_a_worker_knows_of_a_mark_that_an_attempt_in_another_process_sends() -> None:
    notes: list[str] = []
    job = Job()
    memory = Memory("job 1 (k)", Nowhere(), None, notes.append)
    memory.enter("s", object, has_cursor=True)
    memory.mark_cursor(1)
    for note in notes:
        noted(job, note.encode())
    assert isinstance(job.leftover, RemoteMemory)
    assert job.leftover.patch() is None, "there is nothing to merge, but rows to fold"
    assert json.loads(notes[0]) == {}


class Nowhere:
    """Marks that are made for nobody."""

    def mark(self, part: str, name: str, text: str) -> Statement[None]:
        return Statement("select", {}, lambda rows: None)

    def complete(self, result: str | None, patch: str | None) -> Statement[None]:
        return self.mark("done", "", "null")
