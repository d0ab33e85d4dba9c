"""Where in a queue to look for work: per priority, the place behind which everything has been taken.

Why: claimed chunks leave dead index entries at the head of the queue. While an old transaction pins the xmin horizon
no vacuum can remove them, and every scan from the start would walk them all again (0.1 µs each, 100 ms for a million).
So scans start behind the mark. Rows whose transaction commits late appear below it; the mark therefore lags 1,000
places behind, and a scan from the very start is made every 0.5 s, or less often (every 2 s at least) where that would
take 2 % of the time, and always before the worker goes to sleep. (With 5 % it was more than one claim in a hundred, and
the 99th percentile of claims beside a pinned horizon 2.25 times as long; now 1.12 times.)
"""

from __future__ import annotations

import time

from pgqueue.store.jobs import LOWEST_MARK

LAG = 1000
FULL_EVERY, FULL_WITHIN = 0.5, 2.0  # seconds
FULL_SHARE = 50  # a full scan may cost a fiftieth of the time
MOST_PRIORITIES = 64


class Marks:
    """The marks of one queue. Priorities are remembered once seen; the highest comes first."""

    def __init__(self) -> None:
        self._marks: dict[int, int] = {0: LOWEST_MARK}
        self._full_at = 0.0
        self._full_cost = 0.0

    @property
    def full_is_due(self) -> bool:
        """Is it time to look from the very start?"""
        return time.monotonic() - self._full_at > min(FULL_WITHIN, max(FULL_EVERY, FULL_SHARE * self._full_cost))

    def start(self, *, full: bool) -> dict[int, int]:
        """Where to start a scan, by priority, highest first."""
        if full:
            return dict.fromkeys(self._marks, LOWEST_MARK)
        return {priority: max(LOWEST_MARK, mark - LAG) for priority, mark in self._marks.items()}

    def scanned(self, seconds: float, *, full: bool) -> None:
        """A scan took this long."""
        if full:
            self._full_at = time.monotonic()
            self._full_cost = seconds

    def advance(self, marks: dict[int, int]) -> None:
        """Chunks up to these places were taken."""
        for priority, mark in marks.items():
            if mark > self._marks.get(priority, LOWEST_MARK):
                self._marks[priority] = mark

    def discover(self, priorities: list[int]) -> None:
        """These priorities (highest first) have work too. Too many to remember: start over with them."""
        if len(self._marks) + len(priorities) > MOST_PRIORITIES:
            self._marks = {}
            priorities = priorities[:MOST_PRIORITIES]
        known = self._marks | dict.fromkeys(priorities, LOWEST_MARK)
        self._marks = dict(sorted(known.items(), reverse=True))
