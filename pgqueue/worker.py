"""A worker as the application sees it: what `q.worker(...)` returns.

`run()` blocks and `arun()` awaits until it is stopped; `start()`, `close()` and `wait()` run it in a thread beside
other code. One Worker is used once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import threading
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from typing import TypedDict

from pgqueue.app import Parts, assemble
from pgqueue.engine.worker import Worker as Engine
from pgqueue.engine.worker import WorkerOptions
from pgqueue.errors import ConfigError
from pgqueue.tasks.door import check_name, nearest

log = logging.getLogger("pgqueue.worker")
CONCURRENCY = 10
STUCK_WAIT = 2.0  # seconds that coroutines get to end when nothing else is left to do


class WorkerSettings(TypedDict, total=False):
    """How a worker works. Times in seconds.

    name    what people see in the relation `workers`; host and process id unless given
    lease   how long its jobs stay its own after a heartbeat (15): others take over from a dead worker after that
    grace   how long running jobs may go on when it is stopped (20); then they are interrupted and handed back
    """

    name: str | None
    lease: float
    grace: float


def read_queues(queues: Mapping[str, int] | Sequence[str] | str) -> dict[str, int]:
    """Names with how many of their jobs run at once, from a mapping, names, or text like `mail=20,import=2`.

    raises  ConfigError naming what can't be
    """
    if isinstance(queues, str):
        queues = [part.strip() for part in queues.split(",") if part.strip()]
    if not isinstance(queues, Mapping):
        pairs = [name.partition("=") for name in queues]
        twice = [name for name, count in Counter(name for name, _, _ in pairs).items() if count > 1]
        if twice:
            raise ConfigError(f"queue {twice[0]!r}: named twice; say once how many of its jobs run at once")
        queues = {name: _number(count, name) if sign else CONCURRENCY for name, sign, count in pairs}
    if not queues:
        raise ConfigError("queues: name at least one, for example mail=20")
    limits: dict[str, object] = dict(queues)
    for name, count in limits.items():
        check_name(name, "queue")
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 10_000:
            raise ConfigError(f"queue {name!r}: {count!r} jobs at once; must be a whole number from 1 to 10000")
    return dict(queues)


def _number(text: str, name: str) -> int:
    if not text.strip().isdecimal():
        raise ConfigError(f"queue {name!r}: {text!r} jobs at once; must be a whole number from 1 to 10000")
    return int(text)


def _run_loop(main: Coroutine[object, object, None]) -> None:
    """As asyncio.run, but nothing that a task leaves behind ends the worker or keeps it.

    asyncio lets a SystemExit in a sub-task of a coroutine stop the loop (the coroutine gets it all the same), and waits
    at the end for ever for one that ignores its cancellation.
    """
    loop = asyncio.new_event_loop()
    work = loop.create_task(main)
    try:
        while not work.done():
            try:
                loop.run_until_complete(work)
            except (SystemExit, KeyboardInterrupt, RuntimeError) as error:
                if work.done():
                    raise
                log.error("something that a task started stopped the event loop, going on: %r", error)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=STUCK_WAIT))
        loop.run_until_complete(loop.shutdown_asyncgens())
        if all(task.done() for task in left):
            loop.close()


def supervise(argv: Sequence[str], *, processes: int) -> int:
    """Run `argv` as so many worker processes, and replace those that die; returns the status to exit with."""
    from pgqueue.engine.supervisor import Supervisor  # its signals are those of Unix

    return Supervisor(argv, processes=processes).run()


class Worker:
    """Runs jobs of the given queues until it is stopped.

    raises  ConfigError for options that do not exist or do not fit
    """

    def __init__(self, parts: Parts, queues: Mapping[str, int] | Sequence[str] | str, settings: WorkerSettings) -> None:
        self._parts = parts
        for name in settings:
            if name not in WorkerSettings.__annotations__:
                raise ConfigError(f"unknown option {name!r}{nearest(name, WorkerSettings.__annotations__)}")
        lease, grace = settings.get("lease", 15.0), settings.get("grace", 20.0)
        if not 6 <= lease <= 86400:
            raise ConfigError(f"lease {lease!r}: must be from 6 seconds to a day")
        if not 0 <= grace <= 86400:
            raise ConfigError(f"grace {grace!r}: must be from 0 seconds to a day")
        self._options = WorkerOptions(
            queues=read_queues(queues), dsn=parts.dsn(), direct_dsn=parts.direct_dsn(), pooled=parts.pooled,
            schema=parts.schema, name=settings.get("name"), lease=float(lease), margin=min(4.0, lease / 3),
            grace=float(grace),
        )  # fmt: skip
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._engine: Engine | None = None
        self._stops = self._passed_on = 0
        self._started = threading.Event()
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Work until SIGTERM or SIGINT: the first stops in order, the second at once.

        raises  SchemaMismatch, or what the database answers if it refuses us; an unreachable one is waited for
        """
        gc.freeze()  # what is loaded by now stays; and jobs are many small objects, few of them in cycles:
        gc.set_threshold(20_000, 20, 100)  # collecting less often makes a no-op job 12 % cheaper
        _run_loop(self._run(signals=threading.current_thread() is threading.main_thread()))

    async def arun(self) -> None:
        """Work in this event loop until `stop` is called or the awaiting task is cancelled."""
        await self._run(signals=False)

    def stop(self) -> None:
        """Stop in order; a second call: at once. From any thread."""
        self._stops += 1
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._pass_on)

    def start(self) -> None:
        """Work in a thread of its own; returns when it claims jobs. Raises as `run`."""
        self._thread = threading.Thread(target=self._in_thread, name="pgqueue-worker", daemon=True)
        self._thread.start()
        self._started.wait()
        self._raise_failure()

    def close(self) -> None:
        """Stop in order and wait until that is done. Raises as `wait`."""
        self.stop()
        self.wait()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the worker has ended; False if it has not within `timeout` seconds.

        raises  what ended it, if that was an error (once)
        """
        if self._thread is None:
            return True
        self._thread.join(timeout)
        self._raise_failure()
        return not self._thread.is_alive()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _in_thread(self) -> None:
        try:
            _run_loop(self._run(signals=False))
        except BaseException as error:  # start() or wait() raises it
            if self._started.is_set():
                log.critical("the worker has ended: %r", error)
            self._failure = error
        finally:
            self._started.set()

    async def _run(self, *, signals: bool) -> None:
        self._loop = asyncio.get_running_loop()
        if signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self.stop)
        self._engine = engine = await assemble(self._parts, self._options)
        self._pass_on()
        announcing = asyncio.create_task(self._announce(engine))
        working = asyncio.create_task(engine.run())
        try:
            await asyncio.shield(working)
        except asyncio.CancelledError:
            engine.stop()
            engine.stop()
            await working
            raise
        finally:
            announcing.cancel()

    def _pass_on(self) -> None:
        """Tell the engine how often it was asked to stop, which may have been before there was one."""
        while self._engine is not None and self._passed_on < self._stops:
            self._passed_on += 1
            self._engine.stop()

    async def _announce(self, engine: Engine) -> None:
        await engine.ready.wait()
        self._started.set()
