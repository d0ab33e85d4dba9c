"""The door: every option of a job is checked here, before anything is sent.

Guarantees: what passes is inside the limits that the database has too, so that an enqueue can't fail there half-way; a
refusal names the value, its limit and the remedy, and nothing was sent.
Never: I/O, or a value silently clipped, rounded or converted to fit. The JSON rules live in `json_text`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TypedDict

from pgqueue.core.outcome import storable
from pgqueue.core.retry import MAX_ATTEMPTS_LIMIT
from pgqueue.errors import InvalidArguments, InvalidJob
from pgqueue.tasks.json_text import encode_object

NAME_LIMIT = 128
PRIORITY_LOWEST = -32768
PRIORITY_HIGHEST = 32767
DELAY_LIMIT = timedelta(days=36525)
TIMEOUT_LIMIT = timedelta(days=366)
UNIQUE_KEY_LIMIT = 512
TAGS_LIMIT = 32
TAG_LIMIT = 128
TENANT_LIMIT = 128
ID_HIGHEST = 2**63 - 1

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]{0,127}")


class Options(TypedDict, total=False):
    """The options of one enqueue; None means not given. Durations are timedeltas, or numbers of seconds."""

    queue: str | None
    priority: int | None
    delay: timedelta | float | None
    scheduled_at: datetime | None
    max_attempts: int | None
    timeout: timedelta | float | None
    expires_at: datetime | None
    unique_key: str | None
    tags: Sequence[str] | None
    metadata: Mapping[str, object] | None
    tenant: str | None


def check_options(options: Mapping[str, object]) -> dict[str, object]:
    """The given options as checked values of a Draft's fields; those that are None are left out.

    raises  InvalidArguments for an option that does not exist, InvalidJob for a value outside its limits
    """
    checked: dict[str, object] = {}
    for name, value in options.items():
        check = _CHECKS.get(name)
        if check is None:
            raise InvalidArguments(f"unknown option {name!r}{nearest(name, _CHECKS)}")
        if value is not None:
            checked[name] = check(value, name)
    if "delay" in checked and "scheduled_at" in checked:
        raise InvalidJob("delay and scheduled_at are both given; give one of them")
    return checked


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about a name that isn't known: the nearest known one, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if names else "; there are none"


def check_name(value: object, what: str) -> str:
    """A queue's or a kind's name: a letter or underscore, then letters, digits and `_ . : / -`, 128 at most."""
    if isinstance(value, str) and _NAME.fullmatch(value):
        return str.__str__(value)
    raise _invalid(
        what, value, f"must be a letter or underscore, then letters, digits and _ . : / - ({NAME_LIMIT} at most)"
    )


def check_priority(value: object, what: str = "priority") -> int:
    """From -32768 to 32767; higher runs first."""
    return _whole(value, what, low=PRIORITY_LOWEST, high=PRIORITY_HIGHEST)


def check_max_attempts(value: object, what: str = "max_attempts") -> int:
    """From 1 to 1000."""
    return _whole(value, what, low=1, high=MAX_ATTEMPTS_LIMIT)


def check_delay(value: object, what: str = "delay") -> float:
    """Seconds, from 0 to 100 years."""
    seconds = _seconds(value, what)
    if not 0 <= seconds <= DELAY_LIMIT.total_seconds():
        raise _invalid(what, value, "must be from 0 seconds to 100 years")
    return seconds


def check_timeout(value: object, what: str = "timeout") -> float:
    """Seconds, over 0 and up to 366 days."""
    seconds = _seconds(value, what)
    if not 0 < seconds <= TIMEOUT_LIMIT.total_seconds():
        raise _invalid(what, value, "must be more than 0 seconds and at most 366 days; leave it out for no time-out")
    return seconds


def check_instant(value: object, what: str) -> datetime:
    """An aware datetime: a naive one means different instants on different machines."""
    if not isinstance(value, datetime):
        raise _invalid(what, value, "must be an aware datetime, such as datetime.now(timezone.utc)")
    if value.utcoffset() is None:
        raise _invalid(what, value, "has no time zone; add one, for example .replace(tzinfo=timezone.utc)")
    return value


def check_unique_key(value: object, what: str = "unique_key") -> str:
    """1 to 512 characters."""
    return _text(value, what, limit=UNIQUE_KEY_LIMIT)


def check_tenant(value: object, what: str = "tenant") -> str:
    """1 to 128 characters."""
    return _text(value, what, limit=TENANT_LIMIT)


def check_id(value: object, what: str = "id") -> int:
    """A job's number: from 1 to 2**63 - 1."""
    return _whole(value, what, low=1, high=ID_HIGHEST)


def check_reason(value: object, what: str = "reason") -> str | None:
    """Any text or None; what PostgreSQL can't store of it is written out, and its middle is cut at 32 Ki characters."""
    if value is not None and not isinstance(value, str):
        raise _invalid(what, value, "must be a text")
    return None if value is None else storable(value)


def check_tag(value: object, what: str) -> str:
    """1 to 128 characters."""
    return _text(value, what, limit=TAG_LIMIT)


def check_tags(value: object, what: str = "tags") -> tuple[str, ...]:
    """At most 32 texts of 1 to 128 characters, in the order given."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise _invalid(what, value, 'must be a list of texts, such as ["import"]')
    tags = tuple(value)
    if len(tags) > TAGS_LIMIT:
        raise InvalidJob(f"{what}: {len(tags)} given, the limit is {TAGS_LIMIT}; drop some or put them in metadata")
    return tuple(check_tag(tag, f"{what}[{index}]") for index, tag in enumerate(tags))


def check_metadata(value: object, what: str = "metadata") -> str:
    """The JSON text of a mapping; the key `pgqueue` in it is reserved for checkpoints."""
    text = encode_object(what, value)
    if isinstance(value, Mapping) and "pgqueue" in value:
        raise InvalidJob(f"{what}: the key 'pgqueue' is reserved for checkpoints; use another key")
    return text


_CHECKS: Mapping[str, Callable[[object, str], object]] = {
    "queue": check_name,
    "priority": check_priority,
    "delay": check_delay,
    "scheduled_at": check_instant,
    "max_attempts": check_max_attempts,
    "timeout": check_timeout,
    "expires_at": check_instant,
    "unique_key": check_unique_key,
    "tags": check_tags,
    "metadata": check_metadata,
    "tenant": check_tenant,
}


def _whole(value: object, what: str, *, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _invalid(what, value, f"must be a whole number from {low} to {high}")
    return int(value)


def _seconds(value: object, what: str) -> float:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid(what, value, "must be a timedelta or a number of seconds")
    try:
        return float(value)
    except OverflowError:
        return float("inf")  # an integer over 1e308: outside every limit


def _text(value: object, what: str, *, limit: int) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= limit:
        raise _invalid(what, value, f"must be a text of 1 to {limit} characters")
    if "\0" in value:
        raise _invalid(what, value, "contains a NUL character, which PostgreSQL can't store; remove it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _invalid(what, value, "contains half of a surrogate pair, which is not Unicode; remove it") from error
    return str.__str__(value)


def _invalid(what: str, value: object, rule: str) -> InvalidJob:
    try:
        text = ascii(value) if isinstance(value, str) else repr(value)
    except ValueError:
        text = "of over 4300 digits"  # repr of a huge integer
    return InvalidJob(f"{what} {text if len(text) <= 200 else text[:197] + '...'}: {rule}")
