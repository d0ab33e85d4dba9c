"""How long to wait before the next try of something that failed: doubling, with jitter, up to a cap."""

from __future__ import annotations

import random


class Backoff:
    """Waits of `first` seconds, twice that, ... up to `cap`, each shortened by up to a half, to spread them."""

    def __init__(self, *, first: float = 0.1, cap: float = 30.0) -> None:
        self._first = first
        self._cap = cap
        self.failures = 0

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        self.failures += 1
        seconds: float = min(self._cap, self._first * 2 ** min(self.failures - 1, 16))
        return seconds * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It worked."""
        self.failures = 0
