"""What a task raises to say how its attempt should end: values, not errors."""

from __future__ import annotations

from datetime import timedelta


def as_delay(value: timedelta | float, name: str = "delay") -> timedelta:
    """A delay from a timedelta or a number of seconds.

    raises  ValueError naming the value if it is negative, not finite, or over 100 years
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not 0 <= seconds <= 100 * 365.25 * 86400:
        raise ValueError(f"{name} {value!r}: must be from 0 seconds to 100 years")
    return timedelta(seconds=seconds)


class Signal(Exception):
    """The root of what a task may raise to steer its own job."""


class Snooze(Signal):
    """Run this job again after `delay` (timedelta or seconds); costs no attempt."""

    def __init__(self, delay: timedelta | float) -> None:
        self.delay = as_delay(delay)
        super().__init__(f"snoozed for {self.delay}")


class Cancel(Signal):
    """End the job as `cancelled`, with a reason."""

    def __init__(self, reason: str = "cancelled by the task") -> None:
        self.reason = reason
        super().__init__(reason)


class Discard(Signal):
    """End the job as `discarded`, with a reason: no retry can help."""

    def __init__(self, reason: str = "discarded by the task") -> None:
        self.reason = reason
        super().__init__(reason)


class RetryAfter(Signal):
    """This attempt failed; run again after `delay` instead of the policy's; costs an attempt."""

    def __init__(self, delay: timedelta | float, reason: str = "retry requested by the task") -> None:
        self.delay = as_delay(delay)
        self.reason = reason
        super().__init__(reason)
