"""A Listener for tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from pgqueue.db.listen import Listener


@contextlib.asynccontextmanager
async def listening(dsn: str, on_ready: Callable[[str | None], None]) -> AsyncIterator[None]:
    """A Listener for the length of the block, which must not end by itself."""
    listener = Listener(dsn, schema="pgqueue", on_ready=on_ready, on_control=lambda what: None)
    running = asyncio.create_task(listener.run())
    yield
    assert not running.done()
    running.cancel()
    await asyncio.wait({running})
