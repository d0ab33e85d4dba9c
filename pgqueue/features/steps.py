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
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ParamSpec, Protocol, TypeVar, cast, get_type_hints, overload

import msgspec

from pgqueue.core.checkpoint import NULL, Checkpoint, StepError
from pgqueue.db.adapt import arun, run
from pgqueue.store import jobs
from pgqueue.store.statement import Statement
from pgqueue.tasks.json_text import encode_value

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Item = TypeVar("Item")


class Marks(Protocol):
    """How an attempt writes about its job in a transaction of the caller's."""

    def mark(self, part: str, name: str, text: str) -> Statement[None]:
        """A step is "done" with its result, or has come as far as its "cursor" says."""

    def complete(self, result: str | None, patch: str | None) -> Statement[None]:
        """The job is done; `patch` is what the attempt has to add to its checkpoint."""


@dataclass(frozen=True, slots=True)
class FencedMarks:
    """The marks of an attempt that a worker runs."""

    fence: jobs.Fence
    schema: str

    def mark(self, part: str, name: str, text: str) -> Statement[None]:
        return jobs.set_checkpoint(self.fence, part, name, text, schema=self.schema)

    def complete(self, result: str | None, patch: str | None) -> Statement[None]:
        return jobs.complete_tx(self.fence, result, patch, schema=self.schema)


class _Stored(msgspec.Struct):
    done: dict[str, msgspec.Raw] = {}
    cursor: dict[str, msgspec.Raw] = {}
    data: dict[str, msgspec.Raw] = {}


class _Metadata(msgspec.Struct):
    pgqueue: _Stored = msgspec.field(default_factory=_Stored)


_read_metadata = msgspec.json.Decoder(_Metadata).decode


class Memory:
    """What one attempt remembers for the next. All contexts of an attempt share it.

    title       how errors name the job
    metadata    that of a job that has a checkpoint, else None
    completing  complete_tx was called: the job's row tells whether that was committed
    on_change   called with each addition, as a patch
    """

    def __init__(
        self,
        title: str,
        marks: Marks,
        metadata: str | None,
        on_change: Callable[[str], None] = lambda patch: None,
    ) -> None:
        self.marks = marks
        self.completing = False
        self.on_change = on_change
        self._checkpoint = _load(metadata, title)

    @property
    def checkpoint(self) -> Checkpoint:
        """The steps so far.

        raises  StepError if what is stored was damaged
        """
        if isinstance(self._checkpoint, StepError):
            raise self._checkpoint
        return self._checkpoint

    def patch(self) -> str | None:
        """What this attempt adds, as JSON; None for nothing."""
        if isinstance(self._checkpoint, StepError) or not self._checkpoint.is_changed:
            return None
        return self._checkpoint.patch()

    def leave(self, name: str, result: str | None) -> None:
        """The running step has ended: with a result, or (None) not as it should."""
        is_recorded = result is not None and not self.checkpoint.row_decides
        self.checkpoint.leave(result)
        if is_recorded and result is not None:
            self.on_change(_patch("done", name, result))

    def set_cursor(self, value: object) -> None:
        """The running step has come so far."""
        text = encode_value("cursor", value).decode()
        self.checkpoint.set_cursor(text)
        self.on_change(_patch("cursor", str(self.checkpoint.current), text))

    def save(self, values: Mapping[str, object]) -> None:
        """Add to the data."""
        changes = {key: encode_value(f"save: {key}", value).decode() for key, value in values.items()}
        self.checkpoint.save(changes)
        for key, text in changes.items():
            self.on_change(_patch("data", key, text))

    def mark_done(self, result: object) -> Statement[None]:
        """The running step is done, says a row in the caller's transaction."""
        text = encode_value("result", result).decode()
        return self.marks.mark("done", self.checkpoint.done_in_tx(text), text)

    def mark_cursor(self, value: object) -> Statement[None]:
        """The running step has come so far, says a row in the caller's transaction."""
        text = encode_value("cursor", value).decode()
        return self.marks.mark("cursor", self.checkpoint.cursor_in_tx(text), text)

    def completion(self, result: object) -> Statement[None]:
        """The job's completion in the caller's transaction."""
        text = None if result is None else encode_value("result", result).decode()
        self.completing = True
        self.on_change('{"completing":true}')
        return self.marks.complete(text, self.patch())


class _Note(_Stored):
    completing: bool = False


_read_note = msgspec.json.Decoder(_Note).decode


class RemoteMemory:
    """The memory of an attempt in another process, from what it has noted: it holds even if that process was killed."""

    def __init__(self) -> None:
        self.completing = False
        self._parts = _Stored({}, {}, {})

    def add(self, note: bytes) -> None:
        """Take in one patch."""
        found = _read_note(note)
        self.completing = self.completing or found.completing
        self._parts.done |= found.done
        self._parts.cursor |= found.cursor
        self._parts.data |= found.data
        for name in found.done:
            self._parts.cursor.pop(name, None)

    def patch(self) -> str | None:
        """All that was noted, as one patch; None for nothing."""
        parts = self._parts
        return msgspec.json.encode(parts).decode() if parts.done or parts.cursor or parts.data else None


