"""A job without a worker: run here and now by the same executors, its checkpoint in a file.

Guarantees: what the steps have reached is in the file a second later at the latest, and when the attempt has ended,
however it did; a run that finds it there goes on from it. A `*_tx` call commits with the caller's work as ever: its
mark goes into the queue's own database, and is read from there when the job is resumed.
Never: asks for the database unless the job does, or such a mark may be there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from pgqueue.app import Parts, Pools, context, pools_of
from pgqueue.context import BaseContext
from pgqueue.core.job import Claimed
from pgqueue.core.outcome import Ended, Outcome, Raised, Returned, Uncommitted
from pgqueue.core.states import FINAL, State
from pgqueue.db.failure import DatabaseError
from pgqueue.engine.child import ChildJob, Flags
from pgqueue.engine.completer import outcome_of
from pgqueue.engine.executors import AsyncExecutor, ThreadExecutor, raised
from pgqueue.engine.lane import Attempt, Executor, Lane, Lease, Reason
from pgqueue.engine.place import check_importable
from pgqueue.engine.processes import ProcessExecutor
from pgqueue.errors import ConfigError, PgqueueError, StepError
from pgqueue.extension import Here, Parted
from pgqueue.features.local_marks import COMPLETED, LocalMarks
from pgqueue.features.memory import Memory, noted
from pgqueue.state_file import LocalState, StateFile, new_state
from pgqueue.store import local
from pgqueue.tasks.task import Task

log = logging.getLogger("pgqueue.local")

CONTEXT = "pgqueue.local:child_context"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAVE_EVERY = 1.0  # seconds
LOOK_EVERY = 0.05
_left: list[asyncio.Runner] = []  # event loops of jobs that did not end; closing one would wait for its job


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalJob:
    """A job that was run without a worker, after the attempt.

    id       negative
    attempt  failures so far
    delay    seconds after which it wants to be run again, if it has not ended
    data     what it saved
    """

    id: int
    kind: str
    state: State
    attempt: int
    result: object
    error: Mapping[str, str | None] | None
    delay: float | None
    data: Mapping[str, object]
    path: Path


def run_local(parts: Parts, task: Task[..., object], args: str, *, path: Path, restart: bool) -> LocalJob:
    """Run one attempt of the job whose state is in the file; a new one if there is none, or if that was completed.

    A job that was completed by `complete_tx`, in a run that was killed before it could say so, isn't run anew.

    restart  forget what was reached
    raises   ConfigError if the file is in use or of another job; Unreachable if it may have marks in a database that is
             away; PgqueueError inside a running event loop
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise PgqueueError("run_local() blocks: call it through asyncio.to_thread(q.run_local, ...)")
    check_importable([task])
    file = StateFile(path)
    with file.locked():
        state = file.load()
        if state is None:
            file.note.unlink(missing_ok=True)  # of a job that was thrown away
        elif file.note.exists():
            completed = _take_marks(parts, file, state)
            if completed and not restart and _is_of(state, task.name, args):
                return _told(state, file, None)  # by a run that was killed before it could say so
        return _Run(parts, task, file, _begun(state, file, task.name, args, restart=restart)).run()


def _begun(state: LocalState | None, file: StateFile, kind: str, args: str, *, restart: bool) -> LocalState:
    """The state to go on from, given what the file says."""
    if state is None or restart or state.state is State.COMPLETED:
        return new_state(kind, args)
    if not _is_of(state, kind, args):
        raise ConfigError(
            f"{file.path}: is of {state.kind} {bytes(state.args).decode():.200}, which is {state.state}: give the same"
            " arguments to go on, name another file, or start over (--restart)"
        )
    if state.state in FINAL:
        state.attempt = 0
    return state


def _is_of(state: LocalState, kind: str, args: str) -> bool:
    return state.kind == kind and bool(msgspec.json.decode(state.args) == msgspec.json.decode(args))


def _take_marks(parts: Parts, file: StateFile, state: LocalState) -> bool:
    """Move what was committed in the database into the file; was the job completed by it?

    raises  ConfigError if it is another database than the one that has the marks
    """
    noted_install = file.note.read_text()
    if noted_install and noted_install != str(parts.pool.run(local.install(schema=parts.schema))):
        raise ConfigError(
            f"{file.path}: a part of what the job has done is marked in another database than the queue's is now: go"
            " on with the DSN that it had"
        )
    parts.pool.run(local.wait_for_marks(state.id, schema=parts.schema))
    marks: Parted = {}
    for part, name, text in parts.pool.run(local.marks(state.id, schema=parts.schema)):
        marks.setdefault(part, {})[name] = msgspec.Raw(text.encode())
    result = marks.get("done", {}).pop(COMPLETED, None)
    state.checkpoint = merged(state.checkpoint, marks)
    if result is not None:
        _complete(state, result)
    file.save(state)
    parts.pool.run(local.forget(state.id, schema=parts.schema))
    file.note.unlink()
    return result is not None


