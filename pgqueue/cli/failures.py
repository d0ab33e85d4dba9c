"""What went wrong, as one line that says what to do, and the exit status. Pure.

Status 2: the command line, the configuration, the application or the schema is not as it has to be, and the same call
will fail again. Status 1: the database could not be reached or refused, the job is not there, or nothing was done.
"""

from __future__ import annotations

import re

import click

from pgqueue.db.failure import DatabaseError, is_outage, server_text, sqlstate
from pgqueue.errors import (
    ConfigError,
    InvalidArguments,
    InvalidConnection,
    InvalidJob,
    MissingExtra,
    PgqueueError,
    SchemaMismatch,
)

_USAGE = (ConfigError, InvalidArguments, InvalidConnection, InvalidJob, MissingExtra, SchemaMismatch)
_HINTS = re.compile(r"^(connection failed|connection is bad): |\s+Is the server running[^?]*\?")  # libpq's
_SCHEMA_MISSING = frozenset({"3F000", "42P01", "42883", "42703"})
_NOT_ALLOWED = "42501"


def explain(error: BaseException) -> tuple[str, int] | None:
    """The line and the status; None for a defect, whose traceback should be seen. An empty line: say nothing."""
    match error:
        case click.Abort() | KeyboardInterrupt():
            return "", 130
        case BrokenPipeError():
            return "", 1
        case click.UsageError():
            return _usage(error), 2
        case click.ClickException():
            return one_line(error.format_message()), 2
        case PgqueueError():
            return one_line(str(error)), 2 if isinstance(error, _USAGE) else 1
        case BaseExceptionGroup():  # a worker's tasks fail together; the first one that can be named stands for all
            return next(filter(None, map(explain, error.exceptions)), None)
    return _database(error) if isinstance(error, DatabaseError) else None


def one_line(text: str) -> str:
    """`text` without line breaks."""
    return " ".join(text.split())


def _usage(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx is not None else "pgqueue"
    said = one_line(error.format_message()).rstrip(".")
    return f"{said[:1].lower()}{said[1:]}; see `{command} --help`"


def _database(error: DatabaseError) -> tuple[str, int]:
    said = one_line(_HINTS.sub("", server_text(error)))
    if is_outage(error):
        where = "or start one with `pgqueue dev`" if "on socket" in said else "or PGQUEUE_DSN"
        return f"no connection to the database: {said}; see that it runs, and name it with --dsn {where}", 1
    if sqlstate(error) in _SCHEMA_MISSING:
        return f"{said}: the schema is missing or of another version; run `pgqueue migrate`", 2
    if sqlstate(error) == _NOT_ALLOWED:
        return f'the database refused: {said}; the owner of the schema can allow it: see "Grants" in the README', 1
    return f"the database refused: {said}", 1
