"""How Alembic runs the migrations: one transaction each, in the schema that pgqueue.db.schema was asked for.

Started by `pgqueue migrate` and PgQueue.migrate(), which hand over the connection, or None to print SQL. For a new
migration: `alembic revision --rev-id 0002 -m "what it adds"`, then write 0002_what_it_adds.up.sql and .down.sql.
"""

from __future__ import annotations

from collections.abc import Collection

from alembic import context
from sqlalchemy import Connection

from pgqueue.db.revision import comment_version, current_schema, run

VERSION_TABLE = "schema_version"


def stamp(ctx: object, step: object, heads: Collection[str], run_args: object) -> None:
    """Called by Alembic after each step, within its transaction."""
    comment_version(max(heads, default=None))
    for listener in context.config.attributes.get("on_version", ()):
        listener(max(heads, default=None))


def migrate(connection: Connection | None) -> None:
    context.configure(
        connection=connection,
        dialect_name=None if connection else "postgresql",
        version_table=VERSION_TABLE,
        version_table_schema=current_schema(),
        transaction_per_migration=True,
        on_version_apply=stamp,
    )
    if connection is None and context.get_starting_revision_argument() in (None, "base"):
        run(f'create schema if not exists "{current_schema()}"')
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    migrate(None)
elif "connection" in context.config.attributes:
    migrate(context.config.attributes["connection"])
else:
    raise SystemExit("pgqueue's migrations run through `pgqueue migrate` or PgQueue.migrate(), which know the schema")
