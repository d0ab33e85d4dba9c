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
from typing import Any, ParamSpec, TypeVar, cast, get_type_hints, overload

import msgspec

from pgqueue.core.checkpoint import NULL, Checkpoint, StepError
from pgqueue.db.adapt import arun, run
from pgqueue.db.drivers import class_name, commits_alone
from pgqueue.errors import InvalidConnection
from pgqueue.store import jobs
from pgqueue.store.statement import Statement
from pgqueue.tasks.json_text import encode_value

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """What an attempt must show when it writes about its job."""

    job: int
    claim: int
    lease: int
    kind: str
    schema: str


class _Stored(msgspec.Struct):
    done: dict[str, msgspec.Raw] = {}
    cursor: dict[str, msgspec.Raw] = {}
    data: dict[str, msgspec.Raw] = {}


class _Metadata(msgspec.Struct):
    pgqueue: _Stored = msgspec.field(default_factory=_Stored)


_read_metadata = msgspec.json.Decoder(_Metadata).decode


class Memory:
    """What one attempt remembers for the next. All contexts of an attempt share it.

    metadata    that of a job that has a checkpoint, else None
    completing  complete_tx was called: the job's row tells whether that was committed
    on_change   called with each addition, as a patch
    """

    def __init__(
        self, fence: Fence, metadata: str | None, on_change: Callable[[str], None] = lambda patch: None
    ) -> None:
        self.fence = fence
        self.completing = False
        self.on_change = on_change
        self._checkpoint = _load(metadata, fence)

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
        """The running step has ended."""
        self.checkpoint.leave(result)
        if result is not None and name in self.checkpoint.done:  # not if its row in a transaction decides
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

    def mark(self, *, cursor: object = None, has_cursor: bool) -> Statement[None]:
        """The running step's row in the caller's transaction."""
        fence = self.fence
        text = encode_value("cursor", cursor).decode() if has_cursor else NULL
        verb, part = ("set_step_cursor_tx", "cursor") if has_cursor else ("set_step_tx", "done")
        name = self.checkpoint.begin_tx(verb, has_cursor=has_cursor, value=text)
        return jobs.set_checkpoint(
            fence.job, fence.claim, fence.lease, part=part, name=name, value=text, schema=fence.schema
        )

    def completion(self, result: object) -> Statement[None]:
        """The job's completion in the caller's transaction."""
        text = None if result is None else encode_value("result", result).decode()
        self.completing = True
        self.on_change('{"completing":true}')
        fence = self.fence
        return jobs.complete_tx(
            fence.job, fence.claim, fence.lease, result=text, started_us=None, patch=self.patch(), schema=fence.schema
        )


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


def _load(metadata: str | None, fence: Fence) -> Checkpoint | StepError:
    if metadata is None:
        return Checkpoint()
    try:
        stored = _read_metadata(metadata).pgqueue
    except msgspec.DecodeError as error:
        return StepError(
            f"job {fence.job} ({fence.kind}): its checkpoint can't be read ({error}); repair the key pgqueue of its"
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
        return _remembered(self._memory().checkpoint.done[name], _result_type(fn), f"step {name!r}: its result")

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
                memory.set_cursor(key(item))
            ended = True
        finally:
            memory.leave(name, NULL if ended else None)

    def run_steps(self, steps: Sequence[Callable[[], object]]) -> None:
        """Run functions one after the other, each as a step that has its name."""
        for fn in steps:
            self.step(fn.__name__, fn)

    def set_step_tx(self, conn: object) -> None:
        """Record the running step as done in the transaction on `conn`: call it last in the step's function.

        raises  StepError outside a step; LeaseLost if another worker may be running the job: the transaction is aborted
        """
        statement = self._memory().mark(has_cursor=False)
        run(_transactional(conn), statement)

    def set_step_cursor_tx(self, conn: object, value: object) -> None:
        """Record how far the running cursor step has come in the transaction on `conn`; otherwise as `set_step_tx`."""
        statement = self._memory().mark(cursor=value, has_cursor=True)
        run(_transactional(conn), statement)

    def complete_tx(self, conn: object, result: object = None) -> None:
        """Complete the job in the transaction on `conn`. If that isn't committed, the attempt has failed.

        raises  LeaseLost if another worker may be running the job: the transaction is aborted
        """
        statement = self._memory().completion(result)
        run(_transactional(conn), statement)

    def _run(self, name: str, fn: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        memory, text = self._memory(), None
        try:
            value = fn(*args, **kwargs)
            text = encode_value(f"step {name!r}: result", value).decode()
        finally:
            memory.leave(name, text)
        return value


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
                memory.set_cursor(key(item))
            ended = True
        finally:
            memory.leave(name, NULL if ended else None)

    async def run_steps(self, steps: Sequence[Callable[[], Awaitable[object]]]) -> None:
        """Run functions one after the other, each as a step that has its name."""
        for fn in steps:
            await self.step(fn.__name__, fn)

    async def set_step_tx(self, conn: object) -> None:
        """Record the running step as done in the transaction on `conn`; see `Steps.set_step_tx`."""
        statement = self._memory().mark(has_cursor=False)
        await arun(_transactional(conn), statement)

    async def set_step_cursor_tx(self, conn: object, value: object) -> None:
        """Record how far the running cursor step has come; see `Steps.set_step_cursor_tx`."""
        statement = self._memory().mark(cursor=value, has_cursor=True)
        await arun(_transactional(conn), statement)

    async def complete_tx(self, conn: object, result: object = None) -> None:
        """Complete the job in the transaction on `conn`; see `Steps.complete_tx`."""
        statement = self._memory().completion(result)
        await arun(_transactional(conn), statement)

    async def _run(self, name: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        memory, text = self._memory(), None
        try:
            value = fn(*args, **kwargs)
            if inspect.isawaitable(value):
                value = await value
            text = encode_value(f"step {name!r}: result", value).decode()
        finally:
            memory.leave(name, text)
        return value


def _transactional(conn: object) -> object:
    """The connection, if what is written on it commits together with the caller's work."""
    if commits_alone(conn):
        raise InvalidConnection(
            f"this {class_name(conn)} is in autocommit mode, so that the mark would not commit together with your work:"
            " open a transaction on it first"
        )
    return conn


async def _each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
