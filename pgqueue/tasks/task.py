"""A task: a Python function that can be enqueued, and still is that function.

Guarantees: everything is checked before anything is sent, options when `using` is called and arguments when `enqueue`
is; type checkers see the function's own parameters in both.
Never: I/O. A task makes drafts; the `Sender` it was given (the queue object) sends them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeVar, Unpack

from pgqueue.core.draft import Args, Draft, EnqueuedJob
from pgqueue.core.retry import Retry
from pgqueue.errors import InvalidArguments, InvalidJob, PgqueueError
from pgqueue.tasks.args import ArgsCodec
from pgqueue.tasks.door import Options, check_name, check_options, check_priority, check_timeout

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
C_contra = TypeVar("C_contra", contravariant=True)

Executor = Literal["async", "thread", "process"]

CHECKPOINT_EVERY = 10.0
ROWS_AT_ONCE = 500
BATCH_LIMIT = 32 * 1024 * 1024  # characters; small numbers grow sixfold in PostgreSQL, whose limit is 256 MiB


class Sender(Protocol):
    """Who inserts jobs: in the caller's transaction if there is a `conn`, else in one of its own."""

    def send(self, draft: Draft, args: Args, conn: object | None) -> list[EnqueuedJob]:
        """Insert the jobs with these arguments, and answer for each in order."""

    async def asend(self, draft: Draft, args: Args, conn: object | None) -> list[EnqueuedJob]:
        """As `send`, on an async connection."""


