"""One task for all conformance tests: its arguments say what each run of it does.

A job has a list of runs, each a list of `Act`s; its first run does the first list, and so on (the last one again and
again), however the run before ended. What it does is written to a file, the diary, which outlives any kill. `play` and
`aplay` are the same in both colours, at the top level of a module, so that a process of its own finds them.
`python -m tests.conformance.deeds DSN` is a worker for them.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psycopg

from pgqueue import AsyncContext, Cancel, Context, Discard, PgQueue, Snooze

Play = Callable[[], Coroutine[Any, Any, object]]
BEGIN = "--"  # a line of the diary: a run begins


@dataclass(frozen=True, slots=True)
class Act:
    """One thing to do.

    do     a method of `Player`
    name   of a step, or of anything else
    value  a step's result, a cursor, a number: what JSON can say
    acts   what is done inside of it
    """

    do: str
    name: str = ""
    value: Any = None
    acts: tuple[Act, ...] = ()


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a job plays: its diary, the file whose appearance ends a `wait`, and the database."""

    diary: str
    gate: str
    dsn: str


def play(ctx: Context, runs: list[list[Act]], scene: Scene) -> dict[str, Any]:
    """The task as a plain function; returns what its steps have returned."""
    results: dict[str, Any] = _at_once(Player(_Plain(ctx), scene).perform(runs))
    return results


async def aplay(ctx: AsyncContext, runs: list[list[Act]], scene: Scene) -> dict[str, Any]:
    """The task as a coroutine."""
    return await Player(_Coroutine(ctx), scene).perform(runs)


class Face(Protocol):
    """What a player needs of a context and of connections, whatever their colour."""

    @property
    def ctx(self) -> Context | AsyncContext: ...
    async def step(self, name: str, fn: Play) -> object: ...
    async def step_cursor(self, name: str, fn: Callable[[Any], Coroutine[Any, Any, object]]) -> object: ...
    async def connect(self, dsn: str) -> None: ...
    async def sql(self, query: str, *params: object) -> None: ...
    async def close(self) -> None: ...
    async def mark(self, result: object) -> None: ...
    async def mark_cursor(self, value: object) -> None: ...
    async def complete(self, result: object) -> None: ...
    async def pause(self, *, deaf: bool = False) -> None: ...
    def begin(self, fn: Play) -> Callable[[], Awaitable[object]]: ...


class Player:
    """Does what acts say, and writes it down."""

    def __init__(self, face: Face, scene: Scene) -> None:
        self._face = face
        self._scene = scene
        self._results: dict[str, Any] = {}

    async def perform(self, runs: list[list[Act]]) -> dict[str, Any]:
        """Do what this run of the job is to do."""
        before = self._read().count(BEGIN)
        self._write(BEGIN)
        await self._do(runs[min(before, len(runs) - 1)])
        return self._results

    async def _do(self, acts: tuple[Act, ...] | list[Act]) -> None:
        for act in acts:
            await getattr(self, act.do)(act)

    def _read(self) -> list[str]:
        path = Path(self._scene.diary)
        return path.read_text().splitlines() if path.exists() else []

    def _write(self, line: str) -> None:
        fd = os.open(self._scene.diary, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, f"{line}\n".encode())
        os.close(fd)

    def _gate_is_open(self) -> bool:
        return Path(self._scene.gate).exists()

    def _open_gate(self) -> None:
        Path(self._scene.gate).touch()

    async def note(self, act: Act) -> None:
        self._write(act.name)

    async def step(self, act: Act) -> None:
        async def fn() -> object:
            self._write(act.name)
            await self._do(act.acts)
            return act.value

        self._results[act.name] = await self._face.step(act.name, fn)

    async def cursor(self, act: Act) -> None:
        async def fn(cursor: object) -> object:
            self._write(f"{act.name} from {json.dumps(cursor)}")
            await self._do(act.acts)
            return act.value

        self._results[act.name] = await self._face.step_cursor(act.name, fn)

    async def set_cursor(self, act: Act) -> None:
        self._face.ctx.set_cursor(act.value)

    async def save(self, act: Act) -> None:
        self._face.ctx.save(**{act.name: act.value})

    async def catch(self, act: Act) -> None:
        try:
            await self._do(act.acts)
        except Exception as error:
            self._write(f"caught {type(error).__name__}")

    async def meanwhile(self, act: Act) -> None:
        """Do the first of its acts in a thread or asyncio task of its own, and the others as soon as that one waits."""
        first, *others = act.acts
        end = self._face.begin(lambda: self._do([first]))
        while self._read()[-1] != "waiting":
            await self._face.pause(deaf=True)
        await self._do(others)
        self._open_gate()
        await end()

    async def fail(self, act: Act) -> None:
        raise OSError(act.name)

    async def snooze(self, act: Act) -> None:
        raise Snooze(act.value)

    async def cancel(self, act: Act) -> None:
        raise Cancel(act.name)

    async def discard(self, act: Act) -> None:
        raise Discard(act.name)

    async def die(self, act: Act) -> None:
        """Take the process along; never that of the tests, whose number is the value."""
        assert os.getpid() != act.value
        os.kill(os.getpid(), signal.SIGKILL)

    async def wait(self, act: Act) -> None:
        """Until the test opens the gate, or somebody wants the attempt to end.

        name  deaf: only the gate counts; stubborn: who wants the end is heard, but this returns
        """
        self._write("waiting")
        try:
            while not self._gate_is_open():
                await self._face.pause(deaf=act.name == "deaf")
        except (asyncio.CancelledError, Cancel):
            if act.name != "stubborn":
                raise

    async def hear(self, act: Act) -> None:
        """Wait until another run has written this."""
        while act.name not in self._read():
            await self._face.pause(deaf=True)

    async def tx(self, act: Act) -> None:
        """A transaction that ends with the SQL in its name; an error in it rolls it back."""
        await self._face.connect(self._scene.dsn)
        try:
            await self._do(act.acts)
            await self._face.sql(act.name)
        finally:
            await self._face.close()

    async def sql(self, act: Act) -> None:
        await self._face.sql(act.name)

    async def insert(self, act: Act) -> None:
        await self._face.sql("insert into imported values (%s)", act.value)

    async def mark(self, act: Act) -> None:
        await self._face.mark(act.value)

    async def mark_cursor(self, act: Act) -> None:
        await self._face.mark_cursor(act.value)

    async def complete(self, act: Act) -> None:
        await self._face.complete(act.value)


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


