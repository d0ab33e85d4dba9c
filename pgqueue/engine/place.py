"""Where a task's function is to be found by another process: its module and qualified name.

Guarantees: what `place_of` accepted here, `find` finds there, if it runs the same code. A script that is `__main__` is
run a second time as `__mp_main__`, as multiprocessing does it, and only if a task of it is wanted.
Never: pickle.
"""

from __future__ import annotations

import importlib
import multiprocessing.process
import multiprocessing.spawn
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pgqueue.errors import ConfigError
from pgqueue.tasks.task import Task


class Place(NamedTuple):
    """A function's module and qualified name."""

    module: str
    qualname: str


class Found(NamedTuple):
    """A function, and the task of it if that is what stands at its place."""

    fn: Callable[..., Any]
    task: Task[..., object] | None


class Main(NamedTuple):
    """What `__main__` is: a module or a file; neither in an interactive session."""

    name: str | None
    path: str | None


def check_importable(tasks: Iterable[Task[..., object]]) -> None:
    """Check that the tasks which want a process of their own can be found there.

    raises  ConfigError naming the task and the remedy
    """
    check_not_nested()
    for task in tasks:
        if task.executor == "process":
            place_of(task)


def check_not_nested() -> None:
    """Check that this is no process that imports its worker's main script.

    raises  ConfigError with the remedy
    """
    if getattr(multiprocessing.process.current_process(), "_inheriting", False):
        raise ConfigError(
            "a worker was started while a process of a worker imports its main script;"
            ' start it under `if __name__ == "__main__":`'
        )


def place_of(task: Task[..., object]) -> Place:
    """Where another process finds the task's function.

    raises  ConfigError naming the task and the remedy if it can't be found
    """
    place = Place(task.fn.__module__, task.fn.__qualname__)
    found: Callable[..., Any] | None
    try:
        found = _found(sys.modules[place.module], place.qualname).fn
    except (KeyError, AttributeError):
        found = None
    if found != task.fn:
        raise ConfigError(
            f"{task!r} can't run in a process of its own: {place.module}.{place.qualname} can't be imported;"
            " define the function at the top level of a module"
        )
    if place.module == "__main__" and main_module() == (None, None):
        raise ConfigError(f"{task!r} can't run in a process of its own: its module is no file that can be imported")
    return place


def main_module() -> Main:
    """How another process may import what is `__main__` here."""
    main = sys.modules["__main__"]
    name: str | None = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:  # of `python -m package` only __main__.py itself knows whether it may run twice
        return Main(None if name.rpartition(".")[2] == "__main__" else name, None)
    path: str | None = getattr(main, "__file__", None)
    return Main(None, None if path is None else os.path.abspath(path))


def find(place: Place, main: Main) -> Found:
    """The function at a place, for a process that got it from another; `main` is that one's main module.

    raises  whatever the import of its module raises; AttributeError if it is not in there
    """
    if place.module == "__main__" and sys.modules["__main__"].__name__ == "__main__":
        _import_main(main)
    return _found(importlib.import_module(place.module), place.qualname)


def _import_main(main: Main) -> None:
    process = multiprocessing.process.current_process()
    process._inheriting = True  # type: ignore[attr-defined]  # multiprocessing's own mark of a main script run twice
    try:
        if main.name is not None:
            multiprocessing.spawn.prepare({"init_main_from_name": main.name})
        else:
            multiprocessing.spawn.prepare({"init_main_from_path": main.path})
    finally:
        del process._inheriting  # type: ignore[attr-defined]


def _found(module: object, qualname: str) -> Found:
    """What is under that name: a task, something that wraps one, or a plain function."""
    found: Any = module
    for name in qualname.split("."):
        found = getattr(found, name)
    inner = found
    while not isinstance(inner, Task) and hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    return Found(inner.fn, inner) if isinstance(inner, Task) else Found(found, None)
