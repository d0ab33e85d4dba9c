"""pgqueue: `pgqueue worker -A benchmarks.peers.programs.pgqueue:q` is its worker, this its producer."""

from __future__ import annotations

import asyncio

from benchmarks.peers.programs.protocol import QUEUE, Args, main, produce, stamp
from pgqueue import PgQueue

q = PgQueue()


@q.task(queue=QUEUE)
async def noop(number: int, action: str, address: str, lang: str, attempt: int) -> None:
    """Nothing."""
    stamp(number)


class Enqueue:
    """Awaited, as the peers' are; each call is a transaction of its own."""

    async def one(self, args: Args) -> None:
        await noop.aenqueue(**args)

    async def many(self, rows: list[Args]) -> None:
        await noop.aenqueue_many([dict(row) for row in rows])


def install() -> None:
    q.migrate()


def worker() -> None:
    raise SystemExit("pgqueue's worker is started by `pgqueue worker`")


def producer() -> None:
    asyncio.run(produce(Enqueue()))


if __name__ == "__main__":
    main(worker=worker, producer=producer, install=install)
