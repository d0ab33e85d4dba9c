"""Hears NOTIFY, and holds the gate that says somebody sleeps.

Guarantees: after the connection is lost it comes back by itself, and then says once that anything may have happened.
While `asleep` the advisory locks of the worker's queues are held, so enqueuers send NOTIFY; nobody holds them for long
in a busy system, so enqueuing costs no NOTIFY there.
Never: trusted. A missing or forged notification costs a look, nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from pgqueue.db.connect import aconnect
from pgqueue.store.statement import SCHEMA

log = logging.getLogger("pgqueue.listen")

_LIE_DOWN = "select pg_advisory_lock_shared(hashtext(%s), hashtext(queue)) from unnest(%s::text[]) queue"
_GET_UP = "select pg_advisory_unlock_shared(hashtext(%s), hashtext(queue)) from unnest(%s::text[]) queue"
PING_EVERY = 15.0
RETRY_CAP = 5.0


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
        queues: Sequence[str],
        on_ready: Callable[[str | None], None],
        on_control: Callable[[str | None], None],
    ) -> None:
        self._dsn = dsn
        self._schema = schema
        self._queues = list(queues)
        self._on_ready = on_ready
        self._on_control = on_control
        self._key = "pgqueue.wake" if schema == SCHEMA else f'"{schema}".wake'  # as pgqueue.wake() computes it
        self._conn: psycopg.AsyncConnection[TupleRow] | None = None
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._want_gate = False
        self._broken = False
        self.gate_held = False
        self.on_gate: Callable[[], None] = lambda: None

    def want_gate(self, want: bool) -> None:
        """Hold the gate, or let go of it, soon. `on_gate` is called when it has been taken."""
        if want is not self._want_gate:
            self._want_gate = want
            self._changed.set()

    async def run(self) -> None:
        """Listen until cancelled."""
        delay = 0.1
        while True:
            try:
                await self._connect()
                delay = 0.1
                await self._serve()
            except (psycopg.Error, OSError) as error:
                log.info("not listening, polling meanwhile: %s", str(error).strip())
            finally:
                await self._close()
            await asyncio.sleep(delay)
            delay = min(RETRY_CAP, delay * 2)

    async def _connect(self) -> None:
        conn = await aconnect(self._dsn, role="listen", prepare=False)
        self._conn = conn
        self._broken = False
        conn.add_notify_handler(self._notified)
        for channel in ("ready", "control"):
            await conn.execute(sql.SQL("listen {}").format(sql.Identifier(f"{self._schema}.{channel}")))
        self._watch(conn)
        self._on_control(None)
        self._on_ready(None)

    async def _serve(self) -> None:
        assert self._conn is not None
        while True:
            self._changed.clear()
            if self._want_gate is not self.gate_held:
                await self._set_gate(self._want_gate)
            try:
                async with asyncio.timeout(PING_EVERY):
                    await self._changed.wait()
            except TimeoutError:
                await self._execute("select 1")
            if self._broken or self._conn.closed:
                raise psycopg.OperationalError("the connection was closed by the server")

    async def _set_gate(self, hold: bool) -> None:
        await self._execute(_LIE_DOWN if hold else _GET_UP, [self._key, self._queues])
        self.gate_held = hold
        if hold:
            self.on_gate()

    async def _execute(self, text: str, params: Sequence[object] | None = None) -> None:
        """psycopg waits on the socket itself, so our own watch of it rests meanwhile."""
        conn = self._conn
        assert conn is not None
        self._loop.remove_reader(conn.fileno())
        await conn.execute(text, params)
        self._watch(conn)

    def _watch(self, conn: psycopg.AsyncConnection[TupleRow]) -> None:
        self._loop.add_reader(conn.fileno(), self._readable, conn)

    def _readable(self, conn: psycopg.AsyncConnection[TupleRow]) -> None:
        try:
            conn.pgconn.consume_input()
            while notify := conn.pgconn.notifies():
                self._dispatch(notify.relname.decode(), notify.extra.decode())
        except psycopg.Error:
            self._loop.remove_reader(conn.fileno())
            self._broken = True
            self._changed.set()

    def _notified(self, notify: psycopg.Notify) -> None:
        self._dispatch(notify.channel, notify.payload)

    def _dispatch(self, channel: str, payload: str) -> None:
        if channel == f"{self._schema}.ready":
            self._on_ready(payload)
        else:
            self._on_control(payload)

    async def _close(self) -> None:
        conn, self._conn = self._conn, None
        self.gate_held = False
        if conn is not None:
            if not conn.closed and not self._broken:
                self._loop.remove_reader(conn.fileno())
            await conn.close()
