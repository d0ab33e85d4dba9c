"""awa: AsyncClient for worker and producer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from awa import AsyncClient  # type: ignore[import-not-found,unused-ignore]

from benchmarks.peers.programs.protocol import QUEUE, SETTINGS, TARGET, Args, main, produce, stamp


@dataclass
class Noop:
    """The arguments, as a class: awa's way."""

    number: int
    action: str
    address: str
    lang: str
    attempt: int


class Job:
    """The part of awa's Job that is used here."""

    args: Noop


async def noop(job: Job) -> None:
    stamp(job.args.number)


class Enqueue:
    """insert, and enqueue_many_copy for many."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def one(self, args: Args) -> None:
        await self._client.insert(Noop(**args), queue=QUEUE)

    async def many(self, rows: list[Args]) -> None:
        await self._client.enqueue_many_copy([Noop(**args) for args in rows], queue=QUEUE)


async def _work() -> None:
    client = AsyncClient(TARGET, **SETTINGS.get("client", {}))
    client.task(Noop, queue=QUEUE)(noop)
    await client.start([{"name": QUEUE, **SETTINGS["queue"]}], **SETTINGS.get("start", {}))
    await asyncio.Event().wait()


async def _produce() -> None:
    await produce(Enqueue(AsyncClient(TARGET)))


async def _install() -> None:
    client = AsyncClient(TARGET)
    await client.migrate()
    await client.install_queue_storage()  # else the first worker does it, and there is no bulk COPY before that


if __name__ == "__main__":
    main(
        worker=lambda: asyncio.run(_work()),
        producer=lambda: asyncio.run(_produce()),
        install=lambda: asyncio.run(_install()),
    )
