"""Tasks, calls, and the registry: what is handed to the sender, and what is refused before."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from pgqueue.core.draft import Args, Draft, EnqueuedJob
from pgqueue.core.retry import Retry
from pgqueue.errors import ConfigError, InvalidArguments, InvalidJob
from pgqueue.tasks.registry import Registry
from pgqueue.tasks.task import ContextTask, Executor, Task, choose_executor, draft_by_name

NOW = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)


class Post:
    """A sender that keeps what it is given, numbers it, and says on which connection and in which colour it came."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, object, Draft, list[str]]] = []

    def send(self, draft: Draft, args: Args, conn: object | None) -> list[EnqueuedJob]:
        return self.keep("sync", draft, args, conn)

    async def asend(self, draft: Draft, args: Args, conn: object | None) -> list[EnqueuedJob]:
        return self.keep("async", draft, args, conn)

    def keep(self, colour: str, draft: Draft, args: Args, conn: object | None) -> list[EnqueuedJob]:
        raw = [args.text.encode()] if args.rows == 1 else msgspec.json.decode(args.text, type=list[msgspec.Raw])
        texts = [bytes(each).decode() for each in raw]
        assert len(texts) == args.rows
        self.sent.append((colour, conn, draft, texts))
        return [EnqueuedJob(number, True, draft.kind, draft.queue) for number in range(1, args.rows + 1)]

    @property
    def last(self) -> Draft:
        return self.sent[-1][2]

    @property
    def last_args(self) -> str:
        return self.sent[-1][3][-1]


class Context:
    __pgqueue_context__ = True


def send_welcome(user_id: int, tenant_id: int, *, lang: str = "en") -> dict[str, object]:
    """Greet a new user."""
    return {"user": user_id, "lang": lang}


async def fetch(url: str) -> int:
    return len(url)


@pytest.fixture
def post() -> Post:
    return Post()


@pytest.fixture
def task(post: Post) -> Task[..., dict[str, object]]:
    return Task(send_welcome, sender=post, queue="mail", priority=3, retry=Retry(max_attempts=8), timeout=60)


def test_a_task_is_still_the_function(task: Task[..., dict[str, object]], post: Post) -> None:
    assert task(1, 2, lang="de") == {"user": 1, "lang": "de"}
    assert task.__name__ == "send_welcome"
    assert task.__doc__ == "Greet a new user."
    assert task.__wrapped__ is send_welcome
    assert post.sent == []


def test_an_enqueue_hands_the_sender_one_draft_with_the_defaults_of_the_task(
    task: Task[..., dict[str, object]], post: Post
) -> None:
    job = task.enqueue(1, tenant_id=2)
    assert job == EnqueuedJob(1, True, "send_welcome", "mail")
    expected = Draft(
        kind="send_welcome",
        queue="mail",
        priority=3,
        max_attempts=8,
        timeout=60.0,
    )
    assert post.sent == [("sync", None, expected, ['{"user_id":1,"tenant_id":2}'])]


def test_options_of_using_win_over_those_of_the_task(task: Task[..., dict[str, object]], post: Post) -> None:
    conn = object()
    call = task.using(conn, queue="slow", delay=timedelta(minutes=1), priority=-5, tags=["a"], metadata={"by": 1})
    call.enqueue(1, 2)
    assert post.sent[0][1] is conn
    assert post.last == Draft(
        kind="send_welcome",
        queue="slow",
        priority=-5,
        delay=60.0,
        max_attempts=8,
        timeout=60.0,
        tags=("a",),
        metadata='{"by":1}',
    )
    task.enqueue(1, 2)
    assert post.last.queue == "mail"


def test_the_connection_may_be_given_by_name(task: Task[..., dict[str, object]], post: Post) -> None:
    conn = object()
    task.using(conn=conn).enqueue(1, 2)
    assert post.sent[0][1] is conn


def test_async_verbs_use_the_async_sender(task: Task[..., dict[str, object]], post: Post) -> None:
    async def main() -> None:
        await task.aenqueue(1, 2)
        await task.using("conn").aenqueue(1, 2)
        await task.aenqueue_many([(1, 2)])
        await task.using("conn").aenqueue_many([(1, 2), {"user_id": 3, "tenant_id": 4}])

    asyncio.run(main())
    assert [(colour, conn, len(args)) for colour, conn, _, args in post.sent] == [
        ("async", None, 1),
        ("async", "conn", 1),
        ("async", None, 1),
        ("async", "conn", 2),
    ]


