"""A task's signature, read once when it is decorated: what its arguments are called and which types they have.

Guarantees: what can't become JSON and come back is refused here, at import time, naming the parameter and the remedy.
Never: calls the function, or imports the module of the context classes: those carry the mark `__pgqueue_context__`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from inspect import Parameter
from types import SimpleNamespace
from typing import Any, get_origin, get_type_hints

import msgspec
from msgspec import inspect as types

CONTEXT_MARK = "__pgqueue_context__"

_TEXT_KEYS = (types.StrType, types.AnyType)
_OWN_CLASSES = (types.DataclassType, types.StructType, types.CustomType)  # whose `==` proves nothing


@dataclass(frozen=True, slots=True)
class Argument:
    """One parameter that is stored with the job.

    type      its annotation; Any if it has none
    plain     its values are builtins, so `==` between two of them can be believed
    any_keys  its annotation has dictionaries whose keys are not text
    """

    name: str
    type: object
    plain: bool
    any_keys: bool
    positional_only: bool
    keyword_only: bool
    default: object

    @property
    def required(self) -> bool:
        return self.default is Parameter.empty


@dataclass(frozen=True, slots=True)
class Signature:
    """What a task takes.

    title    the function's name with "()", for errors
    extra    what `**kwargs` accepts; None if there is none
    context  the name of the parameter that the worker fills in; None if there is none
    """

    title: str
    arguments: tuple[Argument, ...]
    extra: Argument | None
    context: str | None


def read_signature(fn: Callable[..., object]) -> Signature:
    """Read the signature of a task's function.

    raises  TypeError naming the parameter that can't be stored as JSON, or the annotation that can't be resolved
    """
    title = f"{getattr(fn, '__name__', type(fn).__name__)}()"
    parameters = list(inspect.signature(fn).parameters.values())
    hints = _hints(fn, title)
    takes_context = bool(parameters) and is_context(hints.get(parameters[0].name))
    if takes_context:
        _check_context(parameters[0], title)
    arguments = [_argument(parameter, hints, title) for parameter in parameters[takes_context:]]
    extra = arguments.pop() if parameters and parameters[-1].kind is Parameter.VAR_KEYWORD else None
    return Signature(title, tuple(arguments), extra, parameters[0].name if takes_context else None)


def is_context(annotation: object) -> bool:
    """Whether an annotation is one of pgqueue's context classes."""
    return getattr(get_origin(annotation) or annotation, CONTEXT_MARK, False) is True


def _hints(fn: Callable[..., object], title: str) -> Mapping[str, object]:
    target = inspect.unwrap(fn)
    annotations = dict(getattr(target, "__annotations__", {}))
    annotations.pop("return", None)  # never stored by type, and often importable for type checkers only
    try:
        return get_type_hints(
            SimpleNamespace(__annotations__=annotations),
            globalns=getattr(target, "__globals__", {}),
            include_extras=True,
        )
    except NameError as error:
        raise TypeError(
            f"{title}: an annotation can't be resolved ({error}); import the name at module level,"
            " outside `if TYPE_CHECKING:` and outside functions"
        ) from error


def _check_context(parameter: Parameter, title: str) -> None:
    if parameter.kind not in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD):
        raise TypeError(f"{title}: the context {parameter.name!r} must be a plain first parameter, not {parameter}")


def _argument(parameter: Parameter, hints: Mapping[str, object], title: str) -> Argument:
    name = parameter.name
    if parameter.kind is Parameter.VAR_POSITIONAL:
        raise TypeError(f"{title}: *{name} can't be stored by name; take a list instead: {name}: list[...]")
    if name.startswith("__"):
        raise TypeError(f"{title}: argument {name!r} may not begin with two underscores; rename it")
    annotation = hints.get(name, Any)
    if annotation is object:
        annotation = Any
    nodes = list(_nodes(_info(annotation, name, title)))
    for node in nodes:
        _check_node(node, name, title)
    return Argument(
        name=name,
        type=annotation,
        plain=not any(isinstance(node, _OWN_CLASSES) for node in nodes),
        any_keys=any(isinstance(node, types.DictType) and not isinstance(node.key_type, _TEXT_KEYS) for node in nodes),
        positional_only=parameter.kind is Parameter.POSITIONAL_ONLY,
        keyword_only=parameter.kind is Parameter.KEYWORD_ONLY,
        default=parameter.default,
    )


def check_type(type: Any) -> None:
    """Raise TypeError (or NameError) for a type of which no value could be read from JSON."""
    try:
        _check_known(type)
    except TypeError:  # can't be hashed; or is refused, which is said once more
        _check_known.__wrapped__(type)


@lru_cache(maxsize=256)
def _check_known(type: Any) -> None:
    for node in _nodes(_type_info(type)):
        cls = getattr(node, "cls", None)
        if isinstance(node, types.CustomType) and not hasattr(cls, "model_validate") and cls is not object:
            raise TypeError(f"{cls} is unknown to JSON")


def _type_info(annotation: object) -> types.Type:
    msgspec.json.Decoder(annotation)  # finds more than type_info does, such as unsupported keys
    return types.type_info(annotation)


def _info(annotation: object, name: str, title: str) -> types.Type:
    try:
        return _type_info(annotation)
    except (TypeError, NameError) as error:
        raise TypeError(
            f"{title}: argument {name!r} has an annotation that can't be stored as JSON: {error}"
        ) from error


def _nodes(info: types.Type) -> Iterator[types.Type]:
    """`info` and every type inside it, each once: a class may contain itself."""
    seen: set[int] = set()
    waiting: list[object] = [info]
    while waiting:
        node = waiting.pop()
        if isinstance(node, tuple):
            waiting.extend(node)
        elif isinstance(node, types.Type | types.Field) and id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, types.Type):
                yield node
            waiting.extend(getattr(node, field) for field in node.__struct_fields__)


def _check_node(node: types.Type, name: str, title: str) -> None:
    if not isinstance(node, types.CustomType | types.RawType | types.ExtType):
        return
    cls: type = getattr(node, "cls", type(node))
    if is_context(cls):
        raise TypeError(f"{title}: the context {name!r} must be the first parameter, annotated with the class itself")
    if not hasattr(cls, "model_validate") and cls is not object:
        raise TypeError(
            f"{title}: argument {name!r}: type {cls.__name__} can't be stored as JSON;"
            " take its id, or a dataclass, msgspec Struct or pydantic model with its fields"
        )
