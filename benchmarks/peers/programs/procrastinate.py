"""Procrastinate on psycopg's pool; its worker logs nothing below warnings."""

from __future__ import annotations

import asyncio

from procrastinate import App, PsycopgConnector  # type: ignore[import-not-found,unused-ignore]

from benchmarks.peers.programs.protocol import QUEUE, SETTINGS, TARGET, Args, main, produce, stamp

app = App(connector=PsycopgConnector(conninfo=TARGET, **SETTINGS.get("pool", {})))


async def _noop(number: int, action: str, address: str, lang: str, attempt: int) -> None:
    stamp(number)


noop = app.task(name="noop", queue=QUEUE)(_noop)


class Enqueue:
    """defer_async, and batch_defer_async for many."""

    async def one(self, args: Args) -> None:
        await noop.defer_async(**args)

    async def many(self, rows: list[Args]) -> None:
        await noop.batch_defer_async(*rows)


async def _work() -> None:
    async with app.open_async():
        await app.run_worker_async(queues=[QUEUE], **SETTINGS.get("worker", {}))


async def _produce() -> None:
    async with app.open_async():
        await produce(Enqueue())


async def _install() -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


if __name__ == "__main__":
    main(
        worker=lambda: asyncio.run(_work()),
        producer=lambda: asyncio.run(_produce()),
        install=lambda: asyncio.run(_install()),
    )
