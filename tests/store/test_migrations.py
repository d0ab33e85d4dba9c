"""The schema arrives whole or not at all, wherever it is sent and whoever gets in the way."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from pgqueue import PgQueue
from pgqueue.db import schema as schemas
from pgqueue.db.schema import (
    SCHEMA_MAX,
    SCHEMA_MIN,
    SchemaStatus,
    check,
    check_server,
    gate,
    installed_version,
    migrate,
    migration_sql,
)
from pgqueue.demo.postgres import find_binaries
from pgqueue.errors import ConfigError, MigrationError, SchemaMismatch
from tests.db.pooler import Fate, Pooler

REPOSITORY = Path(schemas.__file__).parents[2]
SOON = timedelta(milliseconds=20)

# A process that is ready to migrate, and does when it is told to.
MIGRATOR = """
import sys
from pathlib import Path
import alembic.command, sqlalchemy
from pgqueue.db.schema import migrate
print("ready", flush=True)
sys.stdin.readline()
print(migrate(sys.argv[1], scripts=Path(sys.argv[2])), flush=True)
"""

# Every object of a schema as PostgreSQL itself describes it.
DESCRIPTION = """
with relation as (select c.* from pg_class c where relnamespace = %(schema)s::regnamespace)
select format('relation %%s %%s %%s %%s %%s', relkind, relname, reloptions, relacl, obj_description(oid, 'pg_class'))
from relation
union all
select format('column %%s.%%s %%s %%s %%s %%s %%s %%s %%s %%s', relname, attnum, attname,
  format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated, attcollation::regcollation,
  pg_get_expr(adbin, adrelid), col_description(relation.oid, attnum))
