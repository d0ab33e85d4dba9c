"""Results and cursors come back as what the code says they are; a type that can't is refused before a step runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn, Union

import msgspec
import pydantic
import pytest

from pgqueue import Context
from pgqueue.errors import StepError
from tests.features.kit import Job


@dataclass
class Place:
    """A typed value."""

    at: datetime
    ids: list[int]


class Model(pydantic.BaseModel):
    """Another."""

    name: str
    size: Decimal


class Packed(msgspec.Struct):
    """Another."""

    n: int


PLACE = Place(datetime(2026, 1, 2, 3, 4, 5), [1, 2])
MODEL = Model(name="x", size=Decimal("1.50"))


def place() -> Place:
    return PLACE


def model() -> Model:
    return MODEL


def maybe_model() -> Model | None:
    return MODEL


def models() -> list[Model]:
    return [MODEL]


def packed() -> Packed:
    return Packed(3)


def pair() -> tuple[int, str]:
    return (1, "x")


def nothing() -> None:
    return None


@pytest.mark.parametrize("fn", [place, model, maybe_model, models, packed, pair, nothing])
def test_a_result_is_of_the_annotated_type_in_every_attempt(fn: Callable[[], object]) -> None:
    job = Job()
    first = job.context().step("s", fn)
    job.end()
    assert job.context().step("s", fn) == first == fn()


def test_without_an_annotation_it_is_plain_json() -> None:
    job = Job()
    seen: list[object] = []
    for _ in range(2):
        seen.append(job.context().step("s", lambda: (1, 2)))
        job.end() if len(seen) == 1 else None
    assert seen == [(1, 2), [1, 2]]


@pytest.mark.parametrize("value", [PLACE, MODEL, Packed(3)])
def test_a_cursor_is_what_the_parameter_is_annotated_with(value: Any) -> None:
    job = Job()
    seen: list[object] = []

    def load(cursor: object) -> None:
        seen.append(cursor)
        ctx.set_cursor(value)
        if len(seen) == 1:
            raise ZeroDivisionError

    load.__annotations__["cursor"] = type(value) | None
    ctx = job.context()
    with pytest.raises(ZeroDivisionError):
        ctx.step_cursor("s", load)
    job.end()
    ctx = job.context()
    ctx.step_cursor("s", load)
    assert seen == [None, value]


def test_type_says_it_where_there_is_no_annotation() -> None:
    job = Job()
    seen: list[object] = []

    def load(cursor):  # type: ignore[no-untyped-def]
        seen.append(cursor)
        ctx.set_cursor(PLACE)
        raise ZeroDivisionError

    for _ in range(2):
        ctx = job.context()
        with pytest.raises(ZeroDivisionError):
            ctx.step_cursor("s", load, type=Place)
        job.end()
    assert seen == [None, PLACE]


def either() -> Place | Packed:
    raise AssertionError("it is not to be run")


def text_or_time() -> str | datetime:
    raise AssertionError("it is not to be run")


@pytest.mark.parametrize("fn", [either, text_or_time])
def test_a_type_that_json_can_not_tell_is_refused_before_the_function_runs(fn: Callable[[], object]) -> None:
    with pytest.raises(StepError, match=r"step 's': its result can't be read back as .*; annotate it otherwise"):
        Job().context().step("s", fn)


def fails() -> NoReturn:
    raise ZeroDivisionError


def test_a_function_that_never_returns_is_welcome() -> None:
    with pytest.raises(ZeroDivisionError):
        Job().context().step("s", fails)


def test_callables_that_are_no_functions_are_welcome_and_not_kept_alive() -> None:
    @dataclass
    class Add:
        n: int

        def __call__(self) -> int:
            return self.n + 1

    job = Job()
    for _ in range(2):
        assert job.context().step("s", Add(2)) == 3
        job.end()


def generator() -> Iterator[int]:
    yield 1


async def coroutine() -> int:
    return 1


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (generator, "step 's': its result: .*generator"),
        (coroutine, "step 's': its function is `async def`: so has the task to be"),
        (lambda: float("nan"), "step 's': its result: .*nan"),
        (lambda: object(), "step 's': its result: .*object"),
    ],
)
def test_a_result_that_json_can_not_say_is_one_error_that_names_the_step(fn: Callable[[], object], said: str) -> None:
    job = Job()
    ctx = job.context()
    ctx.step("before", lambda: 1)
    with pytest.raises(Exception, match=said):
        ctx.step("s", fn)
    assert job.end() == {"done": {"before": 1}}


def test_a_result_that_no_longer_fits_names_the_step() -> None:
    def now_text() -> str:
        raise AssertionError("it is done")

    job = Job()
    job.context().step("s", lambda: 5)
    job.end()
    with pytest.raises(StepError, match="step 's': its result can't be read as str: Expected `str`, got `int`"):
        job.context().step("s", now_text)


async def test_plain_functions_are_steps_of_coroutines_too() -> None:
    job = Job()
    ctx = job.acontext()
    assert await ctx.step("plain", pair) == (1, "x")
    assert await ctx.step("async", coroutine) == 1
    assert await ctx.step_cursor("cursor", lambda cursor: cursor) is None
    await ctx.run_steps([nothing, place])
    assert job.end()["done"].keys() == {"plain", "async", "cursor", "nothing", "place"}


def names_taken(ctx: Context) -> None:
    ctx.step("s", dict, name="x", fn=1, self=2)
    ctx.save(self=1, data=2)
    ctx.progress("half", state=1, self=2)


def test_no_name_of_an_argument_or_a_key_is_taken() -> None:
    job = Job()
    names_taken(job.context())
    stored = job.end()
    assert stored["done"] == {"s": {"name": "x", "fn": 1, "self": 2}}
    assert stored["data"]["self"] == 1


def load_from(first: int, cursor: Place | None) -> None:
    if cursor is None:
        current.set_cursor(PLACE)
        raise ZeroDivisionError
    assert (first, cursor) == (7, PLACE)


current: Context


def wrapped(fn: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(fn)
    def call(*args: object) -> object:
        return fn(*args)

    return call


class Loader:
    """A step may be a method, or an object that can be called."""

    def method(self, cursor: Place | None) -> Place:
        load_from(7, cursor)
        return PLACE

    def __call__(self, cursor: Place | None) -> Place:
        return self.method(cursor)


@pytest.mark.parametrize(
    "fn",
    [
        functools.partial(load_from, 7),
        wrapped(lambda cursor: None),
        Loader().method,
        Loader(),
        functools.partial(wrapped(load_from), 7),
        functools.partial(Loader.method, Loader()),
    ],
    ids=["partial", "wraps", "method", "callable", "partial of wraps", "partial of method"],
)
def test_annotations_are_found_behind_what_a_function_is_wrapped_in(fn: Callable[[object], object]) -> None:
    global current
    job = Job()
    for _ in range(2):
        current = job.context()
        with contextlib.suppress(ZeroDivisionError):
            current.step_cursor("s", fn)
        job.end()


def test_a_class_is_a_step_that_makes_one_of_its_objects() -> None:
    job = Job()
    for _ in range(2):
        assert job.context().step("s", Place, PLACE.at, [1, 2]) == PLACE
        job.end()


def wrong_bool() -> int:
    return True


def wrong_time() -> date:
    return PLACE.at


@pytest.mark.parametrize("fn", [wrong_bool, wrong_time])
def test_a_result_that_is_not_what_was_promised_fails_at_once(fn: Callable[[], object]) -> None:
    job = Job()
    with pytest.raises(StepError, match="step 's': its result can't be read as"):
        job.context().step("s", fn)
    assert job.end() == {}


def numbers() -> Iterator[int]:
    return [1, 2]  # type: ignore[return-value]


def unreadable() -> Path:
    raise AssertionError("it is not to be run")


def test_what_can_be_gone_through_is_a_list_and_a_class_unknown_to_json_is_refused() -> None:
    job = Job()
    for _ in range(2):
        assert list(job.context().step("s", numbers)) == [1, 2]
        job.end()
    with pytest.raises(StepError, match="its result can't be read back as"):
        job.context().step("other", unreadable)


JSON = Union[None, int, str, "list[JSON]", "dict[str, JSON]"]


def any_json() -> JSON:
    return [{"a": 1}]


def missing() -> Missing:  # type: ignore[name-defined]  # noqa: F821
    return {"a": 1}


@pytest.mark.parametrize("fn", [any_json, missing])
def test_a_type_that_is_not_known_here_is_plain_json(fn: Callable[[], object]) -> None:
    job = Job()
    for _ in range(2):
        assert job.context().step("s", fn) == fn()
        job.end()


def test_a_refused_step_inside_another_does_not_change_what_that_has_promised() -> None:
    job = Job()
    ctx = job.context()

    def outer() -> int:
        with pytest.raises(StepError):
            ctx.step("inner", pair)
        return 5

    assert ctx.step("outer", outer) == 5
