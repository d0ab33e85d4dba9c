"""Functions that tests run in processes of their own."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from typing import NoReturn

from pgqueue import Cancel, Discard, RetryAfter, Snooze
from pgqueue.core.draft import Args, Draft, EnqueuedJob
from pgqueue.engine.child import ChildJob, Flags
from pgqueue.tasks.task import Task
from tests.engine.waiting import say


class Nobody:
    """A Sender that is never asked to send."""

    def send(self, draft: Draft, args: Args, conn: object | None) -> list[EnqueuedJob]:
        raise NotImplementedError

    async def asend(self, draft: Draft, args: Args, conn: object | None) -> list[EnqueuedJob]:
        raise NotImplementedError


class Here:
    """The context of a job."""

    __pgqueue_context__ = True

    def __init__(self, child: ChildJob, flags: Flags) -> None:
        self.child = child
        self.flags = flags


def get_pid() -> int:
    return os.getpid()


async def aget_pid() -> int:
    return os.getpid()


def nothing() -> None:
    pass


def echo(text: str) -> str:
    return text


def shout(text: str) -> None:
    print(text)


def unstorable() -> object:
    return object()


class Broken(Exception):
    """An exception of the application's own."""


class LaterThen(RetryAfter):
    """A signal of the application's own."""


def steer(how: str) -> NoReturn:
    raise STEERING[how]


STEERING = {
    "an error": Broken("a\x00b"),
    "a snooze": Snooze(90),
    "a cancel": Cancel("not wanted"),
    "a discard": Discard("no use"),
    "a discard with half a file name": Discard("no such file: caf\udce9\0.txt"),
    "a cancel with a number": Cancel(404),  # type: ignore[arg-type]
    "a retry": RetryAfter(7, "busy"),
    "a retry of its own kind": LaterThen(8, "busy"),
    "an exit": SystemExit(3),
}


def die(how: str) -> None:
    match how:
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)


def die_leaving_an_heir(path: str) -> None:
    if (heir := os.fork()) == 0:
        signal.pause()
    say(path, heir)
    os.kill(os.getpid(), signal.SIGKILL)


def hang(path: str) -> None:
    """Wait for ever; say what comes."""
    try:
        say(path, os.getpid())
        signal.pause()
    except BaseException as error:
        say(path, type(error).__name__)
        raise


def hang_deaf(path: str) -> None:
    """Wait for ever; nothing but SIGKILL ends this."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    say(path, os.getpid())
    while True:
        signal.pause()


async def ahang(path: str) -> None:
    try:
        say(path, os.getpid())
        await asyncio.Event().wait()
    except BaseException as error:
        say(path, type(error).__name__)
        raise


def wait_for_word(path: str, words: str) -> str:
    """Say its process id, then return what it is told."""
    say(path, os.getpid())
    with open(words) as file:
        return file.readline()


def until_asked(ctx: Here, path: str) -> str:
    """Run until the context says that someone wants the end."""
    say(path, os.getpid())
    while ctx.flags.reason is None:
        pass
    return str(ctx.flags.reason)


async def asee_and_go_on(ctx: Here, path: str) -> None:
    """Look at the context before the event loop does."""
    say(path, os.getpid())
    while ctx.flags.reason is None:
        pass
    await asyncio.Event().wait()


def tell(ctx: Here) -> dict[str, object]:
    ctx.flags.note({"half": "done"})
    job = ctx.child.job
    return {"id": job.id, "kind": job.kind, "queue": ctx.child.queue, "settings": ctx.child.settings}


kept: list[asyncio.Task[None]] = []
release = asyncio.Event()


async def leave_a_task_behind() -> None:
    async def linger() -> None:
        await release.wait()

    kept.append(asyncio.create_task(linger()))
    await asyncio.sleep(0)  # so that it begins


async def let_it_end() -> bool:
    release.set()
    await kept[0]
    return True


decorated: Task[[], None] = Task(nothing, sender=Nobody(), name="decorated", executor="process")