def _load(metadata: str | None, title: str) -> Checkpoint | StepError:
    if metadata is None:
        return Checkpoint()
    try:
        stored = _read_metadata(metadata).pgqueue
    except msgspec.DecodeError as error:
        return StepError(
            f"{title}: its checkpoint can't be read ({error}); repair the key pgqueue of its"
            " metadata, or start it over with retry(restart=True)"
        )
    return Checkpoint(_texts(stored.done), _texts(stored.cursor), _texts(stored.data))


def _texts(values: Mapping[str, msgspec.Raw]) -> dict[str, str]:
    return {name: bytes(value).decode() for name, value in values.items()}


def _patch(part: str, name: str, text: str) -> str:
    return msgspec.json.encode({part: {name: msgspec.Raw(text.encode())}}).decode()


@lru_cache(maxsize=1024)
def _result_type(fn: Callable[..., object]) -> Any:
    """What the function is annotated to return, so that a remembered result is of that type again."""
    try:
        found = get_type_hints(fn).get("return", Any)
    except Exception:  # annotations of the user's may name what isn't there
        return Any
    return Any if found in (None, type(None)) else found


def _remembered(text: str, type: Any, what: str) -> Any:
    try:
        return msgspec.json.decode(text, type=type)
    except msgspec.DecodeError as error:
        raise StepError(f"{what} is no {getattr(type, '__name__', type)} any more: {error}") from error


class BaseSteps:
    """What both colours of context have of it. The context says how its attempt's Memory is had."""

    def _memory(self) -> Memory:
        raise NotImplementedError

    def raise_if_cancelled(self) -> None:
        """End the attempt here if anything wants it to end."""
        raise NotImplementedError

    def set_cursor(self, value: object) -> None:
        """Remember how far the running cursor step has come: any value that JSON can say, 64 KiB at most.

        Kept in memory until the attempt ends, so call it as often as you like.
        raises  StepError outside a cursor step
        """
        self._memory().set_cursor(value)

    @property
    def data(self) -> Mapping[str, object]:
        """What the job has saved, in this attempt and those before."""
        return {key: msgspec.json.decode(text) for key, text in self._memory().checkpoint.data.items()}

    def save(self, **data: object) -> None:
        """Add to the job's data; None deletes a key. It outlives the job's success."""
        self._memory().save(data)

    def progress(self, state: str, **data: object) -> None:
        """Say how far the job is: kept as `data["progress"]`."""
        self._memory().save({"progress": {"state": state, "data": data}})

    def _enter(self, name: str, *, has_cursor: bool = False) -> bool:
        self.raise_if_cancelled()
        return self._memory().checkpoint.enter(name, has_cursor=has_cursor)

    def _result(self, name: str, fn: Callable[..., object]) -> Any:
        return self._remember(name, fn, self._memory().checkpoint.done[name])

    def _remember(self, name: str, fn: Callable[..., object], text: str) -> Any:
        return _remembered(text, _result_type(fn), f"step {name!r}: its result")

    def _cursor(self, name: str, type: Any) -> Any:
        text = self._memory().checkpoint.cursor.get(name)
        return None if text is None else _remembered(text, Any if type is None else type, f"step {name!r}: its cursor")

    def _last_cursor(self, name: str, type: Any) -> Any:
        """As `_cursor`, for the step that has just been entered: it has ended if its cursor can't be read."""
        try:
            return self._cursor(name, type)
        except BaseException:
            self._memory().leave(name, None)
            raise

    def _finish(self, name: str, fn: Callable[..., object], value: R) -> R:
        """The step's function has returned `value`; what the step returns."""
        memory = self._memory()
        if memory.checkpoint.row_decides:  # not what the function returned
            marked = memory.checkpoint.marked
            memory.leave(name, None)
            return value if marked is None else cast(R, self._remember(name, fn, marked))
        try:
            text = encode_value(f"step {name!r}: result", value).decode()
        except BaseException:
            memory.leave(name, None)
            raise
        memory.leave(name, text)
        return value

    def _passed(self, name: str, key: object) -> bool:
        cursor = self._cursor(name, None)
        return cursor is not None and msgspec.to_builtins(key) <= cursor


