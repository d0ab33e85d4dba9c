"""The codec: calls bound, checked and stored by name, and given back as they were."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NewType, NotRequired, TypedDict
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgqueue.errors import InvalidArguments, InvalidJob
from pgqueue.tasks.args import ArgsCodec

if TYPE_CHECKING:
    from fractions import Fraction

UserId = NewType("UserId", int)


class Context:
    __pgqueue_context__ = True


class SpecialContext(Context):
    pass


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass(frozen=True)
class Address:
    street: str
    number: int
    tags: list[str] = field(default_factory=list)
    weight: float | None = field(default=None, compare=False)


@dataclass(eq=False)
class Tree:
    name: str
    children: list[Tree] = field(default_factory=list)


class Order(msgspec.Struct):
    id: int
    ship_to: Address


class Row(TypedDict):
    a: int
    b: NotRequired[str]


class Point(NamedTuple):
    x: int
    y: int


class Duck:
    """Quacks like a pydantic model."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duck) and other.size == self.size

    __hash__ = None  # type: ignore[assignment]

    def model_dump(self, *, mode: str, by_alias: bool, round_trip: bool) -> dict[str, object]:
        assert mode == "json"
        assert by_alias
        assert round_trip
        return {"size": self.size}

    @classmethod
    def model_validate(cls, value: dict[str, object]) -> Duck:
        if not isinstance(value.get("size"), int):
            raise ValueError("size: must be a number\n  For further information visit https://errors.pydantic.dev")
        return cls(value["size"])  # type: ignore[arg-type]


def send_welcome(user_id: int, tenant_id: int, *, lang: str = "en") -> dict[str, int]:
    raise AssertionError("a codec never calls the function")


def there_and_back(fn: Callable[..., object], /, *args: object, **kwargs: object) -> dict[str, object]:
    codec = ArgsCodec(fn)
    return codec.decode(codec.encode(args, kwargs).encode())


def refusal(fn: Callable[..., object], /, *args: object, **kwargs: object) -> str:
    with pytest.raises((InvalidArguments, InvalidJob)) as caught:
        ArgsCodec(fn).encode(args, kwargs)
    return str(caught.value)


def test_arguments_are_stored_by_name() -> None:
    codec = ArgsCodec(send_welcome)
    assert codec.encode((1,), {"lang": "de", "tenant_id": 2}) == '{"user_id":1,"tenant_id":2,"lang":"de"}'


def test_a_default_is_not_stored_so_that_a_later_release_may_change_it() -> None:
    codec = ArgsCodec(send_welcome)
    assert codec.encode((1, 2), {}) == '{"user_id":1,"tenant_id":2}'
    assert codec.decode(b'{"user_id":1,"tenant_id":2}') == {"user_id": 1, "tenant_id": 2}


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {}, "send_welcome(): missing argument 'user_id', 'tenant_id'"),
        ((1,), {}, "send_welcome(): missing argument 'tenant_id'"),
        ((1, 2), {"langs": "de"}, "send_welcome(): unknown argument 'langs'; did you mean 'lang'?"),
        ((1, 2), {"q": 1}, "send_welcome(): unknown argument 'q'; known: lang, tenant_id, user_id"),
        ((1, 2, 3), {}, "send_welcome(): takes 2 positional arguments (user_id, tenant_id), got 3"),
        ((1, 2), {"user_id": 3}, "send_welcome(): argument 'user_id' is given by position and by name"),
        (("1", 2), {}, "send_welcome(): argument 'user_id': Expected `int`, got `str`"),
        ((1, None), {}, "send_welcome(): argument 'tenant_id': Expected `int`, got `null`"),
        ((True, 2), {}, "send_welcome(): argument 'user_id': Expected `int`, got `bool`"),
        ((1.0, 2), {}, "send_welcome(): argument 'user_id': Expected `int`, got `float`"),
        ((object(), 2), {}, "send_welcome(): argument 'user_id': Expected `int`, got `object`"),
        ((1, 2), {"lang": UUID(int=1)}, "send_welcome(): argument 'lang': Expected `str`, got `uuid`"),
    ],
)
def test_a_call_that_does_not_fit_names_the_argument(
    args: tuple[object, ...], kwargs: dict[str, object], said: str
) -> None:
    with pytest.raises(InvalidArguments) as caught:
        ArgsCodec(send_welcome).encode(args, kwargs)
    assert str(caught.value) == said


