"""The tasks of one queue object, by name.

Guarantees: a name means one function. A module that is loaded again replaces its own tasks; another function under a
name that is taken is an error that names both places.
Never: imports modules to look for tasks.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from pgqueue.errors import ConfigError
from pgqueue.tasks.door import nearest
from pgqueue.tasks.task import Task

AnyTask = Task[..., object]


class Registry:
    """Name -> Task."""

    def __init__(self) -> None:
        self._tasks: dict[str, AnyTask] = {}

    def add(self, task: AnyTask) -> None:
        """Register a task under its name.

        raises  ValueError if another function has that name
        """
        known = self._tasks.get(task.name)
        if known is not None and _identity(known) != _identity(task):
            raise ConfigError(
                f"two tasks are named {task.name!r}: {known.place} and {task.place}; give one of them another name="
            )
        self._tasks[task.name] = task

    def find(self, name: str) -> AnyTask | None:
        """The task of that name, or None."""
        return self._tasks.get(name)

    def __getitem__(self, name: str) -> AnyTask:
        """The task of that name.

        raises  ConfigError with the nearest known name
        """
        task = self._tasks.get(name)
        if task is None:
            raise ConfigError(f"no task is named {name!r}{nearest(name, self._tasks)}")
        return task

    def kinds(self) -> tuple[str, ...]:
        """The names, in order of registration: the kinds that a worker with this registry can run."""
        return tuple(self._tasks)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __iter__(self) -> Iterator[AnyTask]:
        return iter(tuple(self._tasks.values()))

    def __len__(self) -> int:
        return len(self._tasks)


def _identity(task: AnyTask) -> tuple[object, ...]:
    """The same after a reload, and when a file is both run as `__main__` and imported by its name."""
    fn = inspect.unwrap(task.fn)
    code = getattr(fn, "__code__", None)
    return (getattr(fn, "__qualname__", fn), code.co_filename if code is not None else fn.__module__)
