"""Resumable jobs: named steps, cursors, data, and marks that commit together with the caller's own work.

Guarantees: a step that is recorded as done isn't run again; one that isn't is run, wherever it stands. What was reached
in memory is merged into the job's metadata by the statement that records how the attempt ended, however it ended. A
`*_tx` call is part of the caller's transaction and of nothing else: rolled back, it never happened; called by an
attempt that has lost its job, it raises LeaseLost and the transaction can't commit.
Never: touches the application's own keys in metadata.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar, cast, overload

import msgspec

from pgqueue.core.checkpoint import NULL
from pgqueue.db.adapt import ajoin, join
from pgqueue.errors import StepError
from pgqueue.extension import Here
from pgqueue.features.annotations import cursor_type, key_type, result_type
from pgqueue.features.memory import Memory, remembered

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Item = TypeVar("Item")


class BaseSteps:
    """What both colours of context have of it."""

    _here: Here

    def raise_if_cancelled(self) -> None:
        """End the attempt here if anything wants it to end."""
        raise NotImplementedError

    def _check_time(self) -> None:
        """End the attempt here if the next one may have begun."""
        raise NotImplementedError

    def set_cursor(self, value: object) -> None:
        """Remember how far the running cursor step has come: any value that JSON can say, 64 KiB at most.

        Made durable when the attempt ends, and every `checkpoint_every` seconds until then; so call it as often as you
        like. If anything wants the attempt to end, it ends here, after this.
        raises  StepError outside a cursor step
        """
        self._memory().set_cursor(value)
        self.raise_if_cancelled()

    @property
    def data(self) -> Mapping[str, object]:
        """What the job has saved, in this attempt and those before."""
        saved = self._memory().checkpoint.data
        return MappingProxyType({key: msgspec.json.decode(text) for key, text in saved.items()})

    def save(self, /, **data: object) -> None:
        """Add to the job's data; None deletes a key. It outlives the job's success."""
        self._check_time()
        self._memory().save(data)

    def progress(self, state: str, /, **data: object) -> None:
        """Say how far the job is: kept as `data["progress"]`."""
        self.save(progress={"state": state, "data": data})

    def _memory(self) -> Memory:
        keeper = self._here.keeper
        if not isinstance(keeper.leftover, Memory):
            keeper.leftover = Memory.of(self._here)
        return keeper.leftover

    def _enter(self, name: str, result_type: Any, *, has_cursor: bool = False) -> bool:
        self.raise_if_cancelled()
        return self._memory().enter(name, result_type, has_cursor=has_cursor)

    def _result(self, name: str, type: Any) -> Any:
        return remembered(self._memory().checkpoint.done[name], type, f"step {name!r}: its result")

    def _cursor(self, name: str, type: Any) -> Any:
        """That of the step which has just been entered."""
        text = self._memory().checkpoint.cursor.get(name)
        return None if text is None else remembered(text, type, f"step {name!r}: its cursor")

    def _finish(self, name: str, type: Any, value: R) -> R:
        """The step's function has returned `value`; what the step returns."""
        memory = self._memory()
        if memory.checkpoint.row_decides:  # not what the function returned
            marked = memory.checkpoint.marked
            memory.leave(name, None)
            return value if marked is None else cast(R, remembered(marked, type, f"step {name!r}: its result"))
        try:
            text = memory.result_text(name, value)
        except BaseException:
            memory.leave(name, None)
            raise
        memory.leave(name, text)
        return value


