"""A statement's `%(name)s` placeholders in the spelling of other drivers, each text rewritten once and remembered.

Guarantees: only placeholders and doubled per cent signs change; values are never put into the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TypeAlias

Params: TypeAlias = Mapping[str, object]

_PLACEHOLDER = re.compile(r"%\((\w+)\)s|%%")


def numbered(sql: str, params: Params) -> tuple[str, tuple[object, ...]]:
    """`sql` with $1, $2, ... (a per cent sign single) and the values in that order."""
    text, names = _numbered(sql)
    return text, tuple(params[name] for name in names)


def positional(sql: str, params: Params) -> tuple[str, tuple[object, ...]]:
    """`sql` with %s (a per cent sign still doubled) and the values in that order."""
    text, names = _positional(sql)
    return text, tuple(params[name] for name in names)


@lru_cache(maxsize=1024)
def bracketed(sql: str) -> str:
    """`sql` with (%(name)s), for drivers that write the values into the text.

    PostgreSQL reads `-32768::smallint` as -(32768::smallint), which is out of range; (-32768)::smallint is not.
    """
    return _PLACEHOLDER.sub(lambda match: f"(%({match[1]})s)" if match[1] else "%%", sql)


@lru_cache(maxsize=1024)
def _numbered(sql: str) -> tuple[str, tuple[str, ...]]:
    numbers: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        return f"${numbers.setdefault(match[1], len(numbers) + 1)}" if match[1] else "%"

    return _PLACEHOLDER.sub(number, sql), tuple(numbers)


@lru_cache(maxsize=1024)
def _positional(sql: str) -> tuple[str, tuple[str, ...]]:
    names = tuple(match[1] for match in _PLACEHOLDER.finditer(sql) if match[1])
    return _PLACEHOLDER.sub(lambda match: "(%s)" if match[1] else "%%", sql), names
