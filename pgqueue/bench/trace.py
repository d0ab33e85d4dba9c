"""What a run leaves in the database, and how it is removed.

Guarantees: all that a run makes belongs to a queue of its own, which is noted before anything else is made; removing
touches nothing else, may be repeated, and takes the note last, so that what a killed run has left is always found.
Never: removes a run that is going on, here or on another machine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Callable

from pgqueue import PgQueue, __version__
from pgqueue.db.failure import DatabaseError
from pgqueue.demo.home import is_running
from pgqueue.errors import PgqueueError
from pgqueue.store import bench
from pgqueue.store.bench import Member

BEAT = 3.0  # seconds
RANGE = 20_000  # ids whose jobs are removed at once


class Trace:
    """A run that is noted. It shows that it is alive until it is closed."""

    def __init__(self, q: PgQueue) -> None:
        self._q = q
        self.queue, self.worker = q.pool.run(
            bench.begin(
                mark=secrets.token_hex(6), host=socket.gethostname(), pid=os.getpid(), version=__version__,
                schema=q.schema,
            )
        )  # fmt: skip
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pgqueue-bench", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Show no more signs of life."""
        self._closed.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT):
            with contextlib.suppress(DatabaseError, PgqueueError):  # whoever needs the database next will say it
                self._q.pool.run(bench.beat(self.worker, schema=self._q.schema))


def left(q: PgQueue) -> tuple[list[str], list[str]]:
    """The queues of runs that were killed, and of those that go on."""
    found = q.pool.run(bench.runs(schema=q.schema))
    alive = [queue for queue, members in found.items() if any(map(_lives, members))]
    return [queue for queue in found if queue not in alive], alive


def _lives(member: Member) -> bool:
    """A silent one is dead; of a process of this machine we know better than its lease."""
    return member.heard and (member.host != socket.gethostname() or is_running(member.pid))


def check_rights(q: PgQueue) -> None:
    """See that this role may remove what a run makes, before one makes anything.

    raises  what the database answers if it may not
    """
    nobody = f"{bench.PREFIX}0.nobody"
    q.pool.run(bench.seize(nobody, schema=q.schema))
    q.pool.run(bench.remove(nobody, first=0, last=0, schema=q.schema))
    q.pool.run(bench.forget(nobody, schema=q.schema))


def empty(q: PgQueue, queue: str, tell: Callable[[int, int], object] = lambda done, total: None) -> int:
    """Remove all jobs of a run, however far they are; answers with how many. Its workers are gone, or it is paused.

    tell  called with how many ids of how many have been looked at
    """
    schema = q.schema
    last, first = q.pool.run(bench.seize(queue, schema=schema)), bench.first_id(queue)
    removed = 0
    for start in range(first, last + 1, RANGE):
        removed += q.pool.run(bench.remove(queue, first=start, last=min(start + RANGE - 1, last), schema=schema))
        tell(start - first, last + 1 - first)
    return removed


def remove(q: PgQueue, queue: str, tell: Callable[[int, int], object] = lambda done, total: None) -> int:
    """Remove all of a run, and then the note of it; answers with how many jobs it had."""
    removed = empty(q, queue, tell)
    q.pool.run(bench.forget(queue, schema=q.schema))
    return removed
