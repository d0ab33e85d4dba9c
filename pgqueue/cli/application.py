"""Finds the application's PgQueue: `-A package.module:q`, or `-A package.module` if there is one in it.

Guarantees: the working directory is importable, as it is for uvicorn; what the settings say about the database reaches
the application (as PGQUEUE_DSN and PGQUEUE_DIRECT_DSN), and where the application says something else itself, that is
an error, not a guess.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from types import ModuleType

from pgqueue import PgQueue
from pgqueue.config import Loaded
from pgqueue.errors import ConfigError
from pgqueue.tasks.door import nearest

log = logging.getLogger("pgqueue.cli")


def find_queue(loaded: Loaded) -> PgQueue:
    """The queue object that the setting `app` names, with its tasks.

    raises  ConfigError: no such module or name, not a PgQueue, no tasks, another database or schema than configured
    """
    target = loaded.config.app
    if target is None:
        raise ConfigError("which application? say -A module:name, for example -A app:q (or set PGQUEUE_APP)")
    subject = f"{loaded.origin('app')} {target}"
    if loaded.config.dsn is not None:
        os.environ["PGQUEUE_DSN"] = loaded.config.dsn  # PgQueue() without a DSN asks for it
    if loaded.config.direct_dsn is not None:
        os.environ["PGQUEUE_DIRECT_DSN"] = loaded.config.direct_dsn
    module_name, _, path = target.partition(":")
    module = _import(module_name, subject)
    q = _named(module, path, subject) if path else _only(module, subject)
    if not len(q.tasks):
        raise ConfigError(f"{subject}: it has no tasks: import the modules that define them in {module_name}")
    _check_agreement(q, loaded, subject)
    return q


def _import(name: str, subject: str) -> ModuleType:
    if "/" in name or name.endswith(".py"):
        better = name.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigError(f"{subject}: name a module, not a file: {better}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(f"{subject}: there is no module {error.name!r} in {os.getcwd()} or sys.path") from error
        raise _broken(error, subject) from error
    except (Exception, SystemExit) as error:
        raise _broken(error, subject) from error


def _broken(error: BaseException, subject: str) -> ConfigError:
    """The application's own mistake: where it is, on one line; all of it for those who ask for debug."""
    log.debug("the application could not be imported", exc_info=error)
    frames = [each for each in traceback.extract_tb(error.__traceback__) if "importlib" not in each.filename]
    where = f"{frames[-1].filename}, line {frames[-1].lineno}: " if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}, line {error.lineno}: "
        return ConfigError(f"{subject}: can't be imported: {where}SyntaxError: {error.msg}")
    return ConfigError(f"{subject}: can't be imported: {where}{type(error).__name__}: {error}")


def _named(module: ModuleType, path: str, subject: str) -> PgQueue:
    found: object = module
    for name in path.split("."):
        if not hasattr(found, name):
            known = _queues(module) or [each for each in vars(module) if not each.startswith("_")]
            raise ConfigError(f"{subject}: {module.__name__} has no {path!r}{nearest(path, known)}")
        found = getattr(found, name)
    if not isinstance(found, PgQueue):
        others = ", ".join(_queues(module))
        hint = f"; did you mean {module.__name__}:{others}?" if others else ""
        raise ConfigError(f"{subject}: {path} is not a PgQueue but {_a(type(found).__name__)}{hint}")
    return found


def _only(module: ModuleType, subject: str) -> PgQueue:
    names = _queues(module)
    if len({id(getattr(module, name)) for name in names}) == 1:
        found: PgQueue = getattr(module, names[0])
        return found
    if not names:
        raise ConfigError(f"{subject}: there is no PgQueue in {module.__name__}; say which: -A module:name")
    raise ConfigError(f"{subject}: say which queue: {' or '.join(f'-A {module.__name__}:{name}' for name in names)}")


def _queues(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if isinstance(value, PgQueue)]


def _check_agreement(q: PgQueue, loaded: Loaded, subject: str) -> None:
    config = loaded.config
    if q.dsn is not None and loaded.origin("dsn") == "--dsn" and q.dsn != config.dsn:
        raise ConfigError(f"{subject}: it names its database itself, so --dsn can't: leave it out, or write PgQueue()")
    if config.direct_dsn is not None and _own_direct_dsn(q, config.direct_dsn) != config.direct_dsn:
        raise ConfigError(
            f"{subject}: it names its {'direct_dsn' if q.direct_dsn else 'database'} itself, so "
            f"{loaded.origin('direct_dsn')} can't say direct_dsn: leave it out there, or write PgQueue()"
        )
    for name, used, said in (("schema", q.schema, config.schema), ("pooled", q.pooled, config.pooled)):
        if loaded.origin(name) != "default" and used != said:
            raise ConfigError(
                f"{subject}: it uses {name}={used!r}, but {loaded.origin(name)} says {said!r}: "
                f"write PgQueue({name}={said!r})"
            )


def _own_direct_dsn(q: PgQueue, configured: str) -> str | None:
    """What its worker will use: as the configured one belongs to the configured database, it goes with that only."""
    return q.direct_dsn or (None if q.dsn else configured)


def _a(noun: str) -> str:
    return f"an {noun}" if noun[:1] in "AEIOUaeiou" else f"a {noun}"
