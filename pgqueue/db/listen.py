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
from collections.abc import Callable

import psycopg
from psycopg import sql
from psycopg.pq import PGnotify

from pgqueue.db.connect import aconnect_direct, describe
from pgqueue.db.failure import BehindPooler
from pgqueue.db.waiting import WatchedConnection
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
        self._conn: WatchedConnection | None = None
        self._changed = asyncio.Event()
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
        conn = self._conn = await aconnect_direct(self._dsn, role="listen")
        conn.answer_within = ANSWER_WITHIN
        conn.on_lost = self._changed.set
        self._warned = False
        conn.pgconn.notify_handler = self._dispatch  # psycopg's own would fail at what it can't decode
        for channel in ("ready", "control"):
            await conn.execute(sql.SQL("listen {}").format(sql.Identifier(f"{self._schema}.{channel}")))
        self._on_control(None)
        self._on_ready(None)

    async def _serve(self) -> None:
        assert self._conn is not None
        while not self._conn.closed:
            self._changed.clear()
            if self._wanted != self._gates:
                await self._set_gates(self._wanted)
            try:
                async with asyncio.timeout(PING_EVERY):
                    await self._changed.wait()
            except TimeoutError:
                await self._conn.execute("select 1")
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
            assert self._conn is not None
            await self._conn.execute(text, [self._key, sorted(queues)])

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
        if conn is not None:
            await conn.close()