class Task(Generic[P, R_co]):
    """What `@q.task(...)` returns.

    name           the kind that is stored with the job
    executor       "async" for coroutine functions and "thread" for others, unless "process" was asked for
    timeout        seconds, or None
    checkpoint_every  seconds after which the steps of a running attempt are made durable, or None: when it ends
    takes_context  the worker passes a context first; then `P` is what comes after it
    codec          arguments to JSON and back
    validate       called with the arguments, as the function would be, before anything is sent; raises to refuse them
    draft          what its jobs are without options

    raises  TypeError for a function that can't be a task, InvalidJob for a value outside its limits
    """

    __name__: str  # set by functools.update_wrapper, as are __doc__, __module__ and __qualname__
    __wrapped__: Callable[..., R_co]

    def __init__(
        self,
        fn: Callable[..., R_co],
        *,
        sender: Sender,
        name: str | None = None,
        queue: str = "default",
        priority: int = 0,
        retry: Retry | None = None,
        timeout: timedelta | float | None = None,
        executor: Executor | None = None,
        validate: Callable[..., object] | None = None,
        checkpoint_every: timedelta | float | None = CHECKPOINT_EVERY,
    ) -> None:
        _check_function(fn)
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.sender = sender
        self.name = check_name(getattr(fn, "__name__", None) if name is None else name, "name")
        self.queue = check_name(queue, "queue")
        self.priority = check_priority(priority)
        self.retry = _check_retry(retry)
        self.timeout = None if timeout is None else check_timeout(timeout)
        self.checkpoint_every = (
            None if checkpoint_every is None else check_timeout(checkpoint_every, "checkpoint_every")
        )
        self.executor = choose_executor(fn, executor)
        self.validate = _check_validate(validate)
        self.codec = ArgsCodec(fn)
        self.takes_context = self.codec.takes_context
        self.draft = Draft(
            kind=self.name,
            queue=self.queue,
            priority=self.priority,
            max_attempts=self.retry.max_attempts,
            timeout=self.timeout,
        )
        self._call: Call[P, R_co] = Call(self, self.draft, None)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function itself, here and now; nothing is enqueued."""
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name!r} ({self.place})>"

    @property
    def place(self) -> str:
        """Where the function is defined: module, name, file and line."""
        fn = inspect.unwrap(self.fn)
        code = getattr(fn, "__code__", None)
        line = f", {code.co_filename}:{code.co_firstlineno}" if code is not None else ""
        return f"{fn.__module__}.{getattr(fn, '__qualname__', self.name)}{line}"

    def using(self, conn: object | None = None, **options: Unpack[Options]) -> Call[P, R_co]:
        """The task with options for the jobs that are enqueued through the answer, on `conn` if given.

        raises  InvalidArguments for an option that does not exist, InvalidJob for a value outside its limits
        """
        return Call(self, apply_options(self.draft, options), conn)

    def enqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> EnqueuedJob:
        """Insert one job with these arguments.

        raises  InvalidArguments, InvalidJob: before anything is sent
        """
        return self._call.enqueue(*args, **kwargs)

    async def aenqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> EnqueuedJob:
        """As `enqueue`, awaited."""
        return await self._call.aenqueue(*args, **kwargs)

    def enqueue_many(self, rows: Iterable[Row]) -> list[EnqueuedJob]:
        """Insert one job per row, all or none, in one statement.

        rows    tuples (arguments by position) or mappings (by name)
        raises  InvalidArguments, InvalidJob naming the row: before anything is sent
        """
        return self._call.enqueue_many(rows)

    async def aenqueue_many(self, rows: Iterable[Row]) -> list[EnqueuedJob]:
        """As `enqueue_many`, awaited."""
        return await self._call.aenqueue_many(rows)

    def args_text(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> str:
        """The JSON text of the arguments, bound, validated and checked."""
        text = self.codec.encode(args, kwargs)
        if self.validate is not None:
            self.validate(*args, **kwargs)
        return text


class ContextTask(Task[P, R_co], Generic[C_contra, P, R_co]):
    """A task whose function takes a context first: the worker passes it; a plain call has to."""

    def __call__(self, context: C_contra, /, *args: P.args, **kwargs: P.kwargs) -> R_co:  # type: ignore[override]
        """Call the function itself, here and now, with a context of yours."""
        return self.fn(context, *args, **kwargs)


Row = tuple[object, ...] | Mapping[str, object]


class Call(Generic[P, R_co]):
    """A task with the options and the connection of one `using`; may be used for any number of jobs."""

    __slots__ = ("conn", "draft", "task")

    def __init__(self, task: Task[P, R_co], draft: Draft, conn: object | None) -> None:
        self.task = task
        self.draft = draft
        self.conn = conn

    def enqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> EnqueuedJob:
        """Insert one job with these arguments; see `Task.enqueue`."""
        (job,) = self.task.sender.send(self.draft, Args(self.task.args_text(args, kwargs)), self.conn)
        return job

    async def aenqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> EnqueuedJob:
        """As `enqueue`, awaited."""
        (job,) = await self.task.sender.asend(self.draft, Args(self.task.args_text(args, kwargs)), self.conn)
        return job

    def enqueue_many(self, rows: Iterable[Row]) -> list[EnqueuedJob]:
        """Insert one job per row, all or none; see `Task.enqueue_many`."""
        return self.task.sender.send(self.draft, self.all_args(rows), self.conn)

    async def aenqueue_many(self, rows: Iterable[Row]) -> list[EnqueuedJob]:
        """As `enqueue_many`, awaited."""
        return await self.task.sender.asend(self.draft, self.all_args(rows), self.conn)

    def all_args(self, rows: Iterable[Row]) -> Args:
        """The arguments in `rows`, in order.

        raises  InvalidArguments, InvalidJob naming the row
        """
        given = list(rows)
        texts: list[str] = []
        for first in range(0, len(given), ROWS_AT_ONCE):
            part = given[first : first + ROWS_AT_ONCE]
            text = self.task.codec.encode_rows(part) if self.task.validate is None else None
            texts.append(text[1:-1] if text is not None else self._one_by_one(part, first))
        text = ",".join(texts)
        if len(text) > BATCH_LIMIT:
            raise InvalidJob(
                f"{len(given)} rows: {len(text)} characters of JSON together, the limit is {BATCH_LIMIT};"
                " send them in parts"
            )
        return Args(text if len(given) == 1 else f"[{text}]", len(given))

    def _one_by_one(self, rows: Sequence[Row], first: int) -> str:
        texts: list[str] = []
        args_text = self.task.args_text
        for row in rows:
            try:
                if isinstance(row, tuple):
                    texts.append(args_text(row, {}))
                elif isinstance(row, Mapping):
                    texts.append(args_text((), row))
                else:
                    raise InvalidArguments(
                        f"{self.task.codec.title}: a {type(row).__name__} is neither a tuple (arguments by position)"
                        " nor a mapping (by name); for one argument write (value,)"
                    )
            except PgqueueError as error:
                raise type(error)(f"row {first + len(texts)}: {error}") from error
        return ",".join(texts)


def draft_by_name(kind: str, **options: Unpack[Options]) -> Draft:
    """Jobs of a task that may live in another code base.

    raises  InvalidArguments for an option that does not exist, InvalidJob for a value outside its limits
    """
    return apply_options(Draft(kind=check_name(kind, "kind")), options)


def apply_options(draft: Draft, options: Mapping[str, object] | Options) -> Draft:
    """The draft with checked options in place of its own."""
    if not options:
        return draft
    changes: dict[str, Any] = check_options(options)  # each value has its field's type: the door saw to it
    return replace(draft, **changes)


def choose_executor(fn: Callable[..., object], wanted: str | None) -> Executor:
    """Where a task runs: as asked for, or as its function is written.

    raises  TypeError if that can't be
    """
    is_async = inspect.iscoroutinefunction(fn)
    title = getattr(fn, "__name__", repr(fn))
    match wanted:
        case None:
            return "async" if is_async else "thread"
        case "process":
            return "process"
        case "async" if is_async:
            return "async"
        case "thread" if not is_async:
            return "thread"
        case "async":
            raise TypeError(f'{title}(): executor="async" needs `async def`; leave executor out, or make it async')
        case "thread":
            raise TypeError(f'{title}() is `async def` and can\'t run with executor="thread"; leave executor out')
    raise TypeError(f'{title}(): executor {wanted!r}: must be "async", "thread" or "process"')


def _check_function(fn: object) -> None:
    if isinstance(fn, Task):
        raise TypeError(f"{fn!r} is a task already; decorate the function once")
    if not inspect.isroutine(fn):
        raise TypeError(f"{fn!r} can't be a task; decorate a function")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise TypeError(f"{fn.__name__}() is a generator and can't be a task; return a value instead of yielding")


def _check_retry(retry: object) -> Retry:
    if retry is None:
        return Retry()
    if not isinstance(retry, Retry):
        raise TypeError(f"retry {retry!r}: must be a Retry, such as Retry(max_attempts=5)")
    return retry


def _check_validate(validate: object) -> Callable[..., object] | None:
    if validate is None or (callable(validate) and not inspect.iscoroutinefunction(validate)):
        return validate
    raise TypeError(f"validate {validate!r}: must be a plain function with the task's parameters")
