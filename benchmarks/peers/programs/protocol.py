"""What the Python programs of all peers share: the job's arguments, the stamps of tasks and the orders to producers.

A program is started as `python -m benchmarks.peers.programs.NAME install|worker|produce`; BENCH_TARGET holds the
address of its storage, BENCH_SETTINGS its settings as JSON. A worker runs until it is terminated. A producer says
"ready", then carries out one order per line of stdin and answers each with one line of JSON. All times are
time.monotonic: one clock for all processes of a machine, also for node's process.hrtime.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypedDict

RECORD = struct.Struct("qq")  # number, nanoseconds; as in benchmarks.app
QUEUE = "bench"

TARGET = os.environ.get("BENCH_TARGET", "")
SETTINGS = json.loads(os.environ.get("BENCH_SETTINGS", "{}"))
STRIDE = int(os.environ.get("BENCH_STRIDE", "1"))


class Args(TypedDict):
    """The arguments of every job: about 100 bytes of JSON."""

    number: int
    action: str
    address: str
    lang: str
    attempt: int


class Producer(Protocol):
    """How a peer enqueues: both return when the jobs are committed."""

    async def one(self, args: Args) -> None: ...

    async def many(self, rows: list[Args]) -> None: ...


def args_of(number: int) -> Args:
    """The arguments of the job of that number."""
    return {
        "number": number,
        "action": "send_welcome_email",
        "address": "ada@example.com",
        "lang": "en",
        "attempt": 1,
    }


def _open() -> int:
    path = os.environ.get("BENCH_STAMPS")
    return os.open(path, os.O_WRONLY | os.O_APPEND) if path else -1


_STAMPS = _open()


def stamp(number: int) -> None:
    """The task's whole work: jobs whose number is a multiple of the stride write down when they were entered."""
    if number % STRIDE == 0:
        os.write(_STAMPS, RECORD.pack(number, time.monotonic_ns()))


async def produce(producer: Producer) -> None:
    """Carry out orders until stdin ends."""
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        answer = await ORDERS[order.pop("do")](producer, **order)
        print(json.dumps(answer), flush=True)


async def _one(producer: Producer, first: int, count: int) -> float:
    """Seconds for that many jobs, one at a time."""
    started = time.monotonic()
    for number in range(first, first + count):
        await producer.one(args_of(number))
    return time.monotonic() - started


async def _many(producer: Producer, first: int, count: int, batch: int) -> float:
    """Seconds for that many jobs, in batches."""
    started = time.monotonic()
    for start in range(first, first + count, batch):
        await producer.many([args_of(number) for number in range(start, min(start + batch, first + count))])
    return time.monotonic() - started


async def _paced(producer: Producer, first: int, count: int, pace: float) -> list[float]:
    """Enqueue at an even pace; when each had been acknowledged."""
    acknowledged = []
    started = time.monotonic()
    for place in range(count):
        await asyncio.sleep(max(0.0, started + place / pace - time.monotonic()))
        await producer.one(args_of(first + place))
        acknowledged.append(time.monotonic())
    return acknowledged


ORDERS: dict[str, Callable[..., Awaitable[object]]] = {"one": _one, "many": _many, "paced": _paced}


def main(
    *, worker: Callable[[], None], producer: Callable[[], None], install: Callable[[], None] | None = None
) -> None:
    """Do what the command line asks for."""
    roles = {"worker": worker, "produce": producer, "install": install or (lambda: None)}
    roles[sys.argv[1]]()
