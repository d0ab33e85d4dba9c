"""When a failed attempt is tried again: capped exponential backoff with jitter."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta

DEFAULT_MAX_ATTEMPTS = 20
MAX_ATTEMPTS_LIMIT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often, and how long after a failure, a job is tried again.

    max_attempts  attempts that may fail before the job is discarded, 1..1000
    base          the delay after the n-th failure is `base ** n` seconds ...
    cap           ... but never more than this many seconds (one day by default)
    jitter        and is spread by up to this share either way, 0..1
    raises        ValueError naming the value that is out of range
    """

    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    base: float = 2.0
    cap: float = 86400.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        if isinstance(self.max_attempts, bool) or not isinstance(self.max_attempts, int):
            raise ValueError(f"max_attempts {self.max_attempts!r}: must be a whole number")
        if not 1 <= self.max_attempts <= MAX_ATTEMPTS_LIMIT:
            raise ValueError(f"max_attempts {self.max_attempts}: must be from 1 to {MAX_ATTEMPTS_LIMIT}")
        if not 1 <= self.base <= 1000:
            raise ValueError(f"base {self.base}: must be from 1 to 1000")
        if not 0 <= self.cap <= 366 * 86400:
            raise ValueError(f"cap {self.cap}: must be from 0 to a year, in seconds")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter {self.jitter}: must be from 0 to 1")

    def delay(self, failures: int, *, spread: float | None = None) -> timedelta:
        """The delay after `failures` failed attempts (1 or more).

        spread  from -1 to 1, where in the jitter's range to land; random unless given
        """
        exponent = min(max(failures, 1), 64)  # clamped before the power: 1000 ** 1000 would overflow
        seconds = min(self.cap, self.base**exponent)
        where = random.uniform(-1, 1) if spread is None else spread
        return timedelta(seconds=min(self.cap, max(0.0, seconds * (1 + self.jitter * where))))
