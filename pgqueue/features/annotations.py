"""What a step's function says about the types of its result and its cursor.

Guarantees: a type that could not be read back is refused before the function runs, not when its job resumes.
Never: keeps a function alive (it may hold a job's data): what is remembered is known by text and module.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine
from functools import lru_cache
from types import GenericAlias, NoneType
from typing import Any, Never, NoReturn, get_args, get_origin, get_type_hints

from pgqueue.errors import StepError
from pgqueue.tasks.json_text import check_type


def result_type(step: str, fn: Callable[..., object]) -> Any:
    """What the function is annotated to return; Any without an annotation.

    raises  StepError for a type that JSON can't be read as
    """
    return _readable(step, "result", _annotation(fn, "return"))


def cursor_type(step: str, fn: Callable[..., object], given: Any) -> Any:
    """`given`, or what the function's first parameter is annotated with; otherwise as `result_type`."""
    if given is None:
        code = getattr(fn, "__code__", None)
        first = code.co_varnames[inspect.ismethod(fn) :][:1] if code is not None else ()
        given = _annotation(fn, *first) if first else Any
    return _readable(step, "cursor", given)


def key_type(key: object) -> Any:
    """The type as which a key of `resume` is read back."""
    return GenericAlias(tuple, tuple(map(key_type, key))) if isinstance(key, tuple) else type(key)


def _readable(step: str, what: str, type: Any) -> Any:
    if type is Any:
        return Any
    if get_origin(type) in (Awaitable, Coroutine):
        type = get_args(type)[-1]
    try:
        check_type(type)
    except TypeError as error:
        raise StepError(
            f"step {step!r}: its {what} can't be read back as {type}: {error}; annotate it otherwise"
        ) from error
    return type


def _annotation(fn: Callable[..., object], name: str) -> Any:
    annotations = getattr(fn, "__annotations__", None)
    found = annotations.get(name, Any) if annotations else Any
    if isinstance(found, str):
        return _evaluated(found, getattr(fn, "__module__", ""))
    return Any if found in _NOTHING else found


@lru_cache(maxsize=1024)
def _evaluated(text: str, module: str) -> Any:
    """get_type_hints of the function itself takes 57 us, and a cache by function would keep closures alive."""
    holder = type("Holder", (), {"__annotations__": {"it": text}, "__module__": module})
    try:
        found = get_type_hints(holder, vars(sys.modules[module]))["it"]
    except (NameError, TypeError, KeyError, AttributeError, SyntaxError):  # it may name what is not there at run time
        return Any
    return Any if found in _NOTHING else found


_NOTHING = (None, NoneType, NoReturn, Never)