def test_rows_are_tuples_or_mappings_of_any_iterable(task: Task[..., dict[str, object]], post: Post) -> None:
    def rows() -> Iterator[Any]:
        yield (1, 2)
        yield {"user_id": 3, "tenant_id": 4, "lang": "de"}

    jobs = task.enqueue_many(rows())
    assert [job.id for job in jobs] == [1, 2]
    assert post.sent[0][3] == [
        '{"user_id":1,"tenant_id":2}',
        '{"user_id":3,"tenant_id":4,"lang":"de"}',
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            [3, 4],
            r"row 1: send_welcome\(\): a list is neither a tuple .* nor a mapping .*; for one argument write \(value",
        ),
        (5, r"row 1: send_welcome\(\): a int is neither"),
        ((3,), r"row 1: send_welcome\(\): missing argument 'tenant_id'"),
        ({"user_id": 3, "tenant": 4}, r"row 1: send_welcome\(\): unknown argument 'tenant'; did you mean 'tenant_id'"),
        (("3", 4), r"row 1: send_welcome\(\): argument 'user_id': Expected `int`, got `str`"),
        ({"user_id": 3, "tenant_id": 4, "lang": "\0"}, r"row 1: send_welcome\(\): argument 'lang': \$.lang contains a"),
    ],
)
def test_one_wrong_row_sends_nothing_and_is_named(
    task: Task[..., dict[str, object]], post: Post, row: Any, said: str
) -> None:
    with pytest.raises((InvalidArguments, InvalidJob), match=said):
        task.enqueue_many([(1, 2), row])
    assert post.sent == []


