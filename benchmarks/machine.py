"""The machine under the measurements: processor time, memory and steal, from /proc; None where there is no /proc.

Never: changes anything.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
STEAL = 7  # place of `steal` among the numbers of /proc/stat's first line
COUNTED = 8  # the numbers after it repeat some of those before


def end_in_order_on_sigterm() -> None:
    """Let SIGTERM unwind this process as Ctrl-C does, so that the servers and workers it has started end too."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def cpu_name() -> str:
    """What the processor calls itself."""
    with contextlib.suppress(OSError):
        for line in (PROC / "cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Steal:
    """The share of time that the host gave to others, since this was made."""

    def __init__(self) -> None:
        self._before = _jiffies()

    def percent(self) -> float | None:
        """In percent of all processor time."""
        now = _jiffies()
        if self._before is None or now is None:
            return None
        total = sum(now) - sum(self._before)
        return round(100 * (now[STEAL] - self._before[STEAL]) / total, 1) if total else 0.0


def _jiffies() -> list[int] | None:
    with contextlib.suppress(OSError):
        return [int(number) for number in (PROC / "stat").read_text().splitlines()[0].split()[1 : COUNTED + 1]]
    return None


def thread_seconds(pid: int) -> float | None:
    """Processor seconds of a process with one thread, to the microsecond."""
    with contextlib.suppress(OSError):
        return int((PROC / str(pid) / "schedstat").read_text().split()[0]) / 1e9
    return None


def process_seconds(pid: int) -> float | None:
    """Processor seconds of a process and of its children that have ended, to a hundredth."""
    fields = _stat(pid)
    return None if fields is None else sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def family_seconds(pid: int) -> float | None:
    """Processor seconds of a process and of all its children, such as a PostgreSQL server."""
    own = process_seconds(pid)
    return None if own is None else own + sum(process_seconds(child) or 0.0 for child in _children(pid))


def resident_mb(pid: int) -> float | None:
    """Resident memory of a process."""
    with contextlib.suppress(OSError):
        for line in (PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return None


def _children(pid: int) -> Iterator[int]:
    for entry in PROC.iterdir():
        if entry.name.isdecimal():
            fields = _stat(int(entry.name))
            if fields is not None and int(fields[1]) == pid:
                yield int(entry.name)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat after the name, which may contain anything: state, parent, ..."""
    with contextlib.suppress(OSError):
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return None
