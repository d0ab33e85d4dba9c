"""What is measured, as values. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What one workload has shown. All times in seconds.

    jobs, seconds, jobs_per_second   how many, in which time; of latencies the pace that was kept
    p50, p90, p99, max               of single times, if any were taken: `timed` says of what
    """

    jobs: int
    seconds: float
    jobs_per_second: float
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None
    timed: str | None = None


def figure(jobs: int, seconds: float, *, times: Sequence[float] = (), timed: str | None = None) -> Figure:
    """A Figure of so many jobs in so many seconds, with the percentiles of `times`."""
    rate = jobs / seconds if seconds > 0 else 0.0
    if not times:
        return Figure(jobs=jobs, seconds=seconds, jobs_per_second=rate)
    return Figure(
        jobs=jobs, seconds=seconds, jobs_per_second=rate, p50=percentile(times, 0.5), p90=percentile(times, 0.9),
        p99=percentile(times, 0.99), max=max(times), timed=timed,
    )  # fmt: skip


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of `values` does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
