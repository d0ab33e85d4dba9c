"""What a step's function says about the types of its result and its cursor.

Guarantees: a type that could not be read back is refused before the function runs, not when its job resumes; one that
can't be known here (its name is not there at run time) is plain JSON.
Never: keeps a function alive (it may hold a job's data): what is remembered is known by text and module.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache, partial
from types import FunctionType, GenericAlias, MethodType, NoneType
from typing import Any, ForwardRef, Never, NoReturn, Self, get_args, get_origin, get_type_hints
from uuid import UUID

from pgqueue.errors import StepError
from pgqueue.tasks.signature import check_type

_NOTHING = (None, NoneType, NoReturn, Never)
_KEYS = (bool, str, bytes, datetime, date, time, timedelta, Decimal, UUID)  # a datetime is a date as well


def result_type(step: str, fn: Callable[..., object]) -> Any:
    """What the function is annotated to return; Any without an annotation.

    raises  StepError for a type that JSON can't be read as
    """
    if isinstance(fn, type):
        return Any if fn.__module__ == "builtins" else _readable(step, "result", fn)
    return _readable(step, "result", _annotation(_unwrapped(fn)[0], "return"))


def cursor_type(step: str, fn: Callable[..., object], given: Any) -> Any:
    """`given`, or what the function's first free parameter is annotated with; otherwise as `result_type`."""
    if given is None:
        found, bound = _unwrapped(fn)
        code = getattr(found, "__code__", None)
        names = code.co_varnames[: code.co_argcount] if code is not None else ()
        given = _annotation(found, names[bound]) if len(names) > bound else Any
    return _readable(step, "cursor", given)


def key_type(key: object) -> Any:
    """The type as which a key of `resume` is read back. Keys may differ in what JSON doesn't tell apart."""
    if isinstance(key, tuple):
        return GenericAlias(tuple, tuple(map(key_type, key)))
    if key is None:
        return Any
    if isinstance(key, Enum):
        return type(key)
    if isinstance(key, int | float) and not isinstance(key, bool):
        return int | float
    return next((known for known in _KEYS if isinstance(key, known)), type(key))


def _unwrapped(fn: Any) -> tuple[Any, int]:
    """The function that has the annotations, and how many of its first parameters are bound."""
    bound = 0
    while type(fn) is not FunctionType or hasattr(fn, "__wrapped__"):
        if isinstance(fn, partial):
            fn, bound = fn.func, bound + len(fn.args)
        elif isinstance(fn, MethodType):
            fn, bound = fn.__func__, bound + 1
        elif hasattr(fn, "__wrapped__"):
            fn = inspect.unwrap(fn)
        elif isinstance(call := getattr(type(fn), "__call__", None), FunctionType):  # noqa: B004 - not whether, but which
            fn, bound = call, bound + 1
        else:
            break
    return fn, bound


def _readable(step: str, what: str, type: Any) -> Any:
    if type is Any:
        return Any
    origin = get_origin(type)
    if origin in (Awaitable, Coroutine):
        return _readable(step, what, get_args(type)[-1])
    if origin in (Iterable, Iterator, Generator):
        type = GenericAlias(list, get_args(type)[:1])
    try:
        check_type(type)
    except (TypeError, NameError) as error:
        if _has_loose_end(type):
            return Any
        raise StepError(
            f"step {step!r}: its {what} can't be read back as {type}: {error}; annotate it otherwise, or not at all,"
            " which means plain JSON"
        ) from error
    return type


def _has_loose_end(type: Any) -> bool:
    """Does it name what is known to type checkers only?"""
    return isinstance(type, ForwardRef) or type is Self or any(map(_has_loose_end, get_args(type)))


def _annotation(fn: Any, name: str) -> Any:
    annotations = getattr(fn, "__annotations__", None)
    found = annotations.get(name, Any) if annotations else Any
    if isinstance(found, str):
        found = _evaluated(found, getattr(fn, "__module__", ""))
    return Any if found in _NOTHING else found


@lru_cache(maxsize=1024)
def _evaluated(text: str, module: str) -> Any:
    """get_type_hints of the function itself takes 57 us, and a cache by function would keep closures alive."""
    holder = type("Holder", (), {"__annotations__": {"it": text}, "__module__": module})
    try:
        return get_type_hints(holder, vars(sys.modules[module]))["it"]
    except (NameError, TypeError, KeyError, AttributeError, SyntaxError):  # it may name what is not there at run time
        return Any