def test_the_name_of_an_argument_must_be_text() -> None:
    codec = ArgsCodec(send_welcome)
    with pytest.raises(InvalidArguments, match="unknown argument 7"):
        codec.encode((1, 2), {7: 1})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"user_id":1}', "send_welcome(): missing argument 'tenant_id'"),
        (b'{"user_id":1,"tenant_id":2,"language":"de"}', "send_welcome(): unknown argument 'language'; did you mean"),
        (b'{"user_id":"1","tenant_id":2}', "send_welcome(): argument 'user_id': Expected `int`, got `str`"),
        (b"[1,2]", "send_welcome(): Expected `object`, got `array`"),
        (b"{", "send_welcome(): Input data was truncated"),
    ],
)
def test_stored_arguments_that_no_longer_fit_are_refused_when_run(raw: bytes, said: str) -> None:
    with pytest.raises(InvalidArguments) as caught:
        ArgsCodec(send_welcome).decode(raw)
    assert said in str(caught.value)


def everything(  # type: ignore[no-untyped-def]  # `bare` has no annotation, which is its point
    order: Order,
    at: datetime,
    on: date,
    wait: timedelta,
    key: UUID,
    price: Decimal,
    colour: Colour,
    level: Level,
    mode: Literal["fast", "slow", 3],
    maybe: Address | None,
    row: Row,
    point: Point,
    by_day: Mapping[date, list[Colour]],
    by_id: dict[int, str],
    several: Sequence[Address],
    unique: set[int],
    duck: Duck,
    ducks: dict[str, list[Duck | None]],
    user: UserId,
    blob: bytes,
    anything: Any,
    thing: object,
    bare,
) -> None: ...


EVERYTHING: dict[str, Any] = {
    "order": Order(1, Address("High Street", 7, ["a"])),
    "at": datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
    "on": date(2026, 1, 2),
    "wait": timedelta(hours=1, microseconds=1),
    "key": UUID(int=5),
    "price": Decimal("1.10"),
    "colour": Colour.RED,
    "level": Level.HIGH,
    "mode": "slow",
    "maybe": None,
    "row": {"a": 1, "b": "x"},
    "point": Point(1, 2),
    "by_day": {date(2026, 1, 2): [Colour.BLUE]},
    "by_id": {1: "one"},
    "several": [Address("a", 1), Address("b", 2)],
    "unique": {1, 2},
    "duck": Duck(3),
    "ducks": {"pond": [Duck(1), None]},
    "user": UserId(9),
    "blob": b"\x00\xff",
    "anything": {"a": [1, None, "x", 1.5]},
    "thing": "text",
    "bare": [True],
}


def test_values_come_back_as_the_annotated_types() -> None:
    back = there_and_back(everything, **EVERYTHING)
    assert back == EVERYTHING
    assert {name: type(value) for name, value in back.items()} == {n: type(v) for n, v in EVERYTHING.items()}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("order", Order(1, Address("x", "y")), "got `str` at `$.order.ship_to.number`"),  # type: ignore[arg-type]
        ("several", [Address("a", 1), Address(2, 2)], "got `int` at `$.several[1].street`"),  # type: ignore[arg-type]
        ("key", "00000000-0000-0000-0000-000000000005", "argument 'key': Expected `uuid`, got `str`"),
        ("at", "2026-01-02T00:00:00Z", "argument 'at': Expected `datetime`, got `str`"),
        ("at", date(2026, 1, 2), "argument 'at':"),
        ("mode", "medium", "argument 'mode': Invalid enum value 'medium'"),
        ("colour", "green", "argument 'colour': Invalid enum value 'green'"),
        ("by_id", {"1": "one"}, "argument 'by_id': Expected `int`, got `str` as a key"),
        ("row", {"b": "x"}, "argument 'row': Object missing required field `a`"),
        ("duck", {"size": "x"}, "argument 'duck': size: must be a number"),
        ("ducks", {"pond": [{"size": "x"}]}, "argument 'ducks': size: must be a number at `$.ducks[...][0]`"),
        ("anything", {"at": [date(2026, 1, 2)]}, "$.anything.at[0] is of type date, which JSON can't say; annotate"),
        ("bare", Address("a", 1), "$.bare is of type Address, which JSON can't say; annotate the parameter"),
        ("bare", {1: 2}, "argument 'bare': $.bare has the key 1 of type int; keys must be text"),
        ("thing", {1, 2}, "$.thing is of type set"),
        ("thing", float("nan"), "$.thing is nan"),
        ("several", [Address("a", 1, weight=float("nan"))], "$.several[0].weight is nan, which JSON can't say"),
        ("order", Order(1, Address("\0", 1)), "$.order.ship_to.street contains a NUL"),
        ("order", Order(1, Address("\ud800", 1)), "$.order.ship_to.street contains '\\ud800'"),
    ],
)
def test_a_value_that_does_not_fit_its_annotation_is_refused_with_its_path(name: str, value: object, said: str) -> None:
    assert said in refusal(everything, **{**EVERYTHING, name: value})


