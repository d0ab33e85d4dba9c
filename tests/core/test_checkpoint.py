"""The rules of steps, one by one; then attempts of a program that changes, against a model of what is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgqueue.core.checkpoint import CURSOR_LIMIT, NULL, RESULT_LIMIT, TOTAL_LIMIT, Checkpoint
from pgqueue.errors import StepError

EMPTY: dict[str, Any] = {"done": {}, "cursor": {}, "data": {}}


def patch_of(checkpoint: Checkpoint) -> dict[str, Any]:
    patch: dict[str, Any] = json.loads(checkpoint.patch())
    return patch


def finish(checkpoint: Checkpoint, name: str, result: str = NULL) -> None:
    assert checkpoint.enter(name)
    checkpoint.leave(result)


def text(size: int, letter: str = "x") -> str:
    """A JSON text of `size` bytes."""
    return '"' + letter * ((size - 2) // len(letter.encode())) + '"'


# --- what runs -------------------------------------------------------------------------------------------------------


def test_a_step_that_is_recorded_as_done_does_not_run_and_its_result_is_there() -> None:
    checkpoint = Checkpoint({"download": "7"})
    assert not checkpoint.enter("download")
    assert checkpoint.done["download"] == "7"
    assert checkpoint.current is None
    assert patch_of(checkpoint) == EMPTY


def test_a_step_that_is_not_recorded_runs_and_its_result_is_recorded() -> None:
    checkpoint = Checkpoint()
    assert checkpoint.enter("download")
    assert checkpoint.current == "download"
    checkpoint.leave("7")
    assert checkpoint.current is None
    assert checkpoint.done == {"download": "7"}
    assert patch_of(checkpoint) == EMPTY | {"done": {"download": 7}}


def test_a_step_that_returned_nothing_is_done() -> None:
    checkpoint = Checkpoint()
    finish(checkpoint, "send", NULL)
    again = Checkpoint({name: json.dumps(result) for name, result in patch_of(checkpoint)["done"].items()})
    assert not again.enter("send")


def test_a_step_that_failed_is_not_done_and_what_was_done_before_stays() -> None:
    checkpoint = Checkpoint()
    finish(checkpoint, "one")
    checkpoint.enter("two")
    checkpoint.leave(None)
    assert checkpoint.current is None
    assert patch_of(checkpoint) == EMPTY | {"done": {"one": None}}


def test_a_new_step_runs_wherever_it_stands_and_order_and_steps_that_are_gone_mean_nothing() -> None:
    checkpoint = Checkpoint({"one": NULL, "gone": "1", "two": NULL})
    names = ["new first", "two", "new between", "one", "new last"]
    ran = []
    for name in names:
        if checkpoint.enter(name):
            ran.append(name)
            checkpoint.leave(NULL)
    assert ran == ["new first", "new between", "new last"]
    assert checkpoint.done["gone"] == "1"


def test_an_attempt_that_only_skips_has_nothing_to_store() -> None:
    checkpoint = Checkpoint({"one": NULL}, {"two": "5"}, {"seen": "1"})
    assert not checkpoint.enter("one")
    assert checkpoint.enter("two", has_cursor=True)
    checkpoint.leave(None)
    assert not checkpoint.is_changed
    assert patch_of(checkpoint) == EMPTY


@pytest.mark.parametrize("change", ["done", "cursor", "data"])
def test_whatever_is_new_is_to_be_stored(change: str) -> None:
    checkpoint = Checkpoint()
    if change == "data":
        checkpoint.save({"key": "1"})
    else:
        checkpoint.enter("key", has_cursor=True)
        checkpoint.set_cursor("1") if change == "cursor" else checkpoint.leave("1")
    assert checkpoint.is_changed
    assert patch_of(checkpoint) == EMPTY | {change: {"key": 1}}


def test_leaving_without_a_step_does_nothing() -> None:
    checkpoint = Checkpoint({"one": NULL})
    checkpoint.enter("one")
    checkpoint.leave("5")
    assert checkpoint.done == {"one": NULL}
    assert not checkpoint.is_changed


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [{}, {"one": NULL}])
@pytest.mark.parametrize("has_cursor", [False, True])
def test_a_name_is_used_once_in_an_attempt_whether_it_ran_or_was_skipped(
    done: dict[str, str], has_cursor: bool
) -> None:
    checkpoint = Checkpoint(dict(done))
    if checkpoint.enter("one"):
        checkpoint.leave(NULL)
    with pytest.raises(StepError, match=r"^step 'one': .* already; give each its own"):
        checkpoint.enter("one", has_cursor=has_cursor)
    assert checkpoint.current is None


def test_a_step_that_failed_can_not_be_begun_again_in_the_same_attempt() -> None:
    checkpoint = Checkpoint()
    checkpoint.enter("one")
    checkpoint.leave(None)
    with pytest.raises(StepError, match="'one'"):
        checkpoint.enter("one")


@pytest.mark.parametrize("done", [{}, {"inner": NULL}])
def test_a_step_inside_a_step_is_refused_and_the_outer_one_goes_on(done: dict[str, str]) -> None:
    checkpoint = Checkpoint(dict(done))
    checkpoint.enter("outer")
    with pytest.raises(StepError, match=r"step 'inner' inside step 'outer': .*; run one after the other"):
        checkpoint.enter("inner")
    assert checkpoint.current == "outer"
    checkpoint.leave("1")
    assert patch_of(checkpoint)["done"] == {"outer": 1}
    assert checkpoint.enter("inner") == ("inner" not in done)  # afterwards it may


BAD_NAMES: list[Any] = ["", "x" * 129, None, 7, "a\0b", "half \ud800", "\udfff"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_can_not_be_stored_is_refused_before_its_function_runs(name: Any) -> None:
    checkpoint = Checkpoint()
    with pytest.raises(
        StepError, match=r"^step .*(1 to 128 characters|take NUL and half surrogate pairs out)$"
    ) as raised:
        checkpoint.enter(name)
    assert str(raised.value).isascii()
    assert len(str(raised.value)) < 250
    assert checkpoint.current is None


@pytest.mark.parametrize("name", ["x", "x" * 128, "schön ☃ 😀", "\ud7ff\ue000", 'say "it" \\ \n\x01'])
def test_any_other_name_is_stored_as_it_is(name: str) -> None:
    checkpoint = Checkpoint()
    finish(checkpoint, name)
    checkpoint.save({name: "1"})
    assert patch_of(checkpoint) == {"done": {name: None}, "cursor": {}, "data": {name: 1}}


def test_a_name_of_an_enum_is_its_text() -> None:
    class Name(StrEnum):
        LOAD = "load"

    checkpoint = Checkpoint()
    checkpoint.enter(Name.LOAD)
    assert type(checkpoint.done_in_tx(NULL)) is str
    checkpoint.leave(NULL)
    assert not Checkpoint({"load": NULL}).enter(Name.LOAD)


# --- cursors ---------------------------------------------------------------------------------------------------------


def test_a_step_that_fails_keeps_its_cursor_even_if_it_is_the_first() -> None:
    checkpoint = Checkpoint()
    checkpoint.enter("load", has_cursor=True)
    checkpoint.set_cursor("41")
    checkpoint.set_cursor("42")
    checkpoint.leave(None)
    assert patch_of(checkpoint) == EMPTY | {"cursor": {"load": 42}}


def test_a_cursor_of_an_earlier_attempt_is_there_when_its_step_runs_again() -> None:
    checkpoint = Checkpoint({"one": NULL}, {"load": "42", "other": "1"})
    assert checkpoint.enter("load", has_cursor=True)
    assert checkpoint.cursor["load"] == "42"


def test_a_step_that_is_done_has_no_cursor_and_other_cursors_stay() -> None:
    checkpoint = Checkpoint({}, {"load": "42", "other": "1"})
    checkpoint.enter("load", has_cursor=True)
    checkpoint.set_cursor("43")
    checkpoint.leave("9")
    assert checkpoint.cursor == {"other": "1"}
    assert patch_of(checkpoint) == EMPTY | {"done": {"load": 9}}


Call = Callable[[Checkpoint], object]
CURSOR_CALLS: list[tuple[str, Call]] = [
    ("set_cursor", lambda checkpoint: checkpoint.set_cursor("1")),
    ("set_step_cursor_tx", lambda checkpoint: checkpoint.cursor_in_tx("1")),
]


@pytest.mark.parametrize(("verb", "call"), CURSOR_CALLS)
def test_a_cursor_needs_a_cursor_step(verb: str, call: Call) -> None:
    checkpoint = Checkpoint()
    with pytest.raises(StepError, match=f"^{verb} outside a step: .* inside the function of a step_cursor"):
        call(checkpoint)
    checkpoint.enter("plain")
    with pytest.raises(StepError, match=f"^{verb} in step 'plain', which has no cursor: .* of a step_cursor"):
        call(checkpoint)
    checkpoint.leave(NULL)
    checkpoint.enter("load", has_cursor=True)
    checkpoint.leave(None)
    with pytest.raises(StepError, match=f"^{verb} outside a step"):
        call(checkpoint)
    assert patch_of(checkpoint) == EMPTY | {"done": {"plain": None}}


@pytest.mark.parametrize(("first", "second"), [CURSOR_CALLS, CURSOR_CALLS[::-1]])
def test_a_step_sets_its_cursor_in_one_of_the_two_ways(first: tuple[str, Call], second: tuple[str, Call]) -> None:
    checkpoint = Checkpoint()
    checkpoint.enter("load", has_cursor=True)
    first[1](checkpoint)
    first[1](checkpoint)
    before = checkpoint.patch()
    with pytest.raises(StepError, match=f"^step 'load': {second[0]} after {first[0]}; use one of them in a step"):
        second[1](checkpoint)
    assert checkpoint.patch() == before
    checkpoint.leave(None)
    checkpoint.enter("next", has_cursor=True)
    second[1](checkpoint)  # another step may use the other one


# --- the caller's transactions ---------------------------------------------------------------------------------------


def test_set_step_tx_outside_a_step_is_refused() -> None:
    with pytest.raises(StepError, match=r"^set_step_tx outside a step: call it inside the function of a step"):
        Checkpoint().done_in_tx(NULL)


@pytest.mark.parametrize("step_has_cursor", [False, True])
@pytest.mark.parametrize("call_has_cursor", [False, True])
def test_after_a_tx_call_the_functions_return_adds_nothing(step_has_cursor: bool, call_has_cursor: bool) -> None:
    if call_has_cursor and not step_has_cursor:
        return
    checkpoint = Checkpoint({}, {"load": "41"})
    checkpoint.enter("load", has_cursor=step_has_cursor)
    assert (checkpoint.cursor_in_tx if call_has_cursor else checkpoint.done_in_tx)("42") == "load"
    assert checkpoint.row_decides
    assert checkpoint.marked == (None if call_has_cursor else "42")
    checkpoint.leave("9")
    assert checkpoint.current is None
    assert (checkpoint.done, checkpoint.cursor) == ({}, {"load": "41"})
    assert not checkpoint.is_changed


def test_a_tx_call_says_nothing_about_the_steps_after_it() -> None:
    checkpoint = Checkpoint()
    checkpoint.enter("one")
    checkpoint.done_in_tx(NULL)
    checkpoint.leave("1")
    finish(checkpoint, "two", "2")
    assert patch_of(checkpoint) == EMPTY | {"done": {"two": 2}}


def test_set_step_tx_ends_a_step_with_a_cursor_in_memory_which_stays_if_it_is_rolled_back() -> None:
    checkpoint = Checkpoint()
    checkpoint.enter("load", has_cursor=True)
    checkpoint.set_cursor("1")
    checkpoint.done_in_tx(NULL)
    checkpoint.set_cursor("2")  # it was rolled back, and the function went on
    checkpoint.leave(NULL)
    assert patch_of(checkpoint) == EMPTY | {"cursor": {"load": 2}}


def test_a_refused_tx_call_leaves_the_step_as_it_was() -> None:
    checkpoint = Checkpoint()
    checkpoint.enter("load", has_cursor=True)
    with pytest.raises(StepError, match=r"^step 'load': its cursor: .* keep the data in a table"):
        checkpoint.cursor_in_tx(text(CURSOR_LIMIT + 1))
    checkpoint.set_cursor("1")
    checkpoint.leave("9")
    assert patch_of(checkpoint) == EMPTY | {"done": {"load": 9}}


# --- data ------------------------------------------------------------------------------------------------------------


def test_data_is_added_and_null_deletes() -> None:
    checkpoint = Checkpoint({}, {}, {"kept": "1", "changed": "1", "deleted": "1"})
    checkpoint.save({"changed": "2", "deleted": NULL})
    checkpoint.save({"new": "3", "brief": "4"})
    checkpoint.save({"brief": NULL})
    assert checkpoint.data == {"kept": "1", "changed": "2", "new": "3"}
    assert patch_of(checkpoint)["data"] == {"changed": 2, "deleted": None, "new": 3, "brief": None}


def test_a_deleted_key_can_be_saved_again() -> None:
    checkpoint = Checkpoint({}, {}, {"key": "1"})
    checkpoint.save({"key": NULL})
    checkpoint.save({"key": "2"})
    assert checkpoint.data == {"key": "2"}
    assert patch_of(checkpoint)["data"] == {"key": 2}


@pytest.mark.parametrize("key", ["a\0b", "half \ud83d"])
def test_a_key_that_can_not_be_stored_is_named_and_nothing_is_saved(key: str) -> None:
    checkpoint = Checkpoint()
    with pytest.raises(
        StepError, match=r"^save: PostgreSQL can't store the key '.*'; take NUL and half surrogates out"
    ):
        checkpoint.save({"good": "1", key: "2"})
    assert checkpoint.data == {}
    assert not checkpoint.is_changed


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", ["x", "ü", "😀"])
@pytest.mark.parametrize("over", [False, True])
def test_a_cursor_has_64_kib_of_utf_8(letter: str, over: bool) -> None:
    checkpoint = Checkpoint()
    checkpoint.enter("load", has_cursor=True)
    checkpoint.set_cursor("1")
    value = text(CURSOR_LIMIT - 2, letter)
    if over:
        with pytest.raises(StepError, match=r"^step 'load': its cursor: \d+ bytes of JSON, the limit is 65536; keep"):
            checkpoint.set_cursor(value + "   ")
    else:
        checkpoint.set_cursor(value)
    assert checkpoint.cursor["load"] == ("1" if over else value)


def test_a_result_of_256_kib_is_kept() -> None:
    checkpoint = Checkpoint()
    finish(checkpoint, "one", text(RESULT_LIMIT))
    assert patch_of(checkpoint)["done"] == {"one": "x" * (RESULT_LIMIT - 2)}


def test_a_step_whose_result_is_larger_has_ended_but_is_not_done_and_keeps_its_cursor() -> None:
    checkpoint = Checkpoint()
    checkpoint.enter("one", has_cursor=True)
    checkpoint.set_cursor("1")
    with pytest.raises(
        StepError, match=r"^step 'one': its result: 262145 bytes of JSON, the limit is 262144; keep the"
    ):
        checkpoint.leave(text(RESULT_LIMIT + 1))
    assert checkpoint.current is None
    assert checkpoint.done == {}
    assert patch_of(checkpoint) == EMPTY | {"cursor": {"one": 1}}
    finish(checkpoint, "two")


def full(letter: str = "x") -> Checkpoint:
    """All but 20,000 bytes or so are used up by what earlier attempts left behind."""
    return Checkpoint(
        {f"step {number}": text(RESULT_LIMIT, letter) for number in range(3)},
        {"load": text(CURSOR_LIMIT, letter)},
        {"old": text(TOTAL_LIMIT - 3 * RESULT_LIMIT - CURSOR_LIMIT - 20_000, letter)},
    )


OVER = r"the checkpoint would have \d+ bytes of JSON, the limit is 1048576; keep the data in a table and its key here$"


@pytest.mark.parametrize("letter", ["x", "ü"])
def test_all_together_has_1_mib_and_what_is_refused_leaves_no_trace(letter: str) -> None:
    checkpoint, size = full(letter), 30_000
    with pytest.raises(StepError, match=f"^save: with 'a', 'b' {OVER}"):
        checkpoint.save({"a": text(15_000), "b": text(15_000)})
    checkpoint.enter("next", has_cursor=True)
    with pytest.raises(StepError, match=f"^step 'next': with its cursor {OVER}"):
        checkpoint.set_cursor(text(size))
    with pytest.raises(StepError, match=f"^step 'next': with its result {OVER}"):
        checkpoint.leave(text(size))
    assert checkpoint.current is None
    before = full(letter)
    assert (checkpoint.done, checkpoint.cursor, checkpoint.data) == (before.done, before.cursor, before.data)
    assert not checkpoint.is_changed


def test_what_is_replaced_or_deleted_makes_room() -> None:
    checkpoint = full()
    checkpoint.enter("load", has_cursor=True)
    for _ in range(10):
        checkpoint.set_cursor(text(CURSOR_LIMIT))  # in place of the one before
    checkpoint.leave(text(70_000))  # instead of the cursor
    checkpoint.save({"old": NULL, "new": text(70_000)})
    checkpoint.save({"new": text(90_000)})
    with pytest.raises(StepError, match=OVER):
        checkpoint.save({"newer": text(200_000)})


def test_a_checkpoint_over_the_limit_can_still_shrink() -> None:
    checkpoint = Checkpoint({}, {}, {"old": text(TOTAL_LIMIT), "older": text(TOTAL_LIMIT)})
    with pytest.raises(StepError, match=OVER):
        checkpoint.save({"new": "1"})
    checkpoint.save({"old": "1"})
    checkpoint.save({"older": NULL})
    checkpoint.save({"new": "1"})
    assert checkpoint.data == {"old": "1", "new": "1"}


@given(st.lists(st.tuples(st.sampled_from(["cursor", "result", "data"]), st.integers(1, 300_000)), max_size=12))
@settings(max_examples=30, deadline=None)
def test_a_patch_is_never_larger_than_the_limit(calls: list[tuple[str, int]]) -> None:
    checkpoint, frame = Checkpoint(), len(Checkpoint().patch())
    for number, (kind, size) in enumerate(calls):
        value = str(size).ljust(size)
        try:
            if kind == "data":
                checkpoint.save({f"key {number}": value})
                continue
            checkpoint.enter(f"step {number}", has_cursor=True)
            if kind == "cursor":
                checkpoint.set_cursor(value)
            checkpoint.leave(value if kind == "result" else None)
        except StepError:
            checkpoint.leave(None)
    assert len(checkpoint.patch()) <= TOTAL_LIMIT + frame
    again = Checkpoint(*(dict(part) for part in (checkpoint.done, checkpoint.cursor, checkpoint.data)))
    assert again._total == checkpoint._total  # counted as it grew, or all at once


# --- together --------------------------------------------------------------------------------------------------------


@dataclass
class Stored:
    """What the job's row says, as the storage makes it. Values are what their JSON says."""

    done: dict[str, int] = field(default_factory=dict)
    cursor: dict[str, int] = field(default_factory=dict)
    data: dict[str, int | None] = field(default_factory=dict)

    def load(self) -> Checkpoint:
        parts = (self.done, self.cursor, self.data)
        return Checkpoint(*({key: json.dumps(value) for key, value in part.items()} for part in parts))

    def fold(self, *patches: dict[str, dict[str, Any]]) -> Stored:
        """The attempt has ended: the later patch wins, key by key."""
        new = Stored(dict(self.done), dict(self.cursor), dict(self.data))
        for patch in patches:
            new.done |= patch.get("done", {})
            new.cursor |= patch.get("cursor", {})
            new.data |= patch.get("data", {})
        new.cursor = {name: value for name, value in new.cursor.items() if name not in new.done}
        new.data = {key: value for key, value in new.data.items() if value is not None}
        return new


