"""Everything pgqueue raises for its callers.

PgqueueError
├── InvalidArguments (TypeError)     arguments that do not fit the task's signature
├── InvalidJob (ValueError)          a value outside its limits: a name, a size, a delay, JSON that PostgreSQL refuses
├── InvalidConnection (TypeError)    a connection of the wrong colour, of an unknown kind, or closed
├── ConfigError (ValueError)         an option that does not exist or does not fit
├── MissingExtra (ImportError)       an optional package is not installed; names the extra
├── Unreachable (ConnectionError)    no connection to the database in time; names the database and the reason
├── SchemaMismatch                   the database's schema is missing, or older or newer than this release understands
├── MigrationError                   a migration could not be made; the last finished one counts
├── ServerError                      the private server of `pgqueue demo` and `pgqueue dev` could not start or stop
├── JobNotFound (LookupError)        no job with that id
├── WaitTimeout (TimeoutError)       the job had not finished in time
├── JobFailed                        the awaited job ended without a result
├── StepError                        a step was used as steps can't be; the attempt fails, what was done before stays
└── LeaseLost                        this attempt no longer holds the job; another one may
"""

from __future__ import annotations


class PgqueueError(Exception):
    """The root: `except PgqueueError` catches all that pgqueue raises on purpose."""


class InvalidArguments(PgqueueError, TypeError):
    """Arguments do not fit the task's signature; nothing was sent."""


class InvalidJob(PgqueueError, ValueError):
    """A value is outside its limits; nothing was sent."""


class InvalidConnection(PgqueueError, TypeError):
    """The connection can't be used: wrong colour, unknown kind, or closed; nothing was sent."""


class ConfigError(PgqueueError, ValueError):
    """An option does not exist or does not fit; names the nearest known one."""


class MissingExtra(PgqueueError, ImportError):
    """An optional package is needed; names the extra that brings it."""


class Unreachable(PgqueueError, ConnectionError):
    """No connection to the database could be had in time; names the database and the last reason; nothing was sent."""


class SchemaMismatch(PgqueueError):
    """The database's pgqueue schema is missing, too old or too new for this release."""


class MigrationError(PgqueueError):
    """A migration could not be made; the database is as the last finished migration left it."""


class ServerError(PgqueueError):
    """The private server could not be prepared, started or stopped; shows the end of its log."""


class JobNotFound(PgqueueError, LookupError):
    """There is no job with that id."""


class WaitTimeout(PgqueueError, TimeoutError):
    """The job had not reached a final state in time."""


class JobFailed(PgqueueError):
    """The awaited job ended without a result: cancelled, discarded or stopped."""


class StepError(PgqueueError):
    """A step was used as steps can't be, or its checkpoint is damaged; what was done before stays."""


class LeaseLost(PgqueueError):
    """This attempt no longer holds its job: another worker may be running it."""
