"""The idle connections of a pool, of either colour: what lies ready, and whether it is still any good.

Guarantees: looks and closes without an event loop and without waiting; what is left at the end of a program is closed.
Never: touches a connection that a forked process has inherited.
"""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

import psycopg
from psycopg.pq import ConnStatus
from psycopg.rows import TupleRow, tuple_row

Connection: TypeAlias = psycopg.Connection[TupleRow]
AsyncConnection: TypeAlias = psycopg.AsyncConnection[TupleRow]
C = TypeVar("C", Connection, AsyncConnection)

# Idle for less: only the socket is looked at (2 us), which shows a connection that was closed but not a host that
# vanished. Idle for longer: one round trip (90 to 125 us on the same machine).
PING_AFTER_SECONDS = 2.0
MAX_IDLE_SECONDS = 600.0
MAX_AGE_SECONDS = 3600.0  # so that a changed address behind the server's name is noticed


@dataclass(slots=True)
class Lent(Generic[C]):
    """One connection of a pool, in use or on the shelf."""

    conn: C
    born: float = field(default_factory=time.monotonic)
    used: float = field(default_factory=time.monotonic)

    def is_stale(self) -> bool:
        return time.monotonic() - self.used > PING_AFTER_SECONDS

    def finish(self) -> None:
        """Close it, of either colour, with no event loop and no I/O that could block."""
        self.conn.pgconn.finish()

    def hung_up(self) -> bool:
        """Has the server closed it? Looks at the socket only. Twice: the first reading may find its last words."""
        try:
            self.conn.pgconn.consume_input()
            self.conn.pgconn.consume_input()
        except psycopg.OperationalError:
            return True
        return self.conn.pgconn.status != ConnStatus.OK


class Shelf(Generic[C]):
    """The idle connections of one process, the last used on top.

    Belongs to the process that made it: in a fork it closes nothing, for the server would hear it as its parent's wish.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._idle: deque[Lent[C]] = deque()
        self._closed = False
        weakref.finalize(self, _finish, self._idle, self.pid)  # at the end of the program too: no ResourceWarning

    def take(self) -> Lent[C] | None:
        """The connection used last that its server has not closed."""
        while True:
            try:
                lent = self._idle.pop()
            except IndexError:
                return None
            if not lent.hung_up():
                return lent
            lent.finish()

    def put(self, lent: Lent[C]) -> None:
        """Take a connection back, and let go of one that nobody has needed for long."""
        now = time.monotonic()
        if self._closed or now - lent.born > MAX_AGE_SECONDS:
            lent.finish()
        if not lent.conn.closed:
            lent.used = now
            lent.conn.row_factory = tuple_row
            self._idle.append(lent)
        if self._closed:  # meanwhile, by another thread
            self.close()
        elif len(self._idle) > 1 and now - self._idle[0].used > MAX_IDLE_SECONDS:
            self._idle.popleft().finish()

    def close(self) -> None:
        self._closed = True
        _finish(self._idle, self.pid)


def _finish(idle: deque[Lent[C]], pid: int) -> None:
    while idle and pid == os.getpid():
        idle.pop().finish()
