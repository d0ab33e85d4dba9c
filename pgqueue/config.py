"""What the command line is told by flags, by the environment and by pgqueue.yaml: read once, checked, with its origin.

Order: a flag wins over the environment, that over the file, that over the default. The file is ./pgqueue.yaml unless
--config or PGQUEUE_CONFIG names another; its keys are the fields of `Config`, and PGQUEUE_<FIELD> the variables.
PGQUEUE_DSN_FILE and PGQUEUE_DIRECT_DSN_FILE name a file with the value, as container platforms mount secrets.
Guarantees: a name that nobody knows is an error with the nearest known one; a bad value is named with where it stands.
Never: shows a password; changes the environment; is read by the library (`PgQueue()` knows PGQUEUE_DSN only).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal, get_args, get_type_hints

import msgspec
import yaml
from msgspec import Meta

from pgqueue.db.connect import redact, resolve_dsn
from pgqueue.errors import ConfigError, PgqueueError
from pgqueue.store.statement import SCHEMA, check_schema
from pgqueue.tasks.door import nearest
from pgqueue.worker import read_queues

FILE = "pgqueue.yaml"
PREFIX = "PGQUEUE_"
SECRETS = frozenset({"dsn", "direct_dsn"})
# Read elsewhere: by this module, by demo/postgres.py, by workers of a supervisor, by the tests.
OTHER_VARIABLES = frozenset(
    {"PGQUEUE_CONFIG", "PGQUEUE_PG_BIN", "PGQUEUE_WORKER_NUMBER", "PGQUEUE_TEST_DSN", "PGQUEUE_REQUIRE_PG15"}
)
# Kubernetes tells every container about services; one called "pgqueue" must not stop us.
_SERVICE_LINK = re.compile(r"PGQUEUE_(\w+_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT|PORT_\d+_(TCP|UDP)\w*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting of the command line. Each field is a key of the file and, as PGQUEUE_<FIELD>, a variable."""

    dsn: Annotated[str | None, Meta(description="database, as a DSN or URL; else DATABASE_URL, else libpq's PG*")] = (
        field(default=None, repr=False)
    )
    direct_dsn: Annotated[str | None, Meta(description="a way around the pooler, for LISTEN and migrations")] = field(
        default=None, repr=False
    )
    pooled: Annotated[bool, Meta(description="the DSN leads to a PgBouncer in transaction mode")] = False
    schema: Annotated[str, Meta(description="schema that `pgqueue migrate` makes and all commands use")] = SCHEMA
    app: Annotated[str | None, Meta(description="the application's PgQueue, as module:name")] = None
    queues: Annotated[Mapping[str, int] | None, Meta(description="what a worker takes: mail=20,import=2")] = None
    processes: Annotated[int, Meta(ge=1, le=256, description="worker processes")] = 1
    name: Annotated[
        Annotated[str, Meta(min_length=1, max_length=128)] | None, Meta(description="name of the worker")
    ] = None
    lease: Annotated[
        float, Meta(ge=6, le=86400, description="seconds after which others take a silent worker's jobs")
    ] = 15.0
    grace: Annotated[float, Meta(ge=0, le=86400, description="seconds that running jobs get to end on a stop")] = 20.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="what to log: debug, info, warning or error")
    ] = "info"


TYPES: Mapping[str, object] = get_type_hints(Config, include_extras=True)
SETTINGS: tuple[str, ...] = tuple(each.name for each in fields(Config))


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and for each one where its value stands ("--dsn", "PGQUEUE_DSN", "pgqueue.yaml: dsn").

    file  as given with --config
    """

    config: Config
    origins: Mapping[str, str]
    file: str | None = None

    def origin(self, name: str) -> str:
        """Where a setting's value stands; "default" if nobody said anything."""
        return self.origins.get(name, "default")


@dataclass(frozen=True, slots=True)
class _Found:
    """A value as it was found: `origin` says where, for people."""

    name: str
    value: object
    origin: str


