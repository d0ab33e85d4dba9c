"""What the conformance tests share: acts by name, and a queue whose jobs do them.

    plays.run([step("one"), step("two", fail("broken"))], [step("one"), step("two")])

enqueues a job whose first run fails in its second step, and whose second run does not; works until the job is final;
and answers with all that can be seen of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Literal, TypeAlias, Unpack

import msgspec
import psycopg

from pgqueue import Job, PgQueue, Retry, State
from pgqueue.db.adapt import run as run_statement
from pgqueue.store import cluster
from pgqueue.tasks.door import Options
from pgqueue.worker import WorkerSettings
from tests.conformance import deeds
from tests.conformance.deeds import Act, Scene
from tests.engine.kit import PATIENCE, errors_of, until, value, working

Json: TypeAlias = Any
Executor: TypeAlias = Literal["thread", "async", "process"]


# Acts


def note(text: str) -> Act:
    return Act("note", text)


def step(name: str, *acts: Act, result: Json = None) -> Act:
    return Act("step", name, result, acts)


def cursor(name: str, *acts: Act, result: Json = None) -> Act:
    return Act("cursor", name, result, acts)


def set_cursor(value: Json) -> Act:
    return Act("set_cursor", value=value)


def save(key: str, value: Json) -> Act:
    return Act("save", key, value)


def catch(*acts: Act) -> Act:
    return Act("catch", acts=acts)


def meanwhile(first: Act, *others: Act) -> Act:
    return Act("meanwhile", acts=(first, *others))


def fail(text: str = "broken") -> Act:
    return Act("fail", text)


def snooze(seconds: float) -> Act:
    return Act("snooze", value=seconds)


def cancel(reason: str) -> Act:
    return Act("cancel", reason)


def discard(reason: str) -> Act:
    return Act("discard", reason)


def die() -> Act:
    return Act("die", value=os.getpid())


def wait(how: str = "") -> Act:
    return Act("wait", how)


def commit(*acts: Act) -> Act:
    return Act("tx", "commit", acts=acts)


def rollback(*acts: Act) -> Act:
    return Act("tx", "rollback", acts=acts)


def insert(n: int) -> Act:
    return Act("insert", value=n)


def mark(result: Json = None) -> Act:
    return Act("mark", value=result)


def mark_cursor(value: Json) -> Act:
    return Act("mark_cursor", value=value)


def complete(result: Json = None) -> Act:
    return Act("complete", value=result)


# Jobs


@dataclass(frozen=True, slots=True)
class Seen:
    """A job at one moment.

    diary       what its runs have done, in order
    checkpoint  what is stored of its steps, None for nothing
    errors      type and message of each attempt that failed
    """

    job: Job
    diary: list[str]
    checkpoint: Json
    errors: list[tuple[object, object]]

    @property
    def state(self) -> State:
        return self.job.state

    @property
    def error(self) -> str:
        """The message of the last attempt that failed."""
        return str(self.errors[-1][1])


class Plays:
    """Jobs whose runs do as they are told, on one executor."""

    def __init__(self, q: PgQueue, admin: psycopg.Connection, scene: Scene, executor: Executor) -> None:
        self.q = q
        self.admin = admin
        self.executor = executor
        self._scene = scene
        fn: Callable[..., object] = deeds.aplay if executor == "async" else deeds.play
        q.task(name="play", executor=executor, retry=Retry(cap=0))(fn)

    def enqueue(self, *runs: list[Act], **using: Unpack[Options]) -> int:
        """A job that may fail as often as it has runs."""
        using.setdefault("max_attempts", len(runs))
        return self.q.enqueue("play", msgspec.to_builtins({"runs": runs, "scene": self._scene}), **using).id

    def run(self, *runs: list[Act], **using: Unpack[Options]) -> Seen:
        """The job of these runs, once it is final."""
        return self.work(self.enqueue(*runs, **using))

    def work(self, id: int) -> Seen:
        """The job, once a worker has made it final."""
        with working(self.q):
            self.q.wait(id, PATIENCE)
        return self.see(id)

    def reaches(self, id: int, state: State) -> Seen:
        """The job, once a worker has brought it to a state from which it does not go on by itself."""
        with working(self.q):
            until(self.admin, "select state = %s from pgqueue.jobs where id = %s", state, id)
        return self.see(id)

    def retry(self, id: int, *, restart: bool = False) -> Seen:
        """The job, once it is final after a retry."""
        assert self.q.retry(id, restart=restart) == "available"
        return self.work(id)

    def see(self, id: int) -> Seen:
        job = self.q.job(id)
        return Seen(job, self.diary, self.checkpoint(id), errors_of(job))

    @property
    def diary(self) -> list[str]:
        path = Path(self._scene.diary)
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line != deeds.BEGIN]

    def checkpoint(self, id: int) -> Json:
        return value(self.admin, "select metadata -> 'pgqueue' from pgqueue.jobs where id = %s", id)

    def store(self, id: int, checkpoint: Json) -> None:
        """Leave the job's row as earlier attempts would have left it."""
        self.admin.execute(
            "update pgqueue.job set metadata = metadata || jsonb_build_object('pgqueue', %s::jsonb) where id = %s",
            [json.dumps(checkpoint), id],
        )

    @contextmanager
    def waiting(self, **settings: Unpack[WorkerSettings]) -> Iterator[None]:
        """While a job waits in its run; the worker ends with the block."""
        with working(self.q, **settings):
            self.heard("waiting")
            yield

    def heard(self, line: str, times: int = 1) -> None:
        """Wait until the diary has this line."""
        pause = Event()
        for _ in range(int(PATIENCE * 100)):
            if self.diary.count(line) >= times:
                return
            pause.wait(0.01)
        raise AssertionError(f"never written: {line!r}; but {self.diary}")

    def open_gate(self) -> None:
        """Let go what waits, from now on."""
        Path(self._scene.gate).touch()

    def imported(self) -> list[int]:
        """What the job's transactions have inserted."""
        found = self.admin.execute("select n from imported order by n").fetchall()
        return [n for (n,) in found]

    def take_away(self) -> None:
        """All workers are presumed dead, and their jobs taken from them, though they live on."""
        with self.admin.transaction():  # so that no heartbeat comes between
            self.admin.execute("update pgqueue.worker set seen_at = seen_at - interval '1 hour'")
            taken, left = run_statement(self.admin, cluster.rescue(schema="pgqueue"))
        assert (taken, left) == (1, 0)