def test_nan_is_refused_even_where_null_would_be_welcome() -> None:
    def maybe(x: float | None = None) -> None: ...

    assert "maybe(): argument 'x': $.x is nan" in refusal(maybe, float("nan"))
    assert there_and_back(maybe, None) == {"x": None}


def test_keys_of_a_text_dictionary_must_be_text() -> None:
    def count(totals: dict[str, int], more: dict[str, Any] | None = None) -> None: ...

    assert "argument 'totals': Expected `str`, got `int` as a key" in refusal(count, {1: 2})
    assert "$.more.a has the key 1 of type int; keys must be text" in refusal(count, {}, {"a": {1: 2}})


def test_a_class_beside_it_makes_no_argument_less_strict() -> None:
    def ship(to: Address, key: UUID, note: Any = None) -> None: ...
    def send(to: Address, key: UUID) -> None: ...

    home = Address("a", 1)
    assert "send(): argument 'key': Expected `uuid`, got `str`" in refusal(send, home, str(UUID(int=1)))
    assert "$.note is of type date, which JSON can't say" in refusal(ship, home, UUID(int=1), date(2026, 1, 2))


def test_a_tuple_does_for_a_list_and_json_null_text_is_only_text() -> None:
    def sums(values: list[int], note: str) -> None: ...

    assert there_and_back(sums, (1, 2), "null \\u0000") == {"values": [1, 2], "note": "null \\u0000"}


def test_a_decimal_that_refuses_comparison_is_still_stored() -> None:
    def pay(amount: Decimal) -> None: ...

    assert str(there_and_back(pay, Decimal("sNaN"))["amount"]) == "sNaN"


def test_constraints_of_an_annotation_are_checked() -> None:
    def take(n: Annotated[int, msgspec.Meta(le=9)]) -> None: ...

    assert "take(): argument 'n': Expected `int` <= 9" in refusal(take, 10)


def test_classes_without_equality_and_that_contain_themselves_are_stored() -> None:
    def plant(tree: Tree) -> None: ...

    tree = there_and_back(plant, Tree("oak", [Tree("acorn")]))["tree"]
    assert isinstance(tree, Tree)
    assert tree.children[0].name == "acorn"
    deep = Tree("leaf")
    for _ in range(40):
        deep = Tree("branch", [deep])
    assert "nested deeper than 64 levels" in refusal(plant, deep)


def test_arguments_that_contain_themselves_are_refused() -> None:
    def store(rows: list[Any]) -> None: ...

    rows: list[Any] = []
    rows.append(rows)
    assert "argument 'rows'" in refusal(store, rows)


def test_arguments_of_more_than_a_mebibyte_are_refused() -> None:
    def store(text: str) -> None: ...

    assert "store(): arguments: 1048587 bytes of JSON, over the limit of 1048576" in refusal(store, "x" * 2**20)


