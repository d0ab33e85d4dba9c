"""JSON safety: the quick checks agree with a slow walker that is obviously right."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgqueue.errors import InvalidJob
from pgqueue.tasks.json_text import (
    DEPTH_LIMIT,
    SIZE_LIMIT_BYTES,
    check_object_text,
    depth,
    encode_object,
    encode_result,
    encode_value,
)


def is_right(value: object, level: int = 0) -> bool:
    """The slow walker: a JSON value that PostgreSQL keeps, size aside."""
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int):
        return -(10**4299) < value < 10**4300
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return not any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value)
    if level >= DEPTH_LIMIT:
        return False
    if isinstance(value, list | tuple):
        return all(is_right(item, level + 1) for item in value)
    assert isinstance(value, dict)
    return all(isinstance(key, str) and is_right(key) and is_right(item, level + 1) for key, item in value.items())


def listed(value: object) -> object:
    if isinstance(value, list | tuple):
        return [listed(item) for item in value]
    return {key: listed(item) for key, item in value.items()} if isinstance(value, dict) else value


def nested(levels: int, leaf: object = 1) -> Any:
    value = leaf
    for number in range(levels):
        value = [value] if number % 2 else {"a": value}
    return value


texts = st.text(st.one_of(st.characters(), st.sampled_from('\0\ud800\udfff\\u0"[]{}é\U0001f600')), max_size=8)
texts = st.one_of(texts, st.sampled_from(["\\u0000", "null", "NaN", '"[[[', "\\", '\\"', "u0000"]))
huge = st.sampled_from([19, 20, 4299, 4300, 4301]).flatmap(
    lambda digits: st.sampled_from([1, -1]).map((10**digits).__mul__)
)
numbers = st.one_of(st.integers(), st.floats(), huge)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
keys = st.one_of(texts, st.integers(), st.floats(allow_nan=False), st.none(), st.booleans())
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(texts, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=2),
    ),
    max_leaves=12,
)
deep = st.builds(nested, st.integers(55, 75), anything)


@settings(max_examples=600, deadline=None)
@given(st.one_of(anything, deep))
@example({"a": float("nan")})
@example({1: 2, "1": 3})
@example([None, "\\u0000"])
@example("\0")
@example(nested(64))
@example(nested(65))
def test_what_is_accepted_and_refused_is_what_the_slow_walker_says(value: object) -> None:
    try:
        raw = encode_value("args", value)
    except InvalidJob as error:
        assert not is_right(value), error  # either way is a proper end
    else:
        assert is_right(value)
        assert msgspec.json.decode(raw) == listed(value)


@settings(max_examples=300, deadline=None)
@given(st.one_of(anything.filter(is_right), deep.filter(is_right)))
def test_depth_is_read_off_the_text_whatever_brackets_its_strings_hold(value: object) -> None:
    def levels(value: object) -> int:
        if isinstance(value, dict):
            return 1 + max(map(levels, value.values()), default=0)
        return 1 + max(map(levels, value), default=0) if isinstance(value, list | tuple) else 0

    assert depth(json.dumps(value)) == levels(value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"items": [1, 2, 3, {"name": float("inf")}]}, r"args: \$.items\[3\].name is inf"),
        ({"a b": "x\0"}, r"args: \$\['a b'\] contains a NUL character"),
        ({"x": ["\ud800"]}, r"args: \$.x\[0\] contains '\\ud800', half of a surrogate pair"),
        ({"x": {1: 2}}, r"args: \$.x has the key 1 of type int; keys must be text"),
        ({"n": 10**4300}, r"args: \$.n is a number of more than 4300 digits"),
        ({"n": -(10**4299)}, r"args: \$.n is a number of more than 4300 digits"),
        ({"x": object()}, r"args: \$.x: a value of type object can't be stored as JSON"),
        ({"x": {None: 1}}, r"args: \$.x has the key None"),
        ({"x": nested(64)}, "is nested deeper than 64 levels; flatten it"),
        ({"k\0": 1}, r"args: a key of \$ contains a NUL"),
        ([1], r"args \[1\]: must be a mapping"),
        ("text", "args 'text': must be a mapping"),
    ],
)
def test_a_refusal_names_the_path_and_the_remedy(value: object, said: str) -> None:
    with pytest.raises(InvalidJob, match=said):
        encode_object("args", value)


def test_a_value_that_contains_itself_is_too_deep() -> None:
    value: list[object] = []
    value.append(value)
    with pytest.raises(InvalidJob, match="deeper than 64 levels"):
        encode_value("result", value)


def test_a_mebibyte_of_text_passes_and_one_byte_more_does_not() -> None:
    room = SIZE_LIMIT_BYTES - len('{"a":""}')
    assert len(encode_object("args", {"a": "é" * (room // 2)})) < SIZE_LIMIT_BYTES
    with pytest.raises(
        InvalidJob, match=r"args: 1048577 bytes of JSON, over the limit of 1048576; store the data else"
    ):
        encode_object("args", {"a": "x" * (room + 1)})


def test_a_wide_document_is_not_a_deep_one() -> None:
    rows = [{"n": number, "in": [[number]]} for number in range(5000)]
    assert msgspec.json.decode(encode_value("result", rows)) == rows


@dataclass
class Money:
    amount: Decimal
    note: float | None = field(default=None, compare=False)


def test_results_may_be_of_the_types_that_json_has_a_text_for() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    raw = encode_result({"at": now, "id": UUID(int=1), "sum": Money(Decimal("1.10")), "all": {3}})
    assert raw is not None
    assert json.loads(raw) == {
        "at": "2026-01-02T00:00:00Z",
        "id": "00000000-0000-0000-0000-000000000001",
        "sum": {"amount": "1.10", "note": None},
        "all": [3],
    }


def test_no_result_is_stored_for_none() -> None:
    assert encode_result(None) is None
    assert encode_result(0) == b"0"


def test_a_nan_hidden_from_equality_is_found() -> None:
    with pytest.raises(InvalidJob, match=r"result: \$.sum.note is nan"):
        encode_result({"sum": Money(Decimal(1), note=float("nan"))})


def test_an_error_about_a_result_says_result() -> None:
    with pytest.raises(
        InvalidJob, match=r"^result: \$\[1\]: a value of type object can't be stored as JSON; pass its id"
    ):
        encode_result([datetime(2026, 1, 1), object()])


def test_subclasses_of_text_and_numbers_are_stored_as_what_they_are() -> None:
    class Markup(str):
        __slots__ = ()

    class Share(float):
        __slots__ = ()

    assert encode_result([Markup("<b>"), Share(0.5)]) == b'["<b>",0.5]'
    with pytest.raises(InvalidJob, match="is nan"):
        encode_result([Share("nan")])


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"a": NaN}', '{"a": "\\ud800"}', '{"a": "\\u0000"}', "1e999", "null"]
)
def test_json_text_from_elsewhere_that_is_no_storable_object_is_refused(text: str) -> None:
    with pytest.raises(InvalidJob, match="args"):
        check_object_text("args", text)


def test_json_text_from_elsewhere_is_returned_compact() -> None:
    assert check_object_text("args", '{ "order" : 7 }') == '{"order":7}'