def load(
    flags: Mapping[str, object] | None = None,
    *,
    file: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Loaded:
    """Read all sources.

    flags   by setting; None means not given
    file    as given with --config
    raises  ConfigError for an unknown name or a value that can't be, naming where it stands
    """
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for each in _everything(flags or {}, file, environ):
        values[each.name] = _checked(each)
        origins[each.name] = each.origin
    return Loaded(Config(**values), origins, file)  # type: ignore[arg-type]  # each value was converted to its field's type


def describe_setting(name: str) -> str:
    """One line about a setting, for people."""
    return next(note.description or "" for note in get_args(TYPES[name]) if isinstance(note, Meta))


def shown(name: str, value: object) -> str:
    """A setting's value for people: without passwords, queues as they are written."""
    match value:
        case None:
            return ""
        case str() if name in SECRETS:
            return redact(value)
        case Mapping():
            return ",".join(f"{queue}={count}" for queue, count in value.items())
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
    return str(value)


def _everything(flags: Mapping[str, object], file: str | None, environ: Mapping[str, str]) -> Iterator[_Found]:
    """What was found, the weakest first, so that the last one wins. All of it is checked, even what loses."""
    yield from _from_file(file or environ.get("PGQUEUE_CONFIG") or None, "--config" if file else "PGQUEUE_CONFIG")
    given = [_Found(name, value, _flag(name)) for name, value in flags.items() if value is not None]
    stronger = [*_from_environment(environ), *given]
    if environ.get("DATABASE_URL") and not any(each.name == "dsn" for each in stronger):
        yield _Found("dsn", environ["DATABASE_URL"], "DATABASE_URL")  # as PgQueue() does
    yield from stronger


def _flag(name: str) -> str:
    return {"app": "-A", "queues": "-q"}.get(name, f"--{name.replace('_', '-')}")


def _from_environment(environ: Mapping[str, str]) -> Iterator[_Found]:
    variables = {f"{PREFIX}{name.upper()}": name for name in SETTINGS}
    files = {f"{PREFIX}{name.upper()}_FILE": name for name in SECRETS}
    for variable, value in environ.items():
        if not variable.startswith(PREFIX) or variable in OTHER_VARIABLES or not value:
            continue
        if variable in variables:
            yield _Found(variables[variable], value, variable)
        elif variable in files:
            other = variable.removesuffix("_FILE")
            if environ.get(other):
                raise ConfigError(f"{variable} and {other} are both set: unset one of them")
            yield _Found(files[variable], _read_secret(variable, value), variable)
        elif not _SERVICE_LINK.fullmatch(variable):
            known = [*variables, *files, *OTHER_VARIABLES]
            raise ConfigError(f"environment variable {variable} is no setting of pgqueue{nearest(variable, known)}")


def _read_secret(variable: str, path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{variable}: can't read {path!r}: {_reason(error)}") from error
    if not text:
        raise ConfigError(f"{variable}: {path!r} is empty; it should hold the DSN")
    return text


def _from_file(path: str | None, named_by: str) -> Iterator[_Found]:
    where = Path(path or FILE)
    if path is None and not where.exists():
        return
    try:
        content: object = yaml.safe_load(where.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{f'{named_by}: ' if path else ''}can't read {str(where)!r}: {_reason(error)}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', None) or 'malformed'}") from error
    if content is None:
        return
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: should be a list of settings such as `schema: pgqueue`, one per line")
    for key, value in content.items():
        if key not in SETTINGS:
            raise ConfigError(f"{where}: {key!r} is no setting of pgqueue{nearest(str(key), SETTINGS)}")
        if value is not None:
            yield _Found(key, value, f"{where}: {key}")


def _checked(found: _Found) -> object:
    """The value as its field's type.

    raises  ConfigError naming where it stands, the value (unless it is a secret) and what it should be
    """
    name, value = found.name, found.value
    if name == "log_level" and isinstance(value, str):
        value = value.lower()
    try:
        if name == "queues":
            given: dict[str, int] | list[str] | str = msgspec.convert(
                value, dict[str, int] | list[str] | str, strict=False
            )
            return read_queues(given)
        converted: object = msgspec.convert(value, TYPES[name], strict=False)
        if name == "schema":
            check_schema(str(converted))
        elif name in SECRETS:
            resolve_dsn(str(converted), environ={})
    except PgqueueError as error:
        raise ConfigError(f"{found.origin}: {error}") from error
    except msgspec.ValidationError as error:
        said = "" if name in SECRETS else f" {value!r}"
        raise ConfigError(f"{found.origin}{said}: must be {_rule(name)}") from error
    except ValueError as error:
        raise ConfigError(f"{found.origin}: {error}") from error
    return converted


def _rule(name: str) -> str:
    """What a value has to be, for messages."""
    kind, *notes = get_args(TYPES[name])
    for note in notes:
        if isinstance(note, Meta) and note.ge is not None and note.le is not None:
            return f"a {'whole ' if kind is int else ''}number from {note.ge:g} to {note.le:g}"
    choices = [each for each in get_args(kind) if isinstance(each, str)]
    if choices:
        return f"one of {', '.join(choices)}"
    if name == "queues":
        return "queues with how many jobs of each run at once, such as mail=20,import=2"
    return "true or false" if kind is bool else "a text"


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror or str(error)