def test_extra_keyword_arguments_are_stored_like_the_named_ones() -> None:
    def note(kind: str, /, level: int = 1, **more: int) -> None: ...

    codec = ArgsCodec(note)
    text = codec.encode(("x",), {"a": 1, "level": 2})
    assert json.loads(text) == {"kind": "x", "level": 2, "a": 1}
    assert codec.call_args(text) == (["x"], {"level": 2, "a": 1})
    assert codec.decode(codec.encode(("x",), {})) == {"kind": "x"}
    assert "note(): argument 'b': Expected `int`, got `str`" in refusal(note, "x", b="no")
    with pytest.raises(InvalidJob, match="contains a NUL"):
        codec.encode(("x",), {"b\0": 1})
    with pytest.raises(InvalidArguments, match="argument 7 can't be passed"):
        codec.encode(("x",), {7: 1})  # type: ignore[dict-item]
    with pytest.raises(InvalidArguments, match=r"note\(\): Expected `int`, got `str` at `\$\[...\]`"):
        codec.decode(b'{"kind":"x","a":"no"}')


def test_a_task_of_only_extra_arguments_takes_none_or_any() -> None:
    def log(**fields: object) -> None: ...

    assert there_and_back(log) == {}
    assert there_and_back(log, a=1, b=[None]) == {"a": 1, "b": [None]}
    assert "$.a is nan" in refusal(log, a=float("nan"))


def test_positional_only_arguments_are_called_by_position() -> None:
    def divide(a: int, b: int = 2, /, c: int = 3) -> None: ...

    codec = ArgsCodec(divide)
    assert codec.encode((1, 5), {"c": 7}) == '{"a":1,"b":5,"c":7}'
    assert codec.call_args(b'{"a":1,"b":5,"c":7}') == ([1, 5], {"c": 7})
    assert codec.call_args(b'{"a":1,"c":7}') == ([1, 2], {"c": 7})
    assert ArgsCodec(send_welcome).call_args(b'{"user_id":1,"tenant_id":2}') == ([], {"user_id": 1, "tenant_id": 2})


def test_names_that_mean_something_to_python_are_names_like_others() -> None:
    def odd(self: int, cls: int, args: int, kwargs: int, type: str, raw: int) -> None: ...

    values = {"self": 1, "cls": 2, "args": 3, "kwargs": 4, "type": "x", "raw": 5}
    assert ArgsCodec(odd).decode(ArgsCodec(odd).encode((), values)) == values


@pytest.mark.parametrize("context", [Context, SpecialContext])
def test_a_context_is_injected_and_is_not_an_argument(context: type) -> None:
    def load(ctx: Any, path: str) -> None: ...

    load.__annotations__["ctx"] = context
    codec = ArgsCodec(load)
    assert codec.takes_context
    assert codec.encode(("a",), {}) == '{"path":"a"}'
    assert not ArgsCodec(send_welcome).takes_context


def test_a_context_written_as_text_is_recognised() -> None:
    def load(ctx: Context, path: str) -> None: ...  # a string: this module postpones annotations

    assert load.__annotations__["ctx"] == "Context"
    assert ArgsCodec(load).takes_context


def test_a_context_can_not_be_passed_by_name_either() -> None:
    def load(ctx: Context, **more: int) -> None: ...

    assert refusal(load, ctx=1) == "load(): argument 'ctx' can't be passed"


def second_context(path: str, ctx: Context) -> None: ...
def optional_context(path: str, ctx: Context | None) -> None: ...
def keyword_context(*, ctx: Context) -> None: ...
def starred(*paths: str) -> None: ...
def type_checkers_only(x: Fraction) -> None: ...
def of_a_class(codec: ArgsCodec) -> None: ...
def of_a_class_inside(codecs: list[ArgsCodec | None]) -> None: ...
def raw_json(x: msgspec.Raw) -> None: ...
def a_function(x: Callable[[], int]) -> None: ...
def ambiguous(x: str | UUID) -> None: ...
def mangled(__x: int) -> None: ...


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (second_context, r"second_context\(\): the context 'ctx' must be the first parameter"),
        (
            optional_context,
            r"optional_context\(\): the context 'ctx' must be the first parameter, annotated with the cl",
        ),
        (keyword_context, r"keyword_context\(\): the context 'ctx' must be a plain first parameter"),
        (starred, r"starred\(\): \*paths can't be stored by name; take a list instead: paths: list"),
        (
            type_checkers_only,
            r"type_checkers_only\(\): an annotation can't be resolved .*'Fraction'.*; import the name at",
        ),
        (
            of_a_class,
            r"of_a_class\(\): argument 'codec': type ArgsCodec can't be stored as JSON; take its id, or a data",
        ),
        (of_a_class_inside, r"argument 'codecs': type ArgsCodec can't be stored as JSON"),
        (raw_json, r"argument 'x': .* can't be stored as JSON"),
        (a_function, r"argument 'x': type Callable can't be stored as JSON"),
        (ambiguous, r"ambiguous\(\): argument 'x' has an annotation that can't be stored as JSON: Type unions may not"),
        (mangled, r"argument '__x' may not begin with two underscores"),
    ],
)
def test_a_signature_that_can_not_be_stored_is_refused_when_it_is_decorated(
    fn: Callable[..., object], said: str
) -> None:
    with pytest.raises(TypeError, match=said):
        ArgsCodec(fn)


