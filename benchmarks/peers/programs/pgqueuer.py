"""PgQueuer on asyncpg: one connection or a pool, as its documentation has them."""

from __future__ import annotations

import json

import asyncpg  # type: ignore[import-untyped,unused-ignore]
import uvloop  # type: ignore[import-not-found,unused-ignore]
from pgqueuer import PgQueuer  # type: ignore[import-not-found,unused-ignore]
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver  # type: ignore[import-not-found,unused-ignore]
from pgqueuer.queries import Queries  # type: ignore[import-not-found,unused-ignore]

from benchmarks.peers.programs.protocol import QUEUE, SETTINGS, TARGET, Args, main, produce, stamp


class Job:
    """The part of pgqueuer.models.Job that is used here."""

    payload: bytes


async def noop(job: Job) -> None:
    stamp(json.loads(job.payload)["number"])


class Enqueue:
    """Queries.enqueue: one job, or lists in one statement."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries

    async def one(self, args: Args) -> None:
        await self._queries.enqueue(QUEUE, json.dumps(args).encode())

    async def many(self, rows: list[Args]) -> None:
        payloads = [json.dumps(args).encode() for args in rows]
        await self._queries.enqueue([QUEUE] * len(rows), payloads, [0] * len(rows))


async def _work() -> None:
    if "pool" in SETTINGS:
        driver = AsyncpgPoolDriver(await asyncpg.create_pool(TARGET, min_size=2, max_size=SETTINGS["pool"]))
    else:
        driver = AsyncpgDriver(await asyncpg.connect(TARGET))
    queue = PgQueuer(driver)
    queue.entrypoint(QUEUE)(noop)
    await queue.run(**SETTINGS["run"])


async def _produce() -> None:
    await produce(Enqueue(Queries(AsyncpgDriver(await asyncpg.connect(TARGET)))))


async def _install() -> None:
    await Queries(AsyncpgDriver(await asyncpg.connect(TARGET))).install()


if __name__ == "__main__":
    main(
        worker=lambda: uvloop.run(_work()),
        producer=lambda: uvloop.run(_produce()),
        install=lambda: uvloop.run(_install()),
    )