def _complete(state: LocalState, result: msgspec.Raw) -> None:
    state.state, state.result, state.error = State.COMPLETED, result, None
    state.checkpoint = {"data": state.checkpoint.get("data", {})}


def merged(checkpoint: Parted, patch: Parted) -> Parted:
    """A checkpoint with a patch merged into it, as `pgqueue.fold` does."""
    parts = {part: checkpoint.get(part, {}) | patch.get(part, {}) for part in ("done", "cursor", "data")}
    parts["cursor"] = {name: value for name, value in parts["cursor"].items() if name not in parts["done"]}
    parts["data"] = {key: value for key, value in parts["data"].items() if bytes(value) != b"null"}
    return {part: values for part, values in parts.items() if values}


class _Run:
    """One attempt."""

    def __init__(self, parts: Parts, task: Task[..., object], file: StateFile, state: LocalState) -> None:
        self._parts = parts
        self._task = task
        self._file = file
        self._state = state
        self._before = state.checkpoint
        lane = Lane(task.queue, 1, lambda: None)
        self._attempt = Attempt(_claimed(state, task), task, lane, Lease(0, 1), _Nobody())
        self._times_asked = 0
        self._saved_at = time.monotonic()

    def run(self) -> LocalJob:
        self._file.save(self._state)
        runner, has_ended = asyncio.Runner(), True
        try:
            ended = runner.run(self._until_ended())
            has_ended = ended is not None
            return _told(self._state, self._file, self._record(ended))
        finally:  # what the job left running in there is waited for when its end is in the file
            if has_ended:
                runner.close()
            else:
                _left.append(runner)

    def _record(self, ended: Ended | None) -> float | None:
        """How the attempt ended, or (None) that it was left alone; says when it wants to be run again."""
        leftover = self._attempt.leftover
        if leftover is not None:
            self._merge(leftover.close())
        if ended is None:  # it may still commit: its marks are for the next one to take
            ended = raised(InterruptedError(), self._attempt)
        elif self._file.note.exists():
            self._file.save(self._state)  # before a database is asked
            if self._parts.pool.run(local.has_all_marks(self._state.id, schema=self._parts.schema)):
                _take_marks(self._parts, self._file, self._state)
        if self._state.state is State.COMPLETED:
            return None
        if isinstance(ended, Returned) and leftover is not None and leftover.completing:
            ended = Raised(Uncommitted())
        outcome = outcome_of(self._attempt, ended)
        self._settle(outcome)
        return outcome.delay

    async def _until_ended(self) -> Ended | None:
        loop = asyncio.get_running_loop()
        end: asyncio.Future[Ended] = loop.create_future()

        def report(attempt: Attempt, ended: Ended) -> None:
            with contextlib.suppress(RuntimeError):  # a thread that was not waited for
                loop.call_soon_threadsafe(settle, ended)

        def settle(ended: Ended) -> None:
            if not end.done():
                end.set_result(ended)

        executor = self._executor(report)
        attempt = self._attempt
        attempt.executor = executor
        with self._listening(loop):
            attempt.lane.offer([attempt])
            while not end.done() and self._times_asked < 2:
                await asyncio.wait([end], timeout=LOOK_EVERY)
                if attempt.started_at and time.monotonic() >= attempt.deadline:
                    attempt.interrupt(Reason.TIMEOUT)
                self._save_sometimes()
        if isinstance(executor, ThreadExecutor):
            executor.close()
        if not end.done():
            return None
        await self._parts.apool.aclose()  # those of this event loop
        return end.result()

    @contextlib.contextmanager
    def _listening(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """The first signal asks the job to end, the second leaves it alone. What the process ignores, it ignores."""

        def asked() -> None:
            self._times_asked += 1
            if self._times_asked == 1:
                log.warning("%s is asked to end; once more leaves without it", self._task.name)
            self._attempt.interrupt(Reason.SHUTDOWN)

        before = {number: signal.getsignal(number) for number in SIGNALS} if _is_main_thread() else {}
        before = {number: what for number, what in before.items() if what is not signal.SIG_IGN}
        for number in before:
            loop.add_signal_handler(number, asked)
        try:
            yield
        finally:
            for number, what in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL if what is None else what)  # None: not set by Python

    def _executor(self, report: Any) -> Executor:
        match self._task.executor:
            case "async":
                # From there too: a coroutine may keep the event loop for itself.
                self._attempt.leftover = self._memory(lambda patch: self._save_sometimes())
                return AsyncExecutor(report, self._context)
            case "thread":
                self._attempt.leftover = self._memory(None)
                return ThreadExecutor(report, self._context)
            case "process":
                parts = self._parts
                settings = {
                    "dsn": parts.dsn(), "schema": parts.schema, "pooled": parts.pooled, "install": str(UUID(int=0)),
                    "note": str(self._file.note),
                }  # fmt: skip
                return ProcessExecutor(report, context=CONTEXT, settings=settings, on_note=noted)

    def _memory(self, on_change: Callable[[str], None] | None) -> Memory:
        return _memory(self._attempt.job, self._file.note, self._parts, self._parts.schema, on_change)

    def _context(self, attempt: Attempt) -> BaseContext:
        here = Here(
            job=attempt.job, lease=0, install=UUID(int=0), schema=self._parts.schema, keeper=attempt, mode="local"
        )
        return context(here, attempt.lane.queue, attempt, self._parts, is_async=attempt.task.executor == "async")

    def _merge(self, patch: str | None) -> None:
        if patch is not None:
            self._state.checkpoint = merged(self._before, msgspec.json.decode(patch, type=Parted))

    def _save_sometimes(self) -> None:
        """Save what the steps have reached, if there is anything new; once a second."""
        if time.monotonic() < self._saved_at + SAVE_EVERY:
            return
        self._saved_at = time.monotonic()
        before = self._state.checkpoint
        if self._attempt.leftover is not None:
            self._merge(self._attempt.leftover.patch())
        try:
            if self._state.checkpoint != before:
                self._file.save(self._state)
        except PgqueueError as error:  # the job can go on, and the disk may have room again
            self._state.checkpoint = before
            log.warning("%s", error)

    def _settle(self, outcome: Outcome) -> None:
        state = self._state
        if outcome.state is State.COMPLETED:
            _complete(state, msgspec.Raw((outcome.result or "null").encode()))
        else:
            state.state, state.error = outcome.state, outcome.error
            state.attempt += outcome.attempt_cost
        self._file.save(state)


