"""Oban for Python (the free edition) on psycopg's pool, uvloop and orjson, as its own command runs it."""

from __future__ import annotations

import asyncio

import orjson  # type: ignore[import-not-found,unused-ignore]
import uvloop  # type: ignore[import-not-found,unused-ignore]
from oban import Oban, worker  # type: ignore[import-not-found,unused-ignore]
from oban.job import Job  # type: ignore[import-not-found,unused-ignore]
from oban.schema import install  # type: ignore[import-not-found,unused-ignore]
from psycopg.types.json import set_json_dumps, set_json_loads

from benchmarks.peers.programs.protocol import QUEUE, SETTINGS, TARGET, Args, main, produce, stamp

set_json_dumps(orjson.dumps)
set_json_loads(orjson.loads)


class _Noop:
    async def process(self, job: Job) -> None:
        stamp(job.args["number"])


Noop = worker(queue=QUEUE)(_Noop)


class Enqueue:
    """enqueue, and enqueue_many for many."""

    def __init__(self, oban: Oban) -> None:
        self._oban = oban

    async def one(self, args: Args) -> None:
        await self._oban.enqueue(Noop.new(args))

    async def many(self, rows: list[Args]) -> None:
        await self._oban.enqueue_many([Noop.new(args) for args in rows])


async def _work() -> None:
    pool = await Oban.create_pool(TARGET, **SETTINGS.get("pool", {}))
    async with Oban(pool=pool, queues={QUEUE: SETTINGS["limit"]}):
        await asyncio.Event().wait()


async def _produce() -> None:
    await produce(Enqueue(Oban(pool=await Oban.create_pool(TARGET))))


async def _install() -> None:
    await install(await Oban.create_pool(TARGET))


if __name__ == "__main__":
    main(
        worker=lambda: uvloop.run(_work()),
        producer=lambda: uvloop.run(_produce()),
        install=lambda: uvloop.run(_install()),
    )
