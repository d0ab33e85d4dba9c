"""An operation as a value: one SQL statement, its parameters, and how to read its rows.

Guarantees: building a Statement does no I/O; running it is one round trip, on any connection, sync or async.
Never: string building with values. The only text replaced in SQL is the schema's name, once, when it is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)
Row = Sequence[object]

SCHEMA = "pgqueue"
_SCHEMA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,47}")
_QUERY = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Statement(Generic[T_co]):
    """One SQL statement that can be run on any connection.

    sql     text with `%(name)s` placeholders (a literal per cent sign is doubled)
    params  by name; only str, int, float, bool and None unless the statement is run by the engine itself
    decode  makes the result of the fetched rows (positional sequences, in column order)
    """

    sql: str
    params: Mapping[str, object]
    decode: Callable[[Sequence[Row]], T_co]


def check_schema(name: str) -> str:
    """Return `name` if it can be a schema of pgqueue.

    raises  ValueError naming it: letters, digits and underscores only, 48 at most
    """
    if not _SCHEMA_NAME.fullmatch(name):
        raise ValueError(
            f"schema {name!r}: use a letter or underscore followed by letters, digits and underscores, 48 at most"
        )
    return name


def in_schema(sql: str, schema: str) -> str:
    """Write `sql`, in which the schema stands literally as `pgqueue.`, for another schema."""
    if schema == SCHEMA:
        return sql
    return re.sub(rf"\b{SCHEMA}\.", f'"{check_schema(schema)}".', sql)


@cache
def queries(file: str, schema: str = SCHEMA) -> Mapping[str, str]:
    """The named queries of `store/<file>`: name -> SQL text, written for `schema`."""
    text = resources.files("pgqueue.store").joinpath(file).read_text(encoding="utf-8")
    parts = _QUERY.split(in_schema(text, schema))
    return dict(zip(parts[1::2], parts[2::2], strict=True))
