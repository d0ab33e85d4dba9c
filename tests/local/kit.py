"""What the tests of local runs share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from pgqueue.state_file import LocalState

T = TypeVar("T")
PATIENCE = 30.0  # seconds
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"  # a port that refuses
EXECUTORS = ("threaded", "process", "coroutine")


def state_of(path: Path) -> LocalState:
    """What the file says, as anybody may read it at any time."""
    return msgspec.json.decode(path.read_bytes(), type=LocalState)


def log_of(home: Path) -> list[str]:
    """The steps that ran, and what the last lines say."""
    return (home / "log").read_text().splitlines()


def until(look: Callable[[], T]) -> T:
    """What it finds, once it finds anything."""
    pause = threading.Event()
    for _ in range(int(PATIENCE * 100)):
        if found := look():
            return found
        pause.wait(0.01)
    raise AssertionError("never found")