def _told(state: LocalState, file: StateFile, delay: float | None) -> LocalJob:
    result = None if state.result is None else msgspec.json.decode(msgspec.json.encode(state.result))
    data = {key: msgspec.json.decode(value) for key, value in state.checkpoint.get("data", {}).items()}
    return LocalJob(
        id=state.id, kind=state.kind, state=state.state, attempt=state.attempt, result=result, error=state.error,
        delay=delay, data=data, path=file.path,
    )  # fmt: skip


def has_left_any() -> bool:
    """Does a job still run that was left alone?"""
    return bool(_left)


def child_context(child: ChildJob, flags: Flags) -> BaseContext:
    """The context of a local attempt in a process of its own, made there."""
    pools, schema, note = pools_of(child), str(child.settings["schema"]), Path(str(child.settings["note"]))
    flags.leftover = _memory(child.job, note, pools, schema, lambda patch: flags.note(msgspec.Raw(patch.encode())))
    here = Here(job=child.job, lease=0, install=UUID(int=0), schema=schema, keeper=flags, mode="local")
    return context(here, child.queue, flags, pools, is_async=child.is_async)


def _memory(job: Claimed, note: Path, pools: Pools, schema: str, on_change: Callable[[str], None] | None) -> Memory:
    def install() -> UUID:
        try:
            return pools.pool.run(local.install(schema=schema))
        except (PgqueueError, DatabaseError) as error:
            raise StepError(f"a *_tx call leaves its mark in the queue's database: {error}") from error

    metadata = job.metadata if job.has_checkpoint else None
    return Memory(f"{job.kind}", LocalMarks(job.id, note, install, schema=schema), metadata, on_change)


class _Nobody:
    """In the place of an executor until the event loop runs."""

    def start(self, attempt: Attempt) -> None:
        raise AssertionError


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _claimed(state: LocalState, task: Task[..., object]) -> Claimed:
    metadata = msgspec.json.encode({"pgqueue": state.checkpoint}).decode() if state.checkpoint else None
    return Claimed(
        id=state.id, claim=0, kind=state.kind, args=bytes(state.args).decode(), metadata=metadata,
        attempt=state.attempt, max_attempts=None, crashes=0, timeout=None, expires_at=None, tenant=None,
        priority=task.priority,
    )  # fmt: skip
