"""Celery with Redis as its broker and without a result backend."""

from __future__ import annotations

import asyncio

from celery import Celery  # type: ignore[import-not-found,unused-ignore]

from benchmarks.peers.programs.protocol import QUEUE, SETTINGS, TARGET, Args, main, produce, stamp

app = Celery("bench", broker=TARGET)
app.conf.update(task_default_queue=QUEUE, **SETTINGS.get("conf", {}))


def _noop(number: int, action: str, address: str, lang: str, attempt: int) -> None:
    stamp(number)


noop = app.task(name="noop")(_noop)


class Enqueue:
    """apply_async; Celery has no call for many: its group publishes one by one, so that is what is done."""

    async def one(self, args: Args) -> None:
        noop.apply_async(kwargs=args)

    async def many(self, rows: list[Args]) -> None:
        with app.producer_or_acquire() as producer:
            for args in rows:
                noop.apply_async(kwargs=args, producer=producer)


def worker() -> None:
    app.worker_main(["worker", "--loglevel", "ERROR", *SETTINGS.get("arguments", [])])


if __name__ == "__main__":
    main(worker=worker, producer=lambda: asyncio.run(produce(Enqueue())))
