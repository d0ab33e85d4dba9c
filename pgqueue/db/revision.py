"""What a migration's eight lines call: run the SQL file beside it, or build an index without locking the table.

Guarantees: the SQL is written for the chosen schema, waits for locks only as long as migrate() was told, and doesn't
depend on the role's search_path; the same calls print plain SQL when no database is connected (`migrate --sql`).
Never: imported by a worker or a client; this and migrations/ are all that know Alembic.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from alembic import context

from pgqueue.store.statement import SCHEMA, in_schema

# Building an index concurrently waits for every older transaction of the database, so it must be allowed to.
CONCURRENTLY_LOCK_TIMEOUT = timedelta(minutes=5)


def up(revision_file: str) -> None:
    """Run `NNNN_name.up.sql`, the neighbour of `NNNN_name.py`, within the migration's transaction."""
    _run_file(Path(revision_file).with_suffix(".up.sql"))


def down(revision_file: str) -> None:
    """Run `NNNN_name.down.sql` likewise."""
    _run_file(Path(revision_file).with_suffix(".down.sql"))


def concurrently(index: str, definition: str) -> None:
    """Build `index` while the table is being written to; commits what the migration did before.

    A build that failed or was killed leaves an invalid index of that name; it is dropped first.

    index       its name, without the schema
    definition  all that follows the name: `on pgqueue.job (kind)`
    """
    with context.get_context().autocommit_block():
        run(f"set lock_timeout = {_milliseconds(CONCURRENTLY_LOCK_TIMEOUT)}")
        run(f"drop index concurrently if exists {SCHEMA}.{index}")
        run(f"create index concurrently {index} {definition}")
        run("reset lock_timeout")
    _guard_transaction()


def run(sql: str) -> None:
    """Send `sql` as it stands but for the schema's name; offline, print it."""
    migration = context.get_context()
    text = in_schema(sql, current_schema()).strip().rstrip(";")
    if migration.as_sql:
        migration.impl.static_output(f"{text};")
        return
    # no_parameters: neither SQLAlchemy nor psycopg looks for placeholders, so `:name` and `%` need no escape.
    assert migration.bind is not None
    migration.bind.exec_driver_sql(text, execution_options={"no_parameters": True})


def current_schema() -> str:
    """The schema that is being migrated."""
    return str(context.config.attributes.get("schema", SCHEMA))


def comment_version(version: str | None) -> None:
    """Write the version where any role can read it without a privilege, and where a missing table is no error."""
    text = "null" if version is None else f"'version {version}'"
    run(f"comment on table {SCHEMA}.schema_version is {text}")


def _run_file(path: Path) -> None:
    _guard_transaction()
    run(path.read_text(encoding="utf-8"))


def _guard_transaction() -> None:
    patience = context.config.attributes.get("lock_timeout", timedelta(seconds=3))
    run(f"set local lock_timeout = {_milliseconds(patience)}")
    run("set local search_path = ''")


def _milliseconds(duration: timedelta) -> int:
    return max(1, round(duration.total_seconds() * 1000))
