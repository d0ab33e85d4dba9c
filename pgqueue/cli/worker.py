"""`pgqueue worker`: runs an application's jobs until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from types import FrameType

import click

from pgqueue import PgQueue
from pgqueue.cli.application import find_queue
from pgqueue.cli.logs import begin_logging
from pgqueue.cli.options import configured
from pgqueue.config import Loaded, shown
from pgqueue.db.adapt import run
from pgqueue.db.connect import connect, describe, resolve_dsn
from pgqueue.db.failure import DatabaseError, is_outage, server_text
from pgqueue.db.schema import gate, installed_version
from pgqueue.worker import CONCURRENCY, STUCK_WAIT, supervise

log = logging.getLogger("pgqueue.cli")


@click.command()
@configured("app", "queues", "processes", "name", "lease", "grace", "dsn", "schema", "log_level")
@click.option("--check", is_flag=True, help="Only look whether a worker would start: application, settings, schema.")
@click.option("--json", "as_json", is_flag=True, help="Log one JSON object per line.")
def worker(loaded: Loaded, *, check: bool, as_json: bool) -> int:
    """Run an application's jobs until stopped.

    \b
    pgqueue worker -A shop.tasks:q -q mail=20,import=2
    pgqueue worker -A shop.tasks --processes 4

    The application is imported from the working directory. Without -q the worker takes from the queues that the tasks
    name, 10 jobs of each at once. With --processes every process runs that many.

    SIGTERM and Ctrl-C stop it in order: it takes no more jobs, those that run get --grace seconds to end, the rest is
    handed back and costs no attempt. A second signal stops at once. SIGQUIT writes all stacks to stderr; with
    --processes, SIGHUP restarts the processes one after the other.
    """
    _obey_signals()
    begin_logging(loaded.config.log_level, as_json=as_json)
    if loaded.config.processes > 1:
        return _supervise(loaded, check=check, as_json=as_json)
    q = find_queue(loaded)
    config = loaded.config
    queues = config.queues or dict.fromkeys(sorted({task.queue for task in q.tasks}), CONCURRENCY)
    ready = q.worker(queues, name=_name(config.name), lease=config.lease, grace=config.grace)
    if check:
        _check_schema(q)
    else:
        log.info("%s, schema %s, application %s", describe(resolve_dsn(q.dsn)), q.schema, config.app)
        ready.run()
    q.close()
    leave_threads_behind(0)
    return 0


def leave_threads_behind(status: int) -> None:
    """A thread that a task started and that does not end must not keep the process."""
    deadline = time.monotonic() + STUCK_WAIT
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
    stuck = [thread.name for thread in threading.enumerate() if thread.is_alive() and not thread.daemon]
    if len(stuck) > 1:  # one of them is this one
        log.warning("threads that tasks started do not end, leaving without them: %s", ", ".join(stuck[1:]))
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)


def _supervise(loaded: Loaded, *, check: bool, as_json: bool) -> int:
    """Start the same command as several processes of one worker each, if one of them finds nothing to object to.

    This process imports no application: what a supervisor has not loaded can't make it fail.
    """
    given = [name for name, origin in loaded.origins.items() if origin.startswith("-")]
    flags = [f"--{name.replace('_', '-')}={_as_given(loaded, name)}" for name in given]
    file = [] if loaded.file is None else [f"--config={loaded.file}"]
    argv = [sys.executable, "-m", "pgqueue", "worker", *file, *flags, "--processes=1", *(["--json"] * as_json)]
    status = subprocess.run([*argv, "--check"], check=False).returncode
    if status or check:
        return status
    return supervise(argv, processes=loaded.config.processes)


def _as_given(loaded: Loaded, name: str) -> str:
    value = getattr(loaded.config, name)
    return value if isinstance(value, str) else shown(name, value)


def _name(name: str | None) -> str | None:
    """Processes of one supervisor get names of their own."""
    number = os.environ.get("PGQUEUE_WORKER_NUMBER")
    return f"{name}-{number}" if name and number else name


def _check_schema(q: PgQueue) -> None:
    try:
        with connect(q.dsn, role="start", pooled=q.pooled) as conn:
            gate(run(conn, installed_version(q.schema)), schema=q.schema)
    except DatabaseError as error:
        if not is_outage(error):
            raise
        log.warning("the database can't be reached now; a worker would wait for it: %s", server_text(error))


def _obey_signals() -> None:
    """Until the worker runs and listens to them itself, there is nothing that would have to be finished."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    if sys.platform != "win32":
        signal.signal(signal.SIGQUIT, _write_stacks)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup has said that it does not matter
            signal.signal(signal.SIGHUP, _hang_up)


def _write_stacks(number: int, frame: FrameType | None) -> None:
    """To stderr, of every thread and coroutine. (faulthandler does without waiting for Python, and crashed once.)"""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, top in sys._current_frames().items():
        print(f"Thread {names.get(ident, ident)} (most recent call last):", file=sys.stderr)
        traceback.print_stack(top)
    with contextlib.suppress(RuntimeError):  # the event loop does not run yet, or no more
        for task in asyncio.all_tasks():
            task.print_stack()
    sys.stderr.flush()


def _hang_up(number: int, frame: FrameType | None) -> None:
    """The terminal was closed: stop in order, as by SIGTERM."""
    os.kill(os.getpid(), signal.SIGTERM)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