NAMES = st.sampled_from("abcde")
VALUES = st.integers(0, 9)
PROGRAMS = st.lists(st.tuples(NAMES, st.booleans()), unique_by=lambda step: step[0], max_size=5)


class Attempts(RuleBasedStateMachine):
    """A job's attempts, one after the other. Between them its code may change; one transaction at a time is open.

    `known` is the model: what must be recorded at this moment if the attempt ended now, and `rows` what committed.
    """

    @initialize(program=PROGRAMS)
    def enqueue(self, program: list[tuple[str, bool]]) -> None:
        self.stored = Stored()
        self.program = program
        self.begin()

    def begin(self) -> None:
        self.checkpoint = self.stored.load()
        self.ahead = list(self.program)
        self.used: list[str] = []  # names, in this attempt
        self.step: str | None = None
        self.has_cursor = False
        self.calls: set[str] = set()  # what was called in the running step
        self.memory: dict[str, dict[str, Any]] = {"done": {}, "cursor": {}, "data": {}}
        self.open: list[tuple[str, str, int]] = []  # rows that the transaction wrote
        self.rows: dict[str, dict[str, Any]] = {"done": {}, "cursor": {}}

    def refused(self, call: Callable[[], object]) -> None:
        before = self.checkpoint.patch()
        with pytest.raises(StepError):
            call()
        assert self.checkpoint.patch() == before
        assert self.checkpoint.current == self.step

    # the program goes on

    @precondition(lambda self: self.step is None and self.ahead)
    @rule()
    def next_step(self) -> None:
        name, has_cursor = self.ahead.pop(0)
        self.used.append(name)
        runs = self.checkpoint.enter(name, has_cursor=has_cursor)
        assert runs == (name not in self.stored.done)
        if runs:
            self.step, self.has_cursor, self.calls = name, has_cursor, set()
            cursor = self.checkpoint.cursor.get(name)
            assert (None if cursor is None else json.loads(cursor)) == self.stored.cursor.get(name)
        else:
            assert json.loads(self.checkpoint.done[name]) == self.stored.done[name]

    @precondition(lambda self: self.step is not None)
    @rule(result=VALUES)
    def function_returns(self, result: int) -> None:
        assert self.step is not None
        self.checkpoint.leave(str(result))
        if not self.calls & {"set_step_tx", "set_step_cursor_tx"}:
            self.memory["done"][self.step] = result
        self.step = None

    @precondition(lambda self: self.step is not None)
    @rule(caught=st.booleans())
    def function_raises(self, caught: bool) -> None:
        self.checkpoint.leave(None)
        self.step = None
        if not caught:
            self.attempt_fails()

    # calls inside of steps, and outside where they are refused

    @rule(value=VALUES)
    def set_cursor(self, value: int) -> None:
        if self.step is None or not self.has_cursor or "set_step_cursor_tx" in self.calls:
            self.refused(lambda: self.checkpoint.set_cursor(str(value)))
            return
        self.calls.add("set_cursor")
        self.checkpoint.set_cursor(str(value))
        self.memory["cursor"][self.step] = value

    @rule(value=VALUES)
    def set_step_cursor_tx(self, value: int) -> None:
        def call() -> str:
            return self.checkpoint.cursor_in_tx(str(value))

        if self.step is None or not self.has_cursor or "set_cursor" in self.calls:
            self.refused(call)
            return
        self.calls.add("set_step_cursor_tx")
        assert call() == self.step
        self.open.append(("cursor", self.step, value))

    @rule()
    def set_step_tx(self) -> None:
        if self.step is None:
            self.refused(lambda: self.checkpoint.done_in_tx("0"))
            return
        self.calls.add("set_step_tx")
        assert self.checkpoint.done_in_tx("0") == self.step
        self.open.append(("done", self.step, 0))

    @precondition(lambda self: self.open)
    @rule(commits=st.booleans())
    def transaction_ends(self, commits: bool) -> None:
        for part, name, value in self.open if commits else []:
            self.rows[part][name] = value
        self.open = []

    @rule(key=st.sampled_from("xyz"), value=st.none() | VALUES)
    def save(self, key: str, value: int | None) -> None:
        self.checkpoint.save({key: json.dumps(value)})
        self.memory["data"][key] = value

    # mistakes

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def use_a_name_again(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.used))
        self.refused(lambda: self.checkpoint.enter(name))

    @precondition(lambda self: self.step is not None)
    @rule(name=NAMES)
    def begin_a_step_inside(self, name: str) -> None:
        self.refused(lambda: self.checkpoint.enter(name))

    # the attempt ends: what is open is rolled back

    @rule()
    def attempt_fails(self) -> None:
        self.checkpoint.leave(None)
        self.end(json.loads(self.checkpoint.patch()), self.memory)

    @rule()
    def worker_dies(self) -> None:
        self.end({}, {})  # rescue has nothing but the rows

    def end(self, patch: dict[str, Any], expected: dict[str, dict[str, Any]]) -> None:
        before, rows = self.stored, self.rows
        self.stored = before.fold(patch, rows)
        done = before.done | expected.get("done", {}) | rows["done"]
        cursor = before.cursor | expected.get("cursor", {}) | rows["cursor"]
        data = before.data | expected.get("data", {})
        assert self.stored.done == done
        assert self.stored.cursor == {name: value for name, value in cursor.items() if name not in done}
        assert self.stored.data == {key: value for key, value in data.items() if value is not None}
        self.begin()

    @precondition(lambda self: self.step is None and not self.ahead)
    @rule()
    def attempt_succeeds(self) -> None:
        data = {key: json.loads(value) for key, value in self.checkpoint.data.items()}
        self.end(json.loads(self.checkpoint.patch()), self.memory)
        assert self.stored.data == data
        self.stored = Stored(data=self.stored.data)
        self.begin()

    @precondition(lambda self: not self.used and self.step is None)
    @rule(program=PROGRAMS)
    def deploy(self, program: list[tuple[str, bool]]) -> None:
        """Steps are inserted, removed, renamed, reordered, or get or lose a cursor."""
        self.program = program
        self.ahead = list(program)

    @invariant()
    def the_attempt_sees_its_own_data(self) -> None:
        data = self.stored.data | self.memory["data"]
        assert {key: json.loads(value) for key, value in self.checkpoint.data.items()} == {
            key: value for key, value in data.items() if value is not None
        }

    @invariant()
    def there_is_a_patch_if_there_is_anything_new(self) -> None:
        assert self.checkpoint.is_changed == (patch_of(self.checkpoint) != EMPTY)