class _Plain:
    """The face of a plain function."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self._never = threading.Event()

    async def step(self, name: str, fn: Play) -> object:
        return self.ctx.step(name, lambda: _at_once(fn()))

    async def step_cursor(self, name: str, fn: Callable[[Any], Coroutine[Any, Any, object]]) -> object:
        return self.ctx.step_cursor(name, lambda cursor: _at_once(fn(cursor)))

    async def connect(self, dsn: str) -> None:
        self._conn = psycopg.connect(dsn)

    async def sql(self, query: str, *params: object) -> None:
        self._conn.execute(query.encode(), params)

    async def close(self) -> None:
        self._conn.close()

    async def mark(self, result: object) -> None:
        self.ctx.set_step_tx(self._conn, result)

    async def mark_cursor(self, value: object) -> None:
        self.ctx.set_step_cursor_tx(self._conn, value)

    async def complete(self, result: object) -> None:
        self.ctx.complete_tx(self._conn, result)

    async def pause(self, *, deaf: bool = False) -> None:
        if not deaf:
            self.ctx.raise_if_cancelled()
        self._never.wait(0.01)

    def begin(self, fn: Play) -> Callable[[], Awaitable[object]]:
        errors: list[BaseException] = []

        def run() -> None:
            try:
                _at_once(fn())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()

        async def end() -> None:
            thread.join()
            if errors:
                raise errors[0]

        return end


class _Coroutine:
    """The face of a coroutine."""

    def __init__(self, ctx: AsyncContext) -> None:
        self.ctx = ctx

    async def step(self, name: str, fn: Play) -> object:
        return await self.ctx.step(name, fn)

    async def step_cursor(self, name: str, fn: Callable[[Any], Coroutine[Any, Any, object]]) -> object:
        return await self.ctx.step_cursor(name, fn)

    async def connect(self, dsn: str) -> None:
        self._conn = await psycopg.AsyncConnection.connect(dsn)

    async def sql(self, query: str, *params: object) -> None:
        await self._conn.execute(query.encode(), params)

    async def close(self) -> None:
        await self._conn.close()

    async def mark(self, result: object) -> None:
        await self.ctx.set_step_tx(self._conn, result)

    async def mark_cursor(self, value: object) -> None:
        await self.ctx.set_step_cursor_tx(self._conn, value)

    async def complete(self, result: object) -> None:
        await self.ctx.complete_tx(self._conn, result)

    async def pause(self, *, deaf: bool = False) -> None:
        await asyncio.sleep(0.01)  # where its cancellation arrives

    def begin(self, fn: Play) -> Callable[[], Awaitable[object]]:
        task = asyncio.create_task(fn())

        async def end() -> object:
            return await task

        return end


if __name__ == "__main__":
    q = PgQueue(sys.argv[1])
    q.task(play)
    q.worker().run()
