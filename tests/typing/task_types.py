"""What type checkers see of a task: read by mypy, never run. An ignore that is not needed is an error too."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar, assert_type, overload

from pgqueue.core.draft import EnqueuedJob
from pgqueue.tasks.task import Call, ContextTask, Sender, Task, draft_by_name

P = ParamSpec("P")
R = TypeVar("R")


class Context:
    __pgqueue_context__ = True


class Queue:
    """The decorator of the queue object, as far as types go."""

    sender: Sender

    @overload
    def task(self, fn: Callable[Concatenate[Context, P], R], /) -> ContextTask[Context, P, R]: ...
    @overload
    def task(self, fn: Callable[P, R], /) -> Task[P, R]: ...
    def task(self, fn: Callable[..., Any], /) -> Task[..., Any]:
        raise NotImplementedError


q = Queue()


@q.task
def send_welcome(user_id: int, tenant_id: int, *, lang: str = "en") -> dict[str, int]:
    return {"user": user_id}


@q.task
async def fetch(url: str) -> int:
    return len(url)


@q.task
def load(ctx: Context, path: str, rows: int = 0) -> bool:
    return True


async def a_task_keeps_the_types_of_its_function() -> None:
    assert_type(send_welcome(1, 2, lang="de"), dict[str, int])
    coroutine: Coroutine[Any, Any, int] = fetch("x")
    assert_type(await coroutine, int)
    send_welcome("1", 2)  # type: ignore[arg-type]


def arguments_are_checked_where_they_are_enqueued() -> None:
    assert_type(send_welcome.enqueue(1, 2), EnqueuedJob)
    assert_type(send_welcome.using(None, delay=30).enqueue(1, tenant_id=2, lang="de"), EnqueuedJob)
    send_welcome.enqueue(1)  # type: ignore[call-arg]
    send_welcome.enqueue("1", 2)  # type: ignore[arg-type]
    send_welcome.using(object()).enqueue(1, 2, language="de")  # type: ignore[call-arg]


async def async_verbs_are_checked_alike() -> None:
    assert_type(await fetch.aenqueue("x"), EnqueuedJob)
    await fetch.using().aenqueue(1)  # type: ignore[arg-type]
    assert_type(await fetch.aenqueue_many([("x",)]), list[EnqueuedJob])


def options_are_checked_by_name_and_type() -> None:
    call = send_welcome.using(object(), delay=timedelta(1), priority=1, scheduled_at=datetime.now(UTC), tags=["a"])
    assert_type(call.enqueue(1, 2), EnqueuedJob)
    send_welcome.using(prio=1)  # type: ignore[call-arg]
    send_welcome.using(priority="high")  # type: ignore[arg-type]
    send_welcome.using(delay="1s")  # type: ignore[arg-type]
    draft_by_name("billing.charge", delay=1)
    draft_by_name("billing.charge", dely=1)  # type: ignore[call-arg]


def the_context_is_the_workers_to_pass() -> None:
    assert_type(load.enqueue("x", rows=1), EnqueuedJob)
    assert_type(load.using(queue="slow").enqueue("x"), EnqueuedJob)
    assert_type(load(Context(), "x"), bool)
    load.enqueue(Context(), "x")  # type: ignore[arg-type]
    load("x")  # type: ignore[call-arg,arg-type]


def rows_are_tuples_or_mappings() -> None:
    assert_type(send_welcome.enqueue_many([(1, 2), {"user_id": 3, "tenant_id": 4}]), list[EnqueuedJob])
    send_welcome.enqueue_many([[1, 2]])  # type: ignore[list-item]


def a_call_can_be_kept(call: Call[[int], None]) -> None:
    call.enqueue(1)
    call.enqueue("1")  # type: ignore[arg-type]
