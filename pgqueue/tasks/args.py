"""Arguments to JSON and back, by a codec that is built once per task from its signature.

Stored: one JSON object, by name, with exactly the arguments that were passed; a default is not stored, so a job runs
with the default of the release that runs it.
Guarantees: what `encode` accepts, `decode` of the same code accepts, as equal values of the annotated types.
Never: conversion to fit. A text for an int is refused when it is enqueued, and again when it is run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from msgspec import UNSET

from pgqueue.errors import InvalidArguments, InvalidJob
from pgqueue.tasks.door import nearest
from pgqueue.tasks.json_text import builtins, check_size, decode, encode, find_fault, is_storable, revive
from pgqueue.tasks.signature import Argument, read_signature

_NATIVE = (bytes, bytearray, datetime, date, time, timedelta, UUID, Decimal)  # a text in their place is refused
_AT = re.compile(r"(?P<what>.*) - at (?P<key>`key` in )?`\$(?P<path>.*)`", re.DOTALL)
_NAME = re.compile(r"\.([^.\[]+)(.*)", re.DOTALL)


class ArgsCodec:
    """The arguments of one task as JSON text, and back.

    raises  TypeError for a signature that can't be stored (see `signature`)
    """

    def __init__(self, fn: Callable[..., object]) -> None:
        signature = read_signature(fn)
        self.title = signature.title
        self.takes_context = signature.context is not None
        self.arguments = signature.arguments
        self._names = frozenset(argument.name for argument in signature.arguments)
        self._extra = signature.extra
        self._context = signature.context
        self._decode_extra = msgspec.json.Decoder(
            dict[str, signature.extra.type if signature.extra else Any],  # type: ignore[misc]  # a type made at run time
            dec_hook=revive,
        ).decode
        self._plain = all(argument.plain for argument in signature.arguments)
        self._typed = all(argument.type is not Any for argument in signature.arguments)
        self._optional = any(not argument.required for argument in signature.arguments)
        self._positional_only = tuple(argument for argument in signature.arguments if argument.positional_only)
        self._bind = _shape(signature.arguments)
        self._decode = msgspec.json.Decoder(self._bind, dec_hook=revive).decode
        self._decode_rows = msgspec.json.Decoder(list[self._bind], dec_hook=revive).decode  # type: ignore[name-defined]

    def encode(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> str:
        """Bind the arguments of a call, check them, and return their JSON text.

        raises  InvalidArguments naming the argument that is unknown, missing or of another type, with the nearest
                known name or the path inside it; InvalidJob for what JSON can't say or PostgreSQL can't keep
        """
        extra: dict[str, object] = {}
        if self._extra is not None:
            extra = {name: self._check_extra(name, value) for name, value in kwargs.items() if name not in self._names}
            kwargs = {name: value for name, value in kwargs.items() if name in self._names}
        try:
            bound = self._bind(*args, **kwargs)
        except TypeError:
            raise self._misfit(args, kwargs) from None
        text = self._write(bound)
        return self._with_extra(text, extra) if extra else text

    def encode_rows(self, rows: Sequence[tuple[object, ...] | Mapping[str, object]]) -> str | None:
        """The JSON array of the arguments of many calls, in a third of the time; None if there is any doubt about it.

        What it answers with is what `encode` would say of each row, and what None stands for as well.
        """
        if self._extra is not None or not self._plain or not {tuple, dict}.issuperset(map(type, rows)):
            return None
        try:
            bound = [self._bind(*row) if type(row) is tuple else self._bind(**row) for row in rows]  # type: ignore[arg-type]
            raw = encode(bound)
            text = raw.decode()
            if self._decode_rows(raw) == bound and is_storable(text, len(raw)):
                return text
        except (TypeError, ValueError, ArithmeticError, RecursionError):
            pass
        return None

    def decode(self, raw: bytes | str) -> dict[str, object]:
        """The stored arguments as keyword arguments.

        raises  InvalidArguments: they do not fit the signature that this release has
        """
        if self._extra is not None:
            return self._decode_open(raw)
        try:
            values: dict[str, object] = msgspec.structs.asdict(self._decode(raw))
        except ValueError as error:
            raise self._unfit(error) from error
        return {name: value for name, value in values.items() if value is not UNSET} if self._optional else values

    def call_args(self, raw: bytes | str) -> tuple[list[object], dict[str, object]]:
        """As `decode`, with the positional-only arguments apart: `fn(*positional, **named)`."""
        named = self.decode(raw)
        if not self._positional_only:
            return [], named
        return [named.pop(argument.name, argument.default) for argument in self._positional_only], named

    def _write(self, bound: msgspec.Struct) -> str:
        try:
            raw = encode(bound)
            decoded = self._decode(raw)
        except (TypeError, ValueError, RecursionError) as error:
            self._examine(_given(bound))
            raise self._unfit(error) from error
        text = raw.decode()
        if is_storable(text, len(raw)) and (_equal(decoded, bound) if self._plain else self._is_faithful(raw, bound)):
            return text
        self._examine(_given(bound))  # found nothing: a tuple for a list, say, or a class of the user's own
        check_size(f"{self.title}: arguments", len(raw))
        return text

    def _is_faithful(self, raw: bytes, bound: msgspec.Struct) -> bool:
        """Whether the text says what was passed, by a quick look that trusts no `==` of the user's classes."""
        if not self._typed:
            return False
        try:
            msgspec.convert(_given(bound), self._bind, builtin_types=_NATIVE, dec_hook=revive)
            return bool(decode(raw) == builtins(bound))
        except (TypeError, ValueError, RecursionError):
            return False

    def _examine(self, values: Mapping[str, object]) -> None:
        """Raise what is wrong with the values, if anything is; slow and exact."""
        for argument in self.arguments:
            if argument.name in values:
                self._examine_one(argument, argument.name, values[argument.name])

    def _examine_one(self, argument: Argument, name: str, value: object) -> None:
        typed = argument.type is not Any
        tree = value
        if typed:
            with suppress(TypeError, ValueError, RecursionError):  # the walk says where, or the conversion says why
                tree = builtins(value)
        fault = find_fault(tree, f"$.{name}", level=1, any_keys=argument.any_keys, typed=typed)
        if typed:
            try:
                msgspec.convert(value, argument.type, builtin_types=_NATIVE, dec_hook=revive)
            except ValueError as error:
                raise self._unfit(error, name) from error
        if fault is not None:
            raise InvalidJob(f"{self.title}: argument {name!r}: {fault}")

    def _with_extra(self, text: str, extra: dict[str, object]) -> str:
        """Add what `**kwargs` took to the JSON text of the named arguments."""
        assert self._extra is not None
        for name, value in extra.items():
            self._examine_one(self._extra, name, value)
        try:
            raw = encode(extra)
            self._decode_extra(raw)
        except (TypeError, ValueError, RecursionError) as error:
            raise self._unfit(error) from error
        joined = f"{text[:-1]}{'' if text == '{}' else ','}{raw.decode()[1:]}"
        check_size(f"{self.title}: arguments", len(joined.encode()))
        return joined

    def _check_extra(self, name: object, value: object) -> object:
        if not isinstance(name, str) or name == self._context:
            raise InvalidArguments(f"{self.title}: argument {name!r} can't be passed")
        if fault := find_fault(name, "the argument's name"):
            raise InvalidJob(f"{self.title}: argument {name!a}: {fault}")
        return value

    def _decode_open(self, raw: bytes | str) -> dict[str, object]:
        try:
            parts = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
            named = self._decode(encode({name: part for name, part in parts.items() if name in self._names}))
            others = {name: part for name, part in parts.items() if name not in self._names}
            extra: dict[str, object] = self._decode_extra(encode(others))
        except ValueError as error:
            raise self._unfit(error) from error
        return _given(named) | extra

    def _misfit(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> InvalidArguments:
        """Why the arguments of a call can't be bound."""
        positional = [argument.name for argument in self.arguments if not argument.keyword_only]
        if len(args) > len(positional):
            return InvalidArguments(
                f"{self.title}: takes {len(positional)} positional arguments ({', '.join(positional)}), got {len(args)}"
            )
        for name in kwargs:
            if name not in self._names:
                return InvalidArguments(f"{self.title}: unknown argument {name!r}{nearest(str(name), self._names)}")
        given = positional[: len(args)]
        for name in given:
            if name in kwargs:
                return InvalidArguments(f"{self.title}: argument {name!r} is given by position and by name")
        required = [argument.name for argument in self.arguments if argument.required]
        missing = [repr(name) for name in required if name not in given and name not in kwargs]
        return InvalidArguments(f"{self.title}: missing argument {', '.join(missing)}")

    def _unfit(self, error: Exception, name: str | None = None) -> InvalidArguments:
        """msgspec's refusal in this task's words: `f(): argument 'x': Expected ..., got ... at $.x.y`."""
        what, path = str(error), ""
        if found := _AT.fullmatch(what):
            what, path = found["what"], found["path"]
            what = f"{what} as a key" if found["key"] else what
        if name is None and (inside := _NAME.fullmatch(path)):
            name, path = inside[1], inside[2]
        if name is None:
            return InvalidArguments(f"{self.title}: {self._explain(what)}{f' at `${path}`' if path else ''}")
        where = f" at `$.{name}{path}`" if path else ""
        return InvalidArguments(f"{self.title}: argument {name!r}: {what}{where}")

    def _explain(self, what: str) -> str:
        if found := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
            return f"unknown argument {found[1]!r}{nearest(found[1], self._names)}"
        if found := re.fullmatch(r"Object missing required field `(.*)`", what, re.DOTALL):
            return f"missing argument {found[1]!r}"
        return what


def _shape(arguments: tuple[Argument, ...]) -> type[msgspec.Struct]:
    """A struct with a field per argument: it binds, encodes and decodes a call in C."""

    def field(argument: Argument) -> Any:
        return (argument.name, argument.type) if argument.required else (argument.name, argument.type, UNSET)

    positional = msgspec.defstruct(
        "Positional",
        [field(argument) for argument in arguments if not argument.keyword_only],
        forbid_unknown_fields=True,
    )
    return msgspec.defstruct(
        "Arguments",
        [field(argument) for argument in arguments if argument.keyword_only],
        bases=(positional,),
        kw_only=True,
        forbid_unknown_fields=True,
    )


def _given(bound: msgspec.Struct) -> dict[str, object]:
    return {name: value for name, value in msgspec.structs.asdict(bound).items() if value is not UNSET}


def _equal(decoded: msgspec.Struct, bound: msgspec.Struct) -> bool:
    try:
        return decoded == bound
    except ArithmeticError:
        return False  # Decimal("sNaN") raises even on ==
