"""`resume`: a loop that goes on behind the last item that was done, whatever its keys are, and never skips another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest

from pgqueue import Cancel, Context
from pgqueue.errors import StepError
from tests.features.kit import Job

MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)


class Uuid(UUID):
    """As a driver's own."""


# Each ascends as Python compares, and not as the texts of their JSON do.
ASCENDING: dict[str, Sequence[object]] = {
    "int": [9, 10, 11, 100],
    "float": [0.5, 1e3, 1e17, 2e18],
    "Decimal": [Decimal("9"), Decimal("10"), Decimal("10.5"), Decimal("11")],
    "datetime": [MIDNIGHT, MIDNIGHT + timedelta(seconds=0.5), MIDNIGHT + timedelta(seconds=1)],
    "timedelta": [timedelta(seconds=9), timedelta(seconds=10), timedelta(days=2)],
    "bytes": [b"\x01", b"\xdc", b"\xff\xff"],
    "str": ["B", "a", "z\U0001f600", "é"],
    "UUID": [UUID(int=9), UUID(int=10), UUID(int=2**127)],
    "tuple": [(1, Decimal("9")), (1, Decimal("10")), (2, Decimal("1"))],
    "int and float": [0, 0.5, 1, 1.5],
    "tuple with None": [(1, None), (2, "x"), (3, None)],
    "subclass": [Uuid(int=1), Uuid(int=2), Uuid(int=3)],
    "tuple of tuples": [((1, MIDNIGHT), "b"), ((1, MIDNIGHT + timedelta(microseconds=1)), "a")],
}


def walk(ctx: Context, keys: Sequence[object], *, until: int | None = None) -> list[object]:
    """The keys that a loop is given; it fails at its `until`-th."""
    seen: list[object] = []
    with contextlib.suppress(ZeroDivisionError):
        for item in ctx.resume("loop", keys, key=lambda item: item):
            seen.append(item)
            if len(seen) == until:
                raise ZeroDivisionError
    return seen


@pytest.mark.parametrize("keys", ASCENDING.values(), ids=ASCENDING)
def test_every_item_is_given_in_one_go(keys: Sequence[object]) -> None:
    job = Job()
    assert walk(job.context(), keys) == keys
    assert job.end() == {"done": {"loop": None}}


@pytest.mark.parametrize("keys", ASCENDING.values(), ids=ASCENDING)
def test_it_goes_on_behind_the_last_one_that_was_done(keys: Sequence[object]) -> None:
    for until in range(1, len(keys) + 1):
        job = Job()
        before = walk(job.context(), keys, until=until)
        job.end()
        after = walk(job.context(), keys)
        assert [*before[:-1], *after] == keys, f"interrupted in item {until}"


@pytest.mark.parametrize("keys", [[3, 1, 2], ["a", "B", "c"], [(1, "a"), (1, "a")], [1, 1], [1, "x"], [None, 1]])
def test_keys_that_do_not_ascend_are_an_error_and_nothing_is_skipped_for_them(keys: Sequence[object]) -> None:
    job = Job()
    seen: list[object] = []
    with pytest.raises(StepError, match="step 'loop': key"):
        seen.extend(job.context().resume("loop", keys, key=lambda item: item))
    assert seen == keys[: len(seen)]
    assert len(seen) < len(keys)


def test_a_key_is_that_of_the_item_as_it_came() -> None:
    job = Job()
    items = [{"at": 1}, {"at": 2}, {"at": 3}]
    for item in job.context().resume("loop", items, key=lambda item: item["at"]):
        item["at"] += 100
    job.end()
    assert [item["at"] for item in items] == [101, 102, 103]


def test_keys_of_another_type_than_before_are_an_error() -> None:
    job = Job()
    walk(job.context(), [1, 2, 3], until=2)
    job.end()
    with pytest.raises(StepError, match="step 'loop': its cursor can't be read as str"):
        walk(job.context(), ["a", "b"])


def test_a_loop_left_by_break_is_not_done_and_what_it_did_is_kept() -> None:
    job = Job()
    ctx = job.context()
    for n in ctx.resume("loop", [1, 2, 3], key=int):
        if n == 2:
            break
    ctx.step("next", lambda: None)
    assert job.end() == {"done": {"next": None}, "cursor": {"loop": 1}}


async def test_an_async_loop_is_closed_by_aclosing() -> None:
    job = Job()
    ctx = job.acontext()
    async with contextlib.aclosing(ctx.resume("loop", [1, 2, 3], key=int)) as items:  # type: ignore[type-var]
        async for n in items:
            if n == 2:
                break
    await ctx.step("next", lambda: None)
    assert job.end() == {"done": {"next": None}, "cursor": {"loop": 1}}


async def test_a_step_after_an_async_loop_that_was_not_closed_says_so() -> None:
    ctx = Job().acontext()
    items = ctx.resume("loop", [1, 2, 3], key=int)
    assert await anext(items) == 1
    with pytest.raises(StepError, match=r"close a loop of resume\(\) that was left by break"):
        await ctx.step("next", lambda: None)


def test_a_loop_ends_where_the_attempt_is_asked_to() -> None:
    job = Job()

    def loop() -> None:
        for n in job.context().resume("loop", [1, 2, 3], key=int):
            job.reason = "cancel" if n == 2 else None

    with pytest.raises(Cancel):
        loop()
    assert job.end() == {"cursor": {"loop": 2}}


CHECKPOINTS: dict[str, Callable[[Context], object]] = {
    "step": lambda ctx: ctx.step("other", lambda: None),
    "step_cursor": lambda ctx: ctx.step_cursor("other", lambda cursor: None),
    "resume": lambda ctx: list(ctx.resume("other", [1], key=int)),
    "set_cursor": lambda ctx: ctx.step_cursor("open", lambda cursor: _ask(ctx, lambda: ctx.set_cursor(1))),
}


def _ask(ctx: Context, call: Callable[[], object]) -> None:
    ctx._interrupt.reason = "stop"  # type: ignore[misc]
    call()


@pytest.mark.parametrize("call", CHECKPOINTS)
def test_every_checkpoint_ends_the_attempt_if_it_is_asked_to(call: str) -> None:
    job = Job()
    ctx = job.context()
    if call != "set_cursor":
        job.reason = "stop"
    with pytest.raises(Cancel, match="stop"):
        CHECKPOINTS[call](ctx)
