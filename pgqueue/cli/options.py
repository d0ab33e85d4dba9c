"""What commands have in common: the settings as options, kinds of values, and the queue object they work with."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import ParamSpec

import click

from pgqueue import PgQueue
from pgqueue.config import Loaded, describe_setting, load
from pgqueue.db.connect import connect

P = ParamSpec("P")
Decorator = Callable[[Callable[..., int | None]], Callable[..., int | None]]

DATABASE = ("dsn", "schema", "pooled")
_SHORT = {"app": "-A", "queues": "-q"}
_METAVARS = {"dsn": "DSN", "direct_dsn": "DSN", "app": "MODULE:NAME", "queues": "NAME=N,...", "processes": "N"} | {
    "lease": "SECONDS", "grace": "SECONDS", "name": "TEXT", "schema": "TEXT", "log_level": "LEVEL",
}  # fmt: skip
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


def configured(*names: str) -> Decorator:
    """Give a command these settings as options, and `loaded` (a Loaded) as an argument."""

    def decorate(command: Callable[..., int | None]) -> Callable[..., int | None]:
        @functools.wraps(command)
        def run(**given: object) -> int | None:
            file = given.pop("config")
            flags = {name: given.pop(name) for name in names}
            return command(loaded=load(flags, file=None if file is None else str(file)), **given)

        result: Callable[..., int | None] = run
        result = click.option("--config", metavar="FILE", help="Settings file instead of ./pgqueue.yaml.")(result)
        for name in reversed(names):
            result = _setting(name)(result)
        return result

    return decorate


def _setting(name: str) -> Decorator:
    """Values stay text: the configuration checks them as it checks those from the environment."""
    spelled = [f"--{name.replace('_', '-')}", *([_SHORT[name]] if name in _SHORT else [])]
    text = describe_setting(name)
    text = f"{text[:1].upper()}{text[1:]}."
    if name == "pooled":
        return click.option(*spelled, is_flag=True, default=None, help=text)
    return click.option(*spelled, metavar=_METAVARS.get(name, "TEXT"), help=text)


json_option: Decorator = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


@contextmanager
def opened(loaded: Loaded) -> Iterator[PgQueue]:
    """The queue that the settings name, for as long as the block lasts."""
    config = loaded.config
    q = PgQueue(config.dsn, schema=config.schema, pooled=config.pooled, direct_dsn=config.direct_dsn)
    with reached(q):
        yield q


@contextmanager
def reached(q: PgQueue) -> Iterator[None]:
    """See that its database answers: the pool would try for half a minute, while somebody waits at the prompt."""
    connect(q.dsn, role="command line", pooled=q.pooled).close()
    try:
        yield
    finally:
        q.close()


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """Text such as `90`, `30s`, `2h30m`, `1d` as a timedelta."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        seconds = read_seconds(str(value))
        if seconds is None:
            self.fail(f"{value!r} is no duration: write seconds, or for example 30s, 2h30m, 1d", param, ctx)
        try:
            return timedelta(seconds=seconds)
        except OverflowError:
            self.fail(f"{value!r} is too long", param, ctx)


class JobId(click.ParamType):  # type: ignore[type-arg]
    """The number of a job."""

    name = "id"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and 0 < int(text) < 2**63):
            self.fail(f"{text!r} is no job's id, which is a whole number", param, ctx)
        return int(text)


class Instant(click.ParamType):  # type: ignore[type-arg]
    """ISO text as an aware datetime; without a zone it is local time.

    ago  a duration is taken too, as that long before now
    """

    name = "time"

    def __init__(self, *, ago: bool = False) -> None:
        self._ago = ago

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        text = str(value).strip()
        seconds = read_seconds(text) if self._ago else None
        try:
            if seconds is not None:
                return datetime.now(UTC) - timedelta(seconds=seconds)
            return datetime.fromisoformat(text).astimezone()
        except (ValueError, OverflowError, OSError):
            forms = "2026-01-31, 2026-01-31T12:00 or 2026-01-31T12:00Z"
            if self._ago:
                forms = f"2h, 1d, {forms}"
            self.fail(f"{value!r} is no time: write for example {forms}", param, ctx)


def read_seconds(text: str) -> float | None:
    """The seconds that a text such as `90` or `2h30m` says; None if it says none."""
    text = text.strip().lower().replace(" ", "")
    if re.fullmatch(r"\d{1,12}(\.\d+)?", text):
        return float(text)
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


DURATION = Duration()
INSTANT = Instant()
MOMENT = Instant(ago=True)
JOB_ID = JobId()