class Steps(BaseSteps):
    """Steps of a plain function."""

    def step(self, name: str, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `fn(*args, **kwargs)` once in the life of the job; its result (JSON, 256 KiB) is remembered.

        raises  StepError for a name that was used before in this attempt, or inside another step; what `fn` raises
        """
        if not self._enter(name):
            return cast(R, self._result(name, fn))
        return self._run(name, fn, *args, **kwargs)

    @overload
    def step_cursor(self, name: str, fn: Callable[[T | None], R], /, *, type: type[T]) -> R: ...
    @overload
    def step_cursor(self, name: str, fn: Callable[[Any], R], /) -> R: ...
    def step_cursor(self, name: str, fn: Callable[[Any], R], /, *, type: Any = None) -> R:
        """As `step`, for a function that is given the last cursor it set (None at first) and goes on from there.

        type  what the cursor is, if it is more than JSON: a dataclass, a pydantic model, a datetime
        """
        if not self._enter(name, has_cursor=True):
            return cast(R, self._result(name, fn))
        return self._run(name, fn, self._last_cursor(name, type))

    def resume(self, name: str, items: Iterable[Item], *, key: Callable[[Item], Any]) -> Iterator[Item]:
        """Go through `items`, which come in ascending order of `key`, as a cursor step; those done before are left out.

        An item is done when the loop asks for the next one.
        """
        if not self._enter(name, has_cursor=True):
            return
        memory, ended = self._memory(), False
        try:
            for item in items:
                if self._passed(name, key(item)):
                    continue
                yield item
                if not memory.checkpoint.row_decides:
                    memory.set_cursor(key(item))
            ended = True
        finally:
            memory.leave(name, NULL if ended else None)

    def run_steps(self, steps: Sequence[Callable[[], object]]) -> None:
        """Run functions one after the other, each as a step that has its name."""
        for fn in steps:
            self.step(fn.__name__, fn)

    def set_step_tx(self, conn: object, result: object = None) -> None:
        """Record the running step as done in the transaction on `conn`: call it last in the step's function.

        result  what `step` returns, now and in later attempts; what the function returns is not remembered
        raises  StepError outside a step; LeaseLost if another worker may be running the job: the transaction is aborted
        """
        run(conn, self._memory().mark_done(result), in_transaction=True)

    def set_step_cursor_tx(self, conn: object, value: object) -> None:
        """Record how far the running cursor step has come in the transaction on `conn`; otherwise as `set_step_tx`."""
        run(conn, self._memory().mark_cursor(value), in_transaction=True)

    def complete_tx(self, conn: object, result: object = None) -> None:
        """Complete the job in the transaction on `conn`. If that isn't committed, the attempt has failed.

        raises  LeaseLost if another worker may be running the job: the transaction is aborted
        """
        run(conn, self._memory().completion(result), in_transaction=True)

    def _run(self, name: str, fn: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        try:
            value = fn(*args, **kwargs)
        except BaseException:
            self._memory().leave(name, None)
            raise
        return self._finish(name, fn, value)


class AsyncSteps(BaseSteps):
    """Steps of a coroutine. Their functions may be coroutine functions or plain ones."""

    async def step(self, name: str, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `fn(*args, **kwargs)` once in the life of the job; see `Steps.step`."""
        if not self._enter(name):
            return cast(R, self._result(name, fn))
        return cast(R, await self._run(name, fn, *args, **kwargs))

    async def step_cursor(self, name: str, fn: Callable[[Any], Awaitable[R]], /, *, type: Any = None) -> R:
        """As `step`, for a function that is given the last cursor it set; see `Steps.step_cursor`."""
        if not self._enter(name, has_cursor=True):
            return cast(R, self._result(name, fn))
        return cast(R, await self._run(name, fn, self._last_cursor(name, type)))

    async def resume(
        self, name: str, items: Iterable[Item] | AsyncIterable[Item], *, key: Callable[[Item], Any]
    ) -> AsyncIterator[Item]:
        """Go through `items` as a cursor step; see `Steps.resume`."""
        if not self._enter(name, has_cursor=True):
            return
        memory, ended = self._memory(), False
        try:
            async for item in _each(items):
                if self._passed(name, key(item)):
                    continue
                yield item
                if not memory.checkpoint.row_decides:
                    memory.set_cursor(key(item))
            ended = True
        finally:
            memory.leave(name, NULL if ended else None)

    async def run_steps(self, steps: Sequence[Callable[[], Awaitable[object]]]) -> None:
        """Run functions one after the other, each as a step that has its name."""
        for fn in steps:
            await self.step(fn.__name__, fn)

    async def set_step_tx(self, conn: object, result: object = None) -> None:
        """Record the running step as done in the transaction on `conn`; see `Steps.set_step_tx`."""
        await arun(conn, self._memory().mark_done(result), in_transaction=True)

    async def set_step_cursor_tx(self, conn: object, value: object) -> None:
        """Record how far the running cursor step has come; see `Steps.set_step_cursor_tx`."""
        await arun(conn, self._memory().mark_cursor(value), in_transaction=True)

    async def complete_tx(self, conn: object, result: object = None) -> None:
        """Complete the job in the transaction on `conn`; see `Steps.complete_tx`."""
        await arun(conn, self._memory().completion(result), in_transaction=True)

    async def _run(self, name: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            value = fn(*args, **kwargs)
            if inspect.isawaitable(value):
                value = await value
        except BaseException:
            self._memory().leave(name, None)
            raise
        return self._finish(name, fn, value)


async def _each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
