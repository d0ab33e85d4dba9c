"""The door: each option's limits, and errors that name value, limit and remedy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue.errors import InvalidArguments, InvalidJob
from pgqueue.tasks.door import check_name, check_options

NOW = datetime(2026, 1, 2, tzinfo=UTC)


class Queues(StrEnum):
    MAIL = "mail"


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("queue", "mail", "mail"),
        ("queue", Queues.MAIL, "mail"),
        ("queue", "_a.b:c/d-e" + "x" * 118, "_a.b:c/d-e" + "x" * 118),
        ("priority", -32768, -32768),
        ("priority", 32767, 32767),
        ("delay", timedelta(minutes=1), 60.0),
        ("delay", 0, 0.0),
        ("delay", 0.5, 0.5),
        ("scheduled_at", NOW, NOW),
        ("expires_at", NOW, NOW),
        ("max_attempts", 1, 1),
        ("max_attempts", 1000, 1000),
        ("timeout", timedelta(days=366), 366 * 86400.0),
        ("timeout", 0.001, 0.001),
        ("unique_key", "é" * 512, "é" * 512),
        ("tags", ["a", "b"], ("a", "b")),
        ("tags", [], ()),
        ("tags", ["x" * 128] * 32, ("x" * 128,) * 32),
        ("metadata", {"by": "me"}, '{"by":"me"}'),
        ("tenant", "acme", "acme"),
    ],
)
def test_an_option_within_its_limits_passes(name: str, value: object, stored: object) -> None:
    checked = check_options({name: value})
    assert checked == {name: stored}
    assert type(checked[name]) is type(stored)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("queue", "", "queue '': must be a letter or underscore"),
        ("queue", "1mail", "queue '1mail'"),
        ("queue", "ma il", "queue 'ma il'"),
        ("queue", "mail\n", r"queue 'mail\\n'"),
        ("queue", "é", r"queue '\\xe9'"),
        ("queue", "x" * 129, "128 at most"),
        ("queue", 7, "queue 7"),
        ("priority", 32768, "priority 32768: must be a whole number from -32768 to 32767"),
        ("priority", -32769, "priority -32769"),
        ("priority", True, "priority True"),
        ("priority", 1.0, r"priority 1\.0"),
        ("priority", "1", "priority '1'"),
        ("delay", -1, "delay -1: must be from 0 seconds to 100 years"),
        ("delay", timedelta(seconds=-1), "delay .*: must be from 0 seconds"),
        ("delay", float("nan"), "delay nan"),
        ("delay", float("inf"), "delay inf"),
        ("delay", 10**400, "delay 1000.*: must be from 0"),
        ("delay", timedelta.max, "delay"),
        ("delay", True, "delay True: must be a timedelta or a number of seconds"),
        ("delay", "5", "delay '5': must be a timedelta or a number of seconds"),
        ("scheduled_at", datetime(2026, 1, 1), "scheduled_at .* has no time zone; add one"),
        ("scheduled_at", "2026-01-01", "scheduled_at '2026-01-01': must be an aware datetime"),
        ("expires_at", datetime(2026, 1, 1), "expires_at .* has no time zone"),
        ("max_attempts", 0, "max_attempts 0: must be a whole number from 1 to 1000"),
        ("max_attempts", 1001, "max_attempts 1001"),
        ("max_attempts", True, "max_attempts True"),
        ("timeout", 0, "timeout 0: must be more than 0 seconds and at most 366 days"),
        ("timeout", -1, "timeout -1"),
        ("timeout", timedelta(days=366, microseconds=1), "timeout"),
        ("timeout", float("nan"), "timeout nan"),
        ("timeout", False, "timeout False"),
        ("unique_key", "", "unique_key '': must be a text of 1 to 512 characters"),
        ("unique_key", "x" * 513, "unique_key 'xxx"),
        ("unique_key", 7, "unique_key 7"),
        ("unique_key", "a\0", "contains a NUL character"),
        ("unique_key", "\ud800", "half of a surrogate pair"),
        ("tags", "import", r'tags \'import\': must be a list of texts, such as \["import"\]'),
        ("tags", 7, "tags 7"),
        ("tags", ["a"] * 33, "tags: 33 given, the limit is 32"),
        ("tags", ["a", ""], r"tags\[1\] '': must be a text of 1 to 128 characters"),
        ("tags", ["x" * 129], r"tags\[0\]"),
        ("tags", [None], r"tags\[0\] None"),
        ("metadata", [1], r"metadata \[1\]: must be a mapping"),
        ("metadata", {"a": float("nan")}, r"metadata: \$.a is nan"),
        ("metadata", {"pgqueue": {}}, "metadata: the key 'pgqueue' is reserved for checkpoints"),
        ("metadata", {"a": "x" * 2**20}, "metadata: 1048584 bytes of JSON"),
        ("tenant", "", "tenant ''"),
        ("tenant", "x" * 129, "tenant"),
    ],
)
def test_an_option_outside_its_limits_is_refused_by_name(name: str, value: object, said: str) -> None:
    with pytest.raises(InvalidJob, match=said):
        check_options({name: value})


def test_delay_and_scheduled_at_exclude_each_other() -> None:
    with pytest.raises(InvalidJob, match="delay and scheduled_at are both given; give one of them"):
        check_options({"delay": 1, "scheduled_at": NOW})


def test_an_option_that_is_none_is_not_given() -> None:
    assert check_options({"delay": None, "scheduled_at": NOW, "queue": None}) == {"scheduled_at": NOW}


def test_an_unknown_option_is_told_the_nearest() -> None:
    with pytest.raises(InvalidArguments, match="unknown option 'schedule_at'; did you mean 'scheduled_at'"):
        check_options({"schedule_at": NOW})
    with pytest.raises(InvalidArguments, match="unknown option 'zzz'; known: delay, expires_at"):
        check_options({"zzz": 1})


@given(st.one_of(st.text(max_size=140), st.from_regex(r"[A-Za-z_][A-Za-z0-9_.:/-]{0,127}", fullmatch=True)))
def test_a_name_passes_if_and_only_if_the_database_would_take_it(name: str) -> None:
    ok = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")
    fits = 1 <= len(name) <= 128 and name[0] in ok and set(name) <= ok | set("0123456789.:/-")
    try:
        assert check_name(name, "kind") == name
    except InvalidJob:
        assert not fits
    else:
        assert fits


@given(st.one_of(st.floats(), st.integers(), st.timedeltas()))
def test_a_delay_that_passes_is_a_finite_number_of_seconds(value: Any) -> None:
    try:
        seconds = check_options({"delay": value})["delay"]
    except InvalidJob:
        assert not (0 <= (value.total_seconds() if isinstance(value, timedelta) else value) <= 100 * 365.25 * 86400)
    else:
        assert isinstance(seconds, float)
        assert 0 <= seconds <= 100 * 365.25 * 86400


def test_a_number_too_long_to_be_written_is_refused_all_the_same() -> None:
    with pytest.raises(InvalidJob, match="delay of over 4300 digits"):
        check_options({"delay": 10**5000})
