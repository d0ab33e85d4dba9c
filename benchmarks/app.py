"""The tasks that the benchmarks run, by `pgqueue worker -A benchmarks.app:q`.

Where BENCH_STAMPS names a file, `stamp` and `hold` append the moment at which they were entered, by the clock
that all processes of a machine share.
"""

from __future__ import annotations

import os
import struct
import time

from pgqueue import PgQueue

STAMPS = "BENCH_STAMPS"
HOLD = "BENCH_HOLD"
RECORD = struct.Struct("qq")  # number, nanoseconds

q = PgQueue()


@q.task
async def noop(user_id: int, action: str, n: int) -> None:
    """Nothing, as a coroutine."""


@q.task
async def returning(user_id: int, action: str, n: int) -> dict[str, int]:
    """Nothing, but it says so."""
    return {"user_id": user_id}


@q.task
def noop_in_thread(user_id: int, action: str, n: int) -> None:
    """Nothing, as a plain function."""


@q.task(executor="process")
def noop_in_process(user_id: int, action: str, n: int) -> None:
    """Nothing, in a process beside the worker."""


@q.task
async def letter(text: str) -> None:
    """Nothing, with arguments of a chosen size."""


@q.task
async def stamp(number: int) -> None:
    """Say when it was entered."""
    _write(number, time.monotonic_ns())


@q.task
def hold(number: int) -> None:
    """Say when it was entered, and stay for the seconds that this worker's environment asks for."""
    _write(number, time.monotonic_ns())
    time.sleep(float(os.environ.get(HOLD, "0")))


def _write(number: int, instant: int) -> None:
    """Append in one call: the file may be shared by many processes."""
    fd = os.open(os.environ[STAMPS], os.O_WRONLY | os.O_APPEND)
    os.write(fd, RECORD.pack(number, instant))
    os.close(fd)
