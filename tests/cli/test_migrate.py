"""`pgqueue migrate` against an empty database."""

from __future__ import annotations

import json

import psycopg
import pytest

from pgqueue.db.schema import SCHEMA_MAX, check
from tests.cli.commands import finish, invoke


def test_a_schema_is_made_once_and_checked(empty_db: str) -> None:
    before = invoke("migrate", "--check", dsn=empty_db)
    assert before.exit_code == 1
    assert before.stdout == f"schema pgqueue is at nothing, this release brings {SCHEMA_MAX}: run `pgqueue migrate`\n"

    made = finish("migrate", dsn=empty_db)
    assert made.returncode == 0
    assert made.stdout == f"schema pgqueue: nothing -> {SCHEMA_MAX}\n"
    assert made.stderr.splitlines()[-1] == f"schema is at {SCHEMA_MAX}"

    assert invoke("migrate", dsn=empty_db).stdout == f"schema pgqueue is at {SCHEMA_MAX} already\n"
    after = invoke("migrate", "--check", "--json", dsn=empty_db)
    assert (after.exit_code, json.loads(after.stdout)["current"]) == (0, True)


def test_a_schema_with_another_name(empty_db: str) -> None:
    result = invoke("migrate", "--schema", "ours", "--json", dsn=empty_db)
    assert json.loads(result.stdout) == {"schema": "ours", "from": None, "version": SCHEMA_MAX}
    assert invoke("enqueue", "mail", "--schema", "ours", dsn=empty_db).stdout == "1\n"
    missing = invoke("enqueue", "mail", dsn=empty_db)
    assert missing.exit_code == 2
    assert "run `pgqueue migrate`" in missing.stderr


def test_going_down_deletes_jobs_and_so_has_to_be_confirmed(fresh_db: str) -> None:
    careful = invoke("migrate", "base", dsn=fresh_db)
    assert careful.exit_code == 2
    assert "down to base deletes it with all jobs; add --yes" in careful.stderr
    assert check(fresh_db).is_current
    assert invoke("migrate", "base", "--yes", dsn=fresh_db).stdout == f"schema pgqueue: {SCHEMA_MAX} -> nothing\n"
    assert check(fresh_db).current is None


def test_the_sql_needs_no_database_and_makes_the_schema(empty_db: str) -> None:
    sql = finish("migrate", "--sql").stdout
    with psycopg.connect(empty_db, autocommit=True) as conn:
        conn.execute(sql.encode())
    assert check(empty_db).is_current


def test_behind_a_pooler_one_may_look_but_not_migrate(fresh_db: str) -> None:
    refused = invoke("migrate", "base", "--yes", dsn=fresh_db, PGQUEUE_POOLED="1")
    assert refused.exit_code == 2
    assert "pooled is set, and a migration needs a session of its own: give direct_dsn" in refused.stderr
    assert invoke("migrate", "--check", "--pooled", dsn=fresh_db).exit_code == 0
    assert invoke("migrate", "--pooled", "--direct-dsn", fresh_db, dsn=fresh_db).exit_code == 0


@pytest.mark.parametrize("args", ["--json", "--check"])
def test_a_direct_connection_is_used_where_there_is_one(args: str, fresh_db: str) -> None:
    pooler = "postgresql://postgres@127.0.0.1:1/pooler"
    assert invoke("migrate", args, dsn=pooler, PGQUEUE_DIRECT_DSN=fresh_db).exit_code == 0
