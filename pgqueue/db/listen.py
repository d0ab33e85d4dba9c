"""Hears NOTIFY, and holds the gates that say in which queues somebody sleeps.

Guarantees: after the connection is lost it comes back by itself, and then says once that anything may have happened.
The gate of a queue is an advisory lock; while a sleeper holds it enqueuers send NOTIFY. In a busy queue nobody holds
it for long, so enqueuing costs no NOTIFY there.
Behind a pooler, where others would get the LISTEN and the gates, it does nothing but try again, rarely.
Never: trusted. A missing or forged notification costs a look, nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import psycopg
from psycopg import sql
from psycopg.pq import PGnotify
from psycopg.rows import TupleRow

from pgqueue.db.connect import aconnect_direct, describe
from pgqueue.db.failure import BehindPooler
from pgqueue.store.statement import SCHEMA

log = logging.getLogger("pgqueue.listen")

_LIE_DOWN = "select pg_advisory_lock_shared(hashtext(%s), hashtext(q)) from unnest(%s::text[]) q"
_GET_UP = "select pg_advisory_unlock_shared(hashtext(%s), hashtext(q)) from unnest(%s::text[]) q"
PING_EVERY = 15.0
ANSWER_WITHIN = 10.0
RETRY_CAP = 5.0
POOLER_RETRY = 60.0  # somebody has to change something first


class Listener:
    """One LISTEN connection.

    on_ready    called with the name of a queue that may have work; None: any may
    on_control  called with what was sent: a job's id, "pause" or "resume"; None: anything may
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str,
        on_ready: Callable[[str | None], None],
        on_control: Callable[[str | None], None],
    ) -> None:
        self._dsn = dsn
        self._schema = schema
        self._on_ready = on_ready
        self._on_control = on_control
        self._key = "pgqueue.wake" if schema == SCHEMA else f'"{schema}".wake'  # as pgqueue.wake() computes it
        self._conn: psycopg.AsyncConnection[TupleRow] | None = None
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._watched: int | None = None  # the connection's file descriptor, while the event loop looks at it
        self._wanted: frozenset[str] = frozenset()
        self._gates: frozenset[str] = frozenset()
        self._warned = False
        self.on_gates: Callable[[frozenset[str]], None] = lambda queues: None

    def want_gates(self, queues: frozenset[str]) -> None:
        """Hold the gates of these queues and no others, soon. `on_gates` is called with those that have been taken."""
        if queues != self._wanted:
            self._wanted = queues
            self._changed.set()

    async def run(self) -> None:
        """Listen until cancelled."""
        delay = 0.1
        while True:
            try:
                await self._connect()
                delay = 0.1
                await self._serve()
            except BehindPooler:
                delay = POOLER_RETRY
                self._warn()
            except (psycopg.Error, OSError) as error:
                log.info("not listening, polling meanwhile: %s", str(error).strip())
            finally:
                await self._close()
            await asyncio.sleep(delay)
            delay = min(RETRY_CAP, delay * 2)

    def _warn(self) -> None:
        if not self._warned:
            where = describe(self._dsn)
            log.warning("direct_dsn (or dsn in its place) leads to a pooler: polling instead of LISTEN (%s)", where)
            self._warned = True

    async def _connect(self) -> None:
        conn = await aconnect_direct(self._dsn, role="listen")
        self._conn = conn
        self._warned = False
        conn.pgconn.notify_handler = self._dispatch  # psycopg's own would fail at what it can't decode
        for channel in ("ready", "control"):
            await conn.execute(sql.SQL("listen {}").format(sql.Identifier(f"{self._schema}.{channel}")))
        self._watch(conn)
        self._on_control(None)
        self._on_ready(None)

    async def _serve(self) -> None:
        assert self._conn is not None
        while True:
            self._changed.clear()
            if self._wanted != self._gates:
                await self._set_gates(self._wanted)
            try:
                async with asyncio.timeout(PING_EVERY):
                    await self._changed.wait()
            except TimeoutError:
                await self._execute("select 1")
            if self._watched is None:
                raise psycopg.OperationalError("the connection was closed by the server")

    async def _set_gates(self, wanted: frozenset[str]) -> None:
        taken = wanted - self._gates
        await self._call(_GET_UP, self._gates - wanted)
        await self._call(_LIE_DOWN, taken)
        self._gates = wanted
        if taken:
            self.on_gates(taken)

    async def _call(self, text: str, queues: frozenset[str]) -> None:
        if queues:
            await self._execute(text, [self._key, sorted(queues)])

    async def _execute(self, text: str, params: Sequence[object] | None = None) -> None:
        """psycopg waits on the socket itself, so our own watch of it rests meanwhile."""
        assert self._conn is not None
        self._unwatch()
        async with asyncio.timeout(ANSWER_WITHIN):  # on expiry an OSError, as a broken connection is
            await self._conn.execute(text, params)
        self._watch(self._conn)

    def _watch(self, conn: psycopg.AsyncConnection[TupleRow]) -> None:
        self._watched = conn.fileno()
        self._loop.add_reader(self._watched, self._readable, conn)

    def _unwatch(self) -> None:
        """By the number, since a connection that broke does not know it any more; another one gets the same soon."""
        if self._watched is not None:
            self._loop.remove_reader(self._watched)
            self._watched = None

    def _readable(self, conn: psycopg.AsyncConnection[TupleRow]) -> None:
        try:
            conn.pgconn.consume_input()
            while notify := conn.pgconn.notifies():
                self._dispatch(notify)
        except psycopg.Error:
            self._unwatch()
            self._changed.set()

    def _dispatch(self, notify: PGnotify) -> None:
        """Anybody may send anything; none of it may end the listening."""
        payload = notify.extra.decode(errors="replace")
        try:
            if notify.relname == f"{self._schema}.ready".encode():
                self._on_ready(payload)
            else:
                self._on_control(payload)
        except Exception:
            log.exception("a notification was of no use: %.200r", payload)

    async def _close(self) -> None:
        conn, self._conn = self._conn, None
        self._gates = frozenset()
        self._unwatch()
        if conn is not None:
            await conn.close()
