"""Backoff grows, is capped, spreads, and refuses nonsense."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue.core.retry import Retry
from pgqueue.core.signals import RetryAfter, Snooze


@pytest.mark.parametrize(("failures", "seconds"), [(1, 2), (2, 4), (3, 8), (5, 32), (6, 60), (1000, 60)])
def test_the_delay_doubles_up_to_the_cap(failures: int, seconds: float) -> None:
    assert Retry(cap=60).delay(failures, spread=0) == timedelta(seconds=seconds)


@given(st.integers(1, 10**9), st.floats(-1, 1), st.floats(1, 1000), st.floats(0, 366 * 86400), st.floats(0, 1))
def test_no_delay_is_negative_or_over_the_cap(
    failures: int, spread: float, base: float, cap: float, jitter: float
) -> None:
    delay = Retry(base=base, cap=cap, jitter=jitter).delay(failures, spread=spread)
    assert timedelta(0) <= delay <= timedelta(seconds=cap) + timedelta(microseconds=1)


def test_jitter_spreads_both_ways() -> None:
    delays = {Retry(jitter=0.5).delay(3) for _ in range(100)}
    assert timedelta(seconds=4) <= min(delays) < timedelta(seconds=8) < max(delays) <= timedelta(seconds=12)
    assert len(delays) > 90


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_attempts": 0}, "max_attempts 0"),
    ({"max_attempts": 1001}, "max_attempts 1001"),
    ({"max_attempts": True}, "max_attempts True"),
    ({"max_attempts": 2.0}, "max_attempts 2.0"),
    ({"base": 0.5}, "base 0.5"),
    ({"base": float("nan")}, "base nan"),
    ({"cap": -1}, "cap -1"),
    ({"cap": float("inf")}, "cap inf"),
    ({"jitter": 1.1}, "jitter 1.1"),
]


@pytest.mark.parametrize(("option", "named"), BAD)
def test_a_value_out_of_range_is_named(option: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Retry(**option)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), timedelta(days=40000)])
def test_a_signal_takes_no_impossible_delay(value: Any) -> None:
    for signal in (Snooze, RetryAfter):
        with pytest.raises(ValueError, match="delay"):
            signal(value)