def test_a_return_annotation_need_not_be_importable() -> None:
    def ratio(a: int) -> Fraction: ...  # type: ignore[empty-body]

    assert there_and_back(ratio, 1) == {"a": 1}


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.", max_size=3), inner, max_size=3),
    max_leaves=8,
)
addresses = st.builds(
    Address, st.text("ab\\", max_size=3), st.integers(), st.lists(st.text("é", max_size=2), max_size=2)
)


def mixed(
    address: Address, at: datetime, keys: list[UUID], price: Decimal, colours: dict[Colour, int], free: Any
) -> None: ...


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "address": addresses,
            "at": st.datetimes(timezones=st.just(UTC)),
            "keys": st.lists(st.uuids(), max_size=3),
            "price": st.decimals(allow_nan=False),
            "colours": st.dictionaries(st.sampled_from(Colour), st.integers(), max_size=2),
            "free": json_values,
        }
    )
)
def test_whatever_fits_comes_back_equal(values: dict[str, Any]) -> None:
    assert there_and_back(mixed, **values) == values


@settings(max_examples=200, deadline=None)
@given(st.one_of(json_values, st.uuids(), st.datetimes(), st.binary(), addresses, st.lists(st.floats())))
def test_what_is_accepted_can_be_run_and_what_is_refused_says_which_argument(value: object) -> None:
    def take(n: list[float] | None = None, other: Address | None = None, text: str | None = None) -> None: ...

    codec = ArgsCodec(take)
    for name in ("n", "other", "text"):
        try:
            stored = codec.encode((), {name: value})
        except (InvalidArguments, InvalidJob) as error:
            assert f"take(): argument '{name}': " in str(error)  # either way is a proper end
        else:
            assert codec.decode(stored.encode()) == {name: value}


def three(n: int, text: str = "x", *, more: list[float] | None = None) -> None: ...


def anything(a, b=None): ...  # type: ignore[no-untyped-def]


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.floats(), max_size=2),
    st.just("\0"), st.just("\ud800"), st.just((1,)), st.just({"k": 1}), st.just({1: 2}), st.just(10**5000),
)  # fmt: skip
ROWS = st.lists(
    st.one_of(
        st.lists(VALUES, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from(["n", "text", "more", "a", "b", "c"]), VALUES, max_size=3),
    ),
    min_size=1,
    max_size=4,
)


@given(fn=st.sampled_from([three, anything]), rows=ROWS)
def test_rows_are_encoded_together_as_each_by_itself_or_not_at_all(fn: Any, rows: Any) -> None:
    codec = ArgsCodec(fn)
    together = codec.encode_rows(rows)
    if together is not None:
        each = [codec.encode(row, {}) if isinstance(row, tuple) else codec.encode((), row) for row in rows]
        assert together == f"[{','.join(each)}]"


def test_plain_rows_are_encoded_together() -> None:
    assert ArgsCodec(three).encode_rows([(1,), {"n": 2, "more": [0.5]}]) == '[{"n":1},{"n":2,"more":[0.5]}]'


@pytest.mark.parametrize("row", [[1], ("1",), ("NaN",), (1, "\0"), {"n": 1, "other": 2}, (1, "x", [1.0])])
def test_in_doubt_they_are_not(row: Any) -> None:
    assert ArgsCodec(three).encode_rows([(1,), row]) is None