def test_rows_that_are_too_much_for_one_statement_send_nothing(
    task: Task[..., dict[str, object]], post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgqueue.tasks.task.BATCH_LIMIT", 100)
    with pytest.raises(InvalidJob, match=r"4 rows: 111 characters of JSON together, the limit is 100; send"):
        task.enqueue_many([(1, 2)] * 4)
    assert post.sent == []


def test_an_unknown_option_is_refused_by_using(task: Task[..., dict[str, object]]) -> None:
    with pytest.raises(InvalidArguments, match="unknown option 'prioritty'; did you mean 'priority'"):
        task.using(prioritty=1)  # type: ignore[call-arg]


def test_an_option_outside_its_limits_is_refused_by_using(task: Task[..., dict[str, object]]) -> None:
    with pytest.raises(InvalidJob, match="delay -1"):
        task.using(delay=-1)


def test_the_validator_sees_the_call_and_may_refuse_it(post: Post) -> None:
    seen: list[object] = []

    def check(user_id: int, tenant_id: int, *, lang: str = "en") -> None:
        seen.append((user_id, tenant_id, lang))
        if tenant_id == 0:
            raise ValueError("no such tenant")

    task: Task[..., object] = Task(send_welcome, sender=post, validate=check)
    task.enqueue(1, 2)
    task.enqueue_many([{"user_id": 3, "tenant_id": 4, "lang": "de"}])
    assert seen == [(1, 2, "en"), (3, 4, "de")]
    with pytest.raises(ValueError, match="no such tenant"):
        task.enqueue(1, 0)
    with pytest.raises(InvalidArguments):
        task.enqueue("1", 0)
    assert len(seen) == 3
    assert len(post.sent) == 2


def test_a_context_is_not_an_argument_of_the_enqueue(post: Post) -> None:
    def load(ctx: Context, path: str) -> tuple[Context, str]:
        return ctx, path

    task: ContextTask[Context, [str], tuple[Context, str]] = ContextTask(load, sender=post)
    task.enqueue("a")
    assert task.takes_context
    assert post.last_args == '{"path":"a"}'
    context = Context()
    assert task(context, "a") == (context, "a")


def thread_fn() -> None: ...
async def async_fn() -> None: ...


@pytest.mark.parametrize(
    ("fn", "wanted", "chosen"),
    [
        (thread_fn, None, "thread"),
        (thread_fn, "thread", "thread"),
        (thread_fn, "process", "process"),
        (async_fn, None, "async"),
        (async_fn, "async", "async"),
        (async_fn, "process", "process"),
    ],
)
def test_the_executor_follows_the_function(fn: Callable[[], object], wanted: Executor | None, chosen: str) -> None:
    assert choose_executor(fn, wanted) == chosen


@pytest.mark.parametrize(
    ("fn", "wanted", "said"),
    [
        (thread_fn, "async", r'thread_fn\(\): executor="async" needs `async def`'),
        (async_fn, "thread", r'async_fn\(\) is `async def` and can\'t run with executor="thread"; leave executor out'),
        (thread_fn, "fiber", r"executor 'fiber': must be \"async\", \"thread\" or \"process\""),
    ],
)
def test_an_executor_that_can_not_run_the_function_is_refused(fn: Callable[[], object], wanted: str, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        choose_executor(fn, wanted)


def counting() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("fn", "options", "error", "said"),
    [
        (counting, {}, TypeError, r"counting\(\) is a generator and can't be a task"),
        (Post, {}, TypeError, "decorate a function"),
        (7, {}, TypeError, "7 can't be a task; decorate a function"),
        (functools.partial(send_welcome, 1), {}, TypeError, "decorate a function"),
        (lambda: None, {}, InvalidJob, "name '<lambda>': must be"),
        (send_welcome, {"name": "a b"}, InvalidJob, "name 'a b'"),
        (send_welcome, {"queue": ""}, InvalidJob, "queue ''"),
        (send_welcome, {"priority": 99999}, InvalidJob, "priority 99999"),
        (send_welcome, {"timeout": 0}, InvalidJob, "timeout 0"),
        (send_welcome, {"retry": 5}, TypeError, "retry 5: must be a Retry"),
        (send_welcome, {"validate": async_fn}, TypeError, "must be a plain function with the task's parameters"),
        (send_welcome, {"validate": 7}, TypeError, "validate 7"),
    ],
)
def test_what_can_not_be_a_task_is_refused_when_it_is_decorated(
    post: Post, fn: Any, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        Task(fn, sender=post, **options)


def test_a_task_can_not_be_decorated_twice(post: Post) -> None:
    task: Task[[], object] = Task(async_fn, sender=post)
    with pytest.raises(TypeError, match=r"<Task 'async_fn' .*test_task.py.* is a task already"):
        Task(task, sender=post)


def test_a_job_by_name_needs_no_signature() -> None:
    assert draft_by_name("billing.charge", delay=1, queue="money") == Draft(
        kind="billing.charge", queue="money", delay=1.0
    )
    with pytest.raises(InvalidJob, match="kind 'bill ing'"):
        draft_by_name("bill ing")
    with pytest.raises(InvalidArguments, match="unknown option 'que'; did you mean 'queue'"):
        draft_by_name("billing.charge", que="x")  # type: ignore[call-arg]


def test_the_registry_finds_tasks_by_name(post: Post, task: Task[..., dict[str, object]]) -> None:
    registry = Registry()
    other: Task[..., object] = Task(fetch, sender=post, name="web.fetch")
    registry.add(task)
    registry.add(other)
    assert registry["web.fetch"] is other
    assert registry.find("nothing") is None
    assert registry.kinds() == ("send_welcome", "web.fetch")
    assert "send_welcome" in registry
    assert list(registry) == [task, other]
    assert len(registry) == 2


def test_an_unknown_kind_is_told_the_nearest(task: Task[..., dict[str, object]]) -> None:
    registry = Registry()
    with pytest.raises(ConfigError, match="no task is named 'x'; there are none"):
        registry["x"]
    registry.add(task)
    with pytest.raises(ConfigError, match="no task is named 'send_welcom'; did you mean 'send_welcome'"):
        registry["send_welcom"]


def test_one_name_for_two_functions_is_an_error_that_names_both(post: Post, task: Task[..., dict[str, object]]) -> None:
    registry = Registry()
    registry.add(task)
    with pytest.raises(
        ValueError, match=r"two tasks are named 'send_welcome': .*\.send_welcome, .*:\d+ and .*\.fetch, "
    ):
        registry.add(Task(fetch, sender=post, name="send_welcome"))
    assert registry["send_welcome"] is task


def test_a_module_that_is_loaded_again_replaces_its_tasks(post: Post) -> None:
    registry = Registry()
    source = compile("def again(n: int) -> None: ...", "again.py", "exec")
    for _ in range(2):
        module: dict[str, Any] = {"__name__": "again"}
        exec(source, module)  # noqa: S102  # what importlib.reload does
        task: Task[..., None] = Task(module["again"], sender=post)
        registry.add(task)
    assert registry["again"] is task
    assert len(registry) == 1


def test_importing_tasks_loads_no_database_driver() -> None:
    code = (
        "import sys, pgqueue.tasks.task, pgqueue.tasks.registry;"
        "print([name for name in ('psycopg', 'sqlalchemy', 'pydantic', 'click', 'asyncio') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_pydantic_models_are_stored_and_come_back(post: Post) -> None:
    pydantic = pytest.importorskip("pydantic")

    class Parcel(pydantic.BaseModel):  # type: ignore[misc,name-defined]  # pydantic is optional here
        model_config = pydantic.ConfigDict(strict=True)
        weight_grams: int = pydantic.Field(alias="weightGrams")
        sent_at: datetime

        @pydantic.computed_field  # type: ignore[untyped-decorator]
        def heavy(self) -> bool:
            return bool(self.weight_grams > 10_000)

    def ship(parcels: Any, main: Any = None) -> None: ...

    ship.__annotations__.update(parcels=list[Parcel], main=Parcel | None)
    task: Task[..., None] = Task(ship, sender=post)
    parcel = Parcel(weightGrams=5, sent_at=NOW)
    task.enqueue([parcel], main=parcel)
    assert json.loads(post.last_args)["main"] == {"weightGrams": 5, "sent_at": "2026-01-02T03:04:05.000006Z"}
    assert task.codec.decode(post.last_args) == {"parcels": [parcel], "main": parcel}
    with pytest.raises(InvalidArguments, match=r"ship\(\): argument 'parcels': .*valid integer.* at `\$.parcels\[0\]`"):
        task.enqueue([{"weightGrams": "5", "sent_at": "2026-01-02T03:04:05Z"}])