TestAttempts = Attempts.TestCase
TestAttempts.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


ENDS = st.sampled_from(["goes on", "rolled back", "raises", "raises after commit", "dies", "dies after commit"])


@given(st.lists(ENDS, max_size=40), st.integers(0, 6))
@settings(deadline=None)
def test_items_that_commit_with_their_cursor_are_done_once_each_and_in_order(ends: list[str], count: int) -> None:
    """A program as in the README: download, load row by row with set_step_cursor_tx, publish."""
    stored, table, published, events = Stored(), list[int](), 0, iter(ends)
    for _ in range(len(ends) + 1):
        checkpoint = stored.load()
        rows: dict[str, dict[str, Any]] = {"cursor": {}}
        end = "goes on"
        if checkpoint.enter("download"):
            checkpoint.leave(str(count))
        total = int(checkpoint.done["download"])
        if checkpoint.enter("load", has_cursor=True):
            for item in range(int(checkpoint.cursor.get("load", "0")), total):
                end = next(events, "goes on")
                checkpoint.cursor_in_tx(str(item + 1))
                if end in ("goes on", "raises after commit", "dies after commit"):
                    table.append(item)
                    rows["cursor"]["load"] = item + 1
                if end != "goes on":
                    break
            checkpoint.leave(NULL if end in ("goes on", "rolled back") else None)
        if end == "goes on" and checkpoint.enter("publish"):
            published += 1
            checkpoint.leave(NULL)
        stored = stored.fold({} if end.startswith("dies") else patch_of(checkpoint), rows)
        if end == "goes on":
            break
    assert table == list(range(count))
    assert published == 1