class Steps(BaseSteps):
    """Steps of a plain function."""

    def step(self, name: str, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `fn(*args, **kwargs)` once in the life of the job; its result (JSON, 256 KiB) is remembered.

        A remembered result is of the type that `fn` is annotated to return, and plain JSON without an annotation.
        If anything wants the attempt to end, it ends before the step.
        raises  StepError for a name that was used before in this attempt, or inside another step; what `fn` raises
        """
        type = result_type(name, fn)
        if not self._enter(name, type):
            return cast(R, self._result(name, type))
        return self._run(name, type, lambda: fn(*args, **kwargs))

    @overload
    def step_cursor(self, name: str, fn: Callable[[T | None], R], /, *, type: type[T]) -> R: ...
    @overload
    def step_cursor(self, name: str, fn: Callable[[Any], R], /) -> R: ...
    def step_cursor(self, name: str, fn: Callable[[Any], R], /, *, type: Any = None) -> R:
        """As `step`, for a function that is given the last cursor it set (None at first) and goes on from there.

        type  what the cursor is, if the annotation of the function's parameter doesn't say it: a dataclass, a pydantic
              model, a datetime
        """
        result, cursor = result_type(name, fn), cursor_type(name, fn, type)
        if not self._enter(name, result, has_cursor=True):
            return cast(R, self._result(name, result))
        return self._run(name, result, lambda: fn(self._cursor(name, cursor)))

    def resume(self, name: str, items: Iterable[Item], *, key: Callable[[Item], object]) -> Iterator[Item]:
        """Go through `items`, which come in ascending order of `key`, as a cursor step; those done before are left out.

        An item is done when the loop asks for the next one. Keys are what Python can compare: numbers, texts, times,
        tuples of them; texts in the order of their code points, which PostgreSQL calls `collate "C"`.
        raises  StepError if the keys don't ascend, each its own
        """
        if not self._enter(name, Any, has_cursor=True):
            return
        walk, result = _Walk(self, name), None
        try:
            for item in items:
                if walk.is_ahead(key(item)):
                    yield item
                    walk.advance()
            result = NULL
        finally:
            walk.memory.leave(name, result)

    def run_steps(self, steps: Sequence[Callable[[], object]]) -> None:
        """Run functions one after the other, each as a step that has its name."""
        for name, fn in zip(_names(steps), steps, strict=True):
            self.step(name, fn)

    def set_step_tx(self, conn: object, result: object = None) -> None:
        """Record the running step as done in the transaction on `conn`: call it last in the step's function.

        result  what `step` returns, now and in later attempts; what the function returns is not remembered
        raises  StepError outside a step; InvalidConnection for one that can't take part in a transaction, or is to
                another database; LeaseLost if another worker may be running the job: the transaction is aborted
        """
        send = join(conn, _WRONG_COLOUR)
        send(self._memory().mark_done(result))

    def set_step_cursor_tx(self, conn: object, value: object) -> None:
        """Record how far the running cursor step has come in the transaction on `conn`; otherwise as `set_step_tx`.

        If anything wants the attempt to end, it ends here, after this: the transaction is rolled back with its mark,
        unless that is caught.
        """
        send = join(conn, _WRONG_COLOUR)
        send(self._memory().mark_cursor(value))
        self.raise_if_cancelled()

    def complete_tx(self, conn: object, result: object = None) -> None:
        """Complete the job in the transaction on `conn`, after everything else. If that isn't committed, the attempt
        has failed.

        raises  as `set_step_tx`
        """
        send = join(conn, _WRONG_COLOUR)
        send(self._memory().completion(result))

    def _run(self, name: str, type: Any, call: Callable[[], R]) -> R:
        try:
            value = call()
            if inspect.iscoroutine(value):
                value.close()
                raise StepError(f"step {name!r}: its function is `async def`: so has the task to be, and to await it")
        except BaseException:
            self._memory().leave(name, None)
            raise
        return self._finish(name, type, value)


class AsyncSteps(BaseSteps):
    """Steps of a coroutine. Their functions may be coroutine functions or plain ones."""

    @overload
    async def step(self, name: str, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def step(self, name: str, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def step(self, name: str, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> object:
        """Run `fn(*args, **kwargs)` once in the life of the job; see `Steps.step`."""
        type = result_type(name, fn)
        if not self._enter(name, type):
            return self._result(name, type)
        return await self._run(name, type, lambda: fn(*args, **kwargs))

    @overload
    async def step_cursor(self, name: str, fn: Callable[[T | None], Awaitable[R]], /, *, type: type[T]) -> R: ...
    @overload
    async def step_cursor(self, name: str, fn: Callable[[T | None], R], /, *, type: type[T]) -> R: ...
    @overload
    async def step_cursor(self, name: str, fn: Callable[[Any], Awaitable[R]], /) -> R: ...
    @overload
    async def step_cursor(self, name: str, fn: Callable[[Any], R], /) -> R: ...
    async def step_cursor(self, name: str, fn: Callable[[Any], object], /, *, type: Any = None) -> object:
        """As `step`, for a function that is given the last cursor it set; see `Steps.step_cursor`."""
        result, cursor = result_type(name, fn), cursor_type(name, fn, type)
        if not self._enter(name, result, has_cursor=True):
            return self._result(name, result)
        return await self._run(name, result, lambda: fn(self._cursor(name, cursor)))

    async def resume(
        self, name: str, items: Iterable[Item] | AsyncIterable[Item], *, key: Callable[[Item], object]
    ) -> AsyncIterator[Item]:
        """Go through `items` as a cursor step; see `Steps.resume`.

        A loop that is left by `break` ends its step only when it is closed: use `contextlib.aclosing`.
        """
        if not self._enter(name, Any, has_cursor=True):
            return
        walk, result = _Walk(self, name), None
        try:
            async for item in _each(items):
                if walk.is_ahead(key(item)):
                    yield item
                    walk.advance()
            result = NULL
        finally:
            walk.memory.leave(name, result)

    async def run_steps(self, steps: Sequence[Callable[[], object]]) -> None:
        """Run functions one after the other, each as a step that has its name."""
        for name, fn in zip(_names(steps), steps, strict=True):
            await self.step(name, fn)

    async def set_step_tx(self, conn: object, result: object = None) -> None:
        """Record the running step as done in the transaction on `conn`; see `Steps.set_step_tx`."""
        send = await ajoin(conn, _WRONG_COLOUR)
        await send(self._memory().mark_done(result))

    async def set_step_cursor_tx(self, conn: object, value: object) -> None:
        """Record how far the running cursor step has come; see `Steps.set_step_cursor_tx`."""
        send = await ajoin(conn, _WRONG_COLOUR)
        await send(self._memory().mark_cursor(value))
        self.raise_if_cancelled()

    async def complete_tx(self, conn: object, result: object = None) -> None:
        """Complete the job in the transaction on `conn`; see `Steps.complete_tx`."""
        send = await ajoin(conn, _WRONG_COLOUR)
        await send(self._memory().completion(result))

    async def _run(self, name: str, type: Any, call: Callable[[], Any]) -> Any:
        try:
            value = call()
            if inspect.isawaitable(value):
                value = await value
        except BaseException:
            self._memory().leave(name, None)
            raise
        return self._finish(name, type, value)


_WRONG_COLOUR = "a plain function needs a sync connection, and an `async def` task an async one"


class _Walk:
    """Where a loop of `resume` is. Keys ascend, each its own: else an item could be taken for one that was done."""

    def __init__(self, steps: BaseSteps, name: str) -> None:
        self.memory = steps._memory()
        self._steps = steps
        self._name = name
        self._last: Any = None
        self._reached: Any = None

    def is_ahead(self, key: Any) -> bool:
        """Is the item of this key to be done?"""
        if self._last is None:
            self._reached = self._steps._cursor(self._name, key_type(key))
        try:
            ascends = self._last is None or self._last < key
            ahead = self._reached is None or self._reached < key
        except TypeError as error:
            raise StepError(f"step {self._name!r}: key {key!r}: {error}") from error
        if key is None or not ascends:
            raise StepError(f"step {self._name!r}: key {key!r} after {self._last!r}: keys must ascend, each its own")
        self._last = key
        return bool(ahead)

    def advance(self) -> None:
        """That item is done."""
        if self.memory.checkpoint.row_decides:  # by marks of its own
            self._steps.raise_if_cancelled()
        else:
            self._steps.set_cursor(self._last)


def _names(steps: Sequence[Callable[[], object]]) -> list[str]:
    """Those of the functions, before any of them is run."""
    names = [getattr(fn, "__name__", "") for fn in steps]
    for name, fn in zip(names, steps, strict=True):
        if not name.isidentifier() or names.count(name) > 1:
            raise StepError(f"run_steps: {fn!r}: each function needs a name of its own; else call step(name, function)")
    return names


async def _each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