from relation join pg_attribute on attrelid = relation.oid and attnum > 0
left join pg_attrdef on adrelid = attrelid and adnum = attnum
union all
select format('constraint %%s %%s %%s', conrelid::regclass, conname, pg_get_constraintdef(oid))
from pg_constraint where connamespace = %(schema)s::regnamespace
union all
select format('index %%s %%s', pg_get_indexdef(oid), indisvalid) from relation join pg_index on indexrelid = oid
union all
select format('view %%s %%s', relname, pg_get_viewdef(oid)) from relation where relkind in ('v', 'm')
union all
select format('function %%s %%s %%s', pg_get_functiondef(oid), proacl, obj_description(oid, 'pg_proc'))
from pg_proc where pronamespace = %(schema)s::regnamespace
order by 1
"""


@pytest.fixture
def role(empty_db: str) -> Iterator[str]:
    """A role that may log in and nothing else."""
    name = f"nobody_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(empty_db, autocommit=True) as conn:
        conn.execute(f"create role {name} login")
        yield name
        conn.execute(f"drop owned by {name}")
        conn.execute(f"drop role {name}")


@pytest.fixture
def scripts_with_index(tmp_path: Path) -> Path:
    """The migrations, and one more that builds an index while the table is in use."""
    copy = tmp_path / "migrations"
    shutil.copytree(REPOSITORY / "migrations", copy, ignore=shutil.ignore_patterns("__pycache__"))
    head = check_head(copy)
    (copy / "versions" / "9000_index.py").write_text(
        "from pgqueue.db.revision import concurrently, run\n"
        f"revision = '9000'\ndown_revision = '{head}'\n"
        "def upgrade(): concurrently('job_kind_test', 'on pgqueue.job (kind)')\n"
        "def downgrade(): run('drop index pgqueue.job_kind_test')\n"
    )
    return copy


def check_head(scripts: Path) -> str:
    return max(each.name[:4] for each in (scripts / "versions").glob("[0-9]*.py"))


def describe(dsn: str, schema: str = "pgqueue") -> list[str]:
    with psycopg.connect(dsn) as conn:
        rows = conn.execute(DESCRIPTION, {"schema": schema}).fetchall()
    return sorted(re.sub(rf'"?\b{schema}\b"?\.', "pgqueue.", str(text)) for (text,) in rows)


def start_migrator(dsn: str, scripts: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MIGRATOR, dsn, str(scripts)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def psql(dsn: str, script: str) -> None:
    command = [find_binaries()["psql"], "-X", "-q", "-v", "ON_ERROR_STOP=1", dsn]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_eight_processes_at_once_make_one_schema(empty_db: str, fresh_db: str, scripts_with_index: Path) -> None:
    processes = [start_migrator(empty_db, scripts_with_index) for _ in range(8)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        go(process)
    said = [process.communicate(timeout=60) for process in processes]

    assert said == [("9000\n", "")] * 8
    migrate(empty_db, target=SCHEMA_MAX, scripts=scripts_with_index)
    assert describe(empty_db) == describe(fresh_db)


@pytest.mark.parametrize("command", [1, 2, 3, 20, 100])
def test_a_migration_killed_at_any_command_is_made_by_the_next_run(empty_db: str, fresh_db: str, command: int) -> None:
    with psycopg.connect(empty_db, autocommit=True) as conn:
        conn.execute("select pg_advisory_lock(77)")
        conn.execute(f"""
            create sequence public.commands;
            create function public.stall() returns event_trigger language plpgsql as $$ begin
              if nextval('public.commands') = {command} then perform pg_advisory_xact_lock(77); end if;
            end $$;
            create event trigger stall on ddl_command_end execute function public.stall()""")
        victim = start_migrator(empty_db, REPOSITORY / "migrations")
        go(victim)
        await_blocked(conn, victim)
        victim.kill()
        victim.communicate()
        conn.execute("select pg_advisory_unlock(77)")
        conn.execute("drop event trigger stall")

    assert migrate(empty_db) == SCHEMA_MAX
    assert describe(empty_db) == describe(fresh_db)


def await_blocked(conn: psycopg.Connection, victim: subprocess.Popen[str]) -> None:
    """Return when somebody waits for our advisory lock."""
    waiting = "select pid from pg_locks where locktype = 'advisory' and objid = 77 and not granted"
    while conn.execute(waiting).fetchone() is None:
        assert victim.poll() is None, "the migrator ended before it came to that command"


def test_down_and_up_again_gives_the_same_schema(fresh_db: str) -> None:
    before = describe(fresh_db)

    assert migrate(fresh_db, target="base") is None
    assert {line.split()[2] for line in describe(fresh_db) if line.startswith("relation")} == {
        "schema_version",
        "schema_version_pkc",
    }
    assert migrate(fresh_db) == SCHEMA_MAX
    assert describe(fresh_db) == before


@pytest.mark.parametrize("version", ["0001", "0002", "0003"])
def test_the_way_down_leads_back_to_what_each_version_was(empty_db: str, version: str) -> None:
    migrate(empty_db, target=version)
    before = describe(empty_db)

    migrate(empty_db)
    assert describe(empty_db) != before
    assert migrate(empty_db, target=version) == version
    assert describe(empty_db) == before


def test_a_schema_of_the_users_choice_stands_beside_the_usual_one(fresh_db: str) -> None:
    usual = describe(fresh_db)

    migrate(fresh_db, schema="second")
    assert describe(fresh_db, "second") == usual
    migrate(fresh_db, schema="second", target="base")
    assert describe(fresh_db) == usual


def test_a_schema_name_with_capitals_is_kept_as_written(empty_db: str) -> None:
    migrate(empty_db, schema="Jobs")

    assert check(empty_db, "Jobs").is_current
    assert check(empty_db, "jobs").current is None


def test_a_schema_name_that_needs_escapes_is_refused(empty_db: str) -> None:
    with pytest.raises(ValueError, match="schema 'a\"b'"):
        migrate(empty_db, schema='a"b')


def test_a_role_without_privileges_migrates_the_schema_it_owns(empty_db: str, role: str) -> None:
    with psycopg.connect(empty_db, autocommit=True) as conn:
        conn.execute(f"create schema pgqueue authorization {role}")
        conn.execute(f"alter role {role} set search_path = 'nowhere'")

    assert migrate(as_role(empty_db, role)) == SCHEMA_MAX


def test_a_role_that_may_not_create_the_schema_is_told_what_to_ask_for(empty_db: str, role: str) -> None:
    with pytest.raises(MigrationError, match=f'create schema "pgqueue" authorization "{role}"'):
        migrate(as_role(empty_db, role))


def as_role(dsn: str, role: str) -> str:
    return psycopg.conninfo.make_conninfo(dsn, user=role)


def test_the_printed_sql_does_the_same_as_migrate(empty_db: str, fresh_db: str) -> None:
    psql(empty_db, migration_sql())
    assert describe(empty_db) == describe(fresh_db)
    assert check(empty_db) == SchemaStatus(SCHEMA_MAX, SCHEMA_MAX)
    assert migrate(empty_db) == SCHEMA_MAX

    psql(empty_db, migration_sql(target="base", start="head"))
    psql(fresh_db, migration_sql("second"))
    assert check(empty_db).current is None
    assert describe(fresh_db, "second") == describe(fresh_db)


def test_a_transaction_in_the_way_is_named(fresh_db: str) -> None:
    migrate(fresh_db, target="0002")  # the way back from there changes views
    before = describe(fresh_db)
    with psycopg.connect(fresh_db, application_name="nightly report") as conn:
        conn.execute("select count(*) from pgqueue.jobs")

        with pytest.raises(
            MigrationError, match=f"pid {conn.info.backend_pid} .*nightly report.* transaction open for"
        ):
            migrate(fresh_db, target="base", lock_timeout=SOON)
    assert describe(fresh_db) == before


def test_a_migration_steps_back_and_tries_again_when_the_way_is_free(fresh_db: str) -> None:
    migrate(fresh_db, target="0002")
    told = []
    with psycopg.connect(fresh_db) as conn:
        conn.execute("select count(*) from pgqueue.jobs")

        def make_way(line: str) -> None:
            told.append(line)
            conn.rollback()

        assert migrate(fresh_db, target="base", lock_timeout=SOON, on_step=make_way) is None
    assert "trying again" in told[0]
    assert told[-1] == "schema is at base"


def test_an_index_that_a_killed_build_left_invalid_is_built_anew(fresh_db: str, scripts_with_index: Path) -> None:
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        conn.execute("""select pgqueue.enqueue('a', '{}'), pgqueue.enqueue('a', '{}')""")
        with pytest.raises(psycopg.errors.UniqueViolation):
            conn.execute("create unique index concurrently job_kind_test on pgqueue.job (kind)")

        assert migrate(fresh_db, scripts=scripts_with_index) == "9000"
        valid = "select indisvalid, indisunique from pg_index where indexrelid = 'pgqueue.job_kind_test'::regclass"
        assert conn.execute(valid).fetchone() == (True, False)


def test_sql_that_fails_leaves_the_version_before_it(fresh_db: str, scripts_with_index: Path) -> None:
    (scripts_with_index / "versions" / "9000_index.py").write_text(
        "from pgqueue.db.revision import run\n"
        f"revision = '9000'\ndown_revision = '{SCHEMA_MAX}'\n"
        "def upgrade(): run('create table pgqueue.half (id int); select 1/0')\n"
    )
    before = describe(fresh_db)

    with pytest.raises(MigrationError, match="division by zero"):
        migrate(fresh_db, scripts=scripts_with_index)
    assert describe(fresh_db) == before


def test_the_version_is_read_without_a_schema_and_without_privileges(empty_db: str, role: str) -> None:
    statement = installed_version()
    with psycopg.connect(as_role(empty_db, role), autocommit=True) as conn:
        assert statement.decode(conn.execute(statement.sql, statement.params).fetchall()) is None
        migrate(empty_db)
        assert statement.decode(conn.execute(statement.sql, statement.params).fetchall()) == SCHEMA_MAX


def test_a_comment_lost_in_a_restore_is_written_again(fresh_db: str) -> None:
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        conn.execute("comment on table pgqueue.schema_version is null")

    assert migrate(fresh_db) == SCHEMA_MAX
    assert check(fresh_db).current == SCHEMA_MAX


def test_a_schema_newer_than_the_release_is_left_alone(fresh_db: str) -> None:
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        conn.execute("update pgqueue.schema_version set version_num = '9999'")
        conn.execute("comment on table pgqueue.schema_version is 'version 9999'")

    with pytest.raises(SchemaMismatch, match=r"at version 9999.*pip install --upgrade"):
        migrate(fresh_db)


@pytest.mark.parametrize("options", ["refused", "dropped"])
def test_a_pooler_in_between_is_told_of_before_anything_is_left_in_its_session(empty_db: str, options: Fate) -> None:
    with contextlib.closing(Pooler(empty_db, options)) as between:
        with pytest.raises(ConfigError, match=r"there is a pooler behind this DSN .*: give direct_dsn"):
            PgQueue(between.dsn).migrate()
        assert b"advisory" not in between.sent
        assert b"set " not in between.sent
        assert PgQueue(between.dsn, pooled=True, direct_dsn=empty_db).migrate() == SCHEMA_MAX


def test_whoever_says_that_there_is_a_pooler_has_to_name_a_way_around_it(empty_db: str) -> None:
    with pytest.raises(ConfigError, match=r"pooled is set, .*: give direct_dsn"):
        PgQueue(empty_db, pooled=True).migrate()
    assert check(empty_db).current is None


def test_where_there_is_nothing_to_migrate_nothing_is_set(fresh_db: str) -> None:
    with contextlib.closing(Pooler(fresh_db, "passed")) as observer:
        assert migrate(observer.dsn) == SCHEMA_MAX
        assert b"select" in observer.sent
        assert b"advisory" not in observer.sent
        assert b"set " not in observer.sent


def test_an_unknown_target_names_the_known_ones(empty_db: str) -> None:
    with pytest.raises(ConfigError, match="'0815' is unknown: use head, base or one of 0001"):
        migrate(empty_db, target="0815")


def test_the_gate_opens_for_the_versions_this_release_knows() -> None:
    gate(SCHEMA_MIN)
    gate(SCHEMA_MAX)
    assert check_head(REPOSITORY / "migrations") == SCHEMA_MAX


@pytest.mark.parametrize(
    ("version", "schema", "command"),
    [
        (None, "pgqueue", "not installed in this database: run `pgqueue migrate`"),
        (None, "jobs", "not installed in this database: run `pgqueue migrate --schema jobs`"),
        ("0000", "pgqueue", "at version 0000, this release needs .*: run `pgqueue migrate`"),
        ("9999", "pgqueue", "at version 9999, this release knows .*: run `pip install --upgrade pgqueue-jobs`"),
    ],
)
def test_the_gate_says_which_command_opens_it(version: str | None, schema: str, command: str) -> None:
    with pytest.raises(SchemaMismatch, match=command):
        gate(version, schema=schema)


def test_an_old_server_is_refused() -> None:
    check_server(150000)
    with pytest.raises(SchemaMismatch, match=r"PostgreSQL 14\.9 is too old: pgqueue needs 15 or newer"):
        check_server(140009)
