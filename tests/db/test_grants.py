"""What the README says a role has to be granted: it is enough, and of the narrow ones nothing can be left out."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import errors, sql

from pgqueue import Context, PgQueue, Retry, State
from pgqueue.db.failure import DatabaseError, sqlstate
from tests.cli.commands import invoke

PATIENCE = 30.0
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def granted(to: str) -> list[str]:
    """The lines of the README for one of its roles."""
    return [f"{line} to {{role}}" for line in re.findall(rf"^(\w.*) to {to};", README, re.MULTILINE)]


def one_by_one(lines: list[str]) -> list[str]:
    """The same with a line for each object."""
    pattern = r"(grant \w+ on )(pgqueue\.[\w, .]+)( to .*)"
    split = [(found, line) for line in lines for found in [re.fullmatch(pattern, line)]]
    return [
        each
        for found, line in split
        for each in ([f"{found[1]}{name}{found[3]}" for name in found[2].split(", ")] if found else [line])
    ]


ENQUEUES = one_by_one(granted("app"))
WORKS = granted("worker")
READS = granted("reader")
VIEWS = ("jobs", "live_jobs", "job_attempts", "job_logs", "job_stats", "queue_stats", "workers", "schedules")
Conn = psycopg.Connection


class Role:
    """A role of the test's own, which can connect and nothing else."""

    def __init__(self, admin: Conn, dsn: str) -> None:
        self.admin = admin
        self.name = f"pgqueue_{secrets.token_hex(6)}"
        self._sql("create role {role} login password 'secret'")
        parts = urlsplit(dsn)
        host = parts.netloc.rpartition("@")[2]
        self.dsn = urlunsplit(parts._replace(netloc=f"{self.name}:secret@{host}"))

    def grant(self, *lines: str) -> None:
        for line in lines:
            self._sql(line)

    def drop(self) -> None:
        self._sql("drop owned by {role}")
        self._sql("drop role {role}")

    def _sql(self, line: str) -> None:
        self.admin.execute(sql.SQL(line).format(role=sql.Identifier(self.name)))


@pytest.fixture
def admin(fresh_db: str) -> Iterator[Conn]:
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        yield conn


@pytest.fixture
def role(admin: Conn, fresh_db: str) -> Iterator[Role]:
    made = Role(admin, fresh_db)
    yield made
    made.drop()


@pytest.fixture
def q(role: Role) -> Iterator[PgQueue]:
    queue = PgQueue(role.dsn)
    yield queue
    queue.close()


def enqueue_in_every_way(conn: Conn) -> None:
    """From Python and from SQL: at once, later, many, large ones, under a unique key that is free, taken, or stale."""
    q = PgQueue()
    q.enqueue("x", {}, conn=conn)
    q.enqueue("x", {}, conn=conn, delay=60, tags=["a"], metadata={"a": 1})
    key = secrets.token_hex(8)
    assert [q.enqueue("x", {}, conn=conn, unique_key=key).inserted for _ in range(2)] == [True, False]

    @q.task
    def one(text: str) -> None: ...

    assert len(one.using(conn).enqueue_many([("a",)] * 250)) == 250
    assert len(one.using(conn).enqueue_many([("a" * 100_000,)] * 25)) == 25
    conn.execute("select pgqueue.enqueue('x', '{}', delay => '1 minute'), pgqueue.enqueue('x', unique_key => 'sql')")
    conn.execute("select pgqueue.enqueue('x')")


def is_refused(do: Callable[[], object]) -> bool:
    try:
        do()
    except DatabaseError as error:
        assert sqlstate(error) == "42501", error
        return True
    return False


def test_a_role_that_enqueues_needs_no_more_than_the_readme_says(role: Role) -> None:
    role.grant(*ENQUEUES)
    with psycopg.connect(role.dsn) as conn:
        enqueue_in_every_way(conn)
        conn.commit()
        for more in ("select from pgqueue.jobs", "delete from pgqueue.job", "update pgqueue.job set priority = 1"):
            with pytest.raises(errors.InsufficientPrivilege):
                conn.execute(more)
            conn.rollback()


@pytest.mark.parametrize("missing", ENQUEUES)
def test_a_role_that_enqueues_needs_each_of_its_grants(role: Role, missing: str) -> None:
    role.grant(*(line for line in ENQUEUES if line != missing))
    with psycopg.connect(role.dsn) as conn:
        assert is_refused(lambda: enqueue_in_every_way(conn))


def one() -> int:
    return 1


def boom() -> None:
    raise ValueError("no")


def enqueueing(ctx: Context) -> None:
    with ctx.connection() as conn:
        enqueue_in_every_way(conn)


@contextlib.contextmanager
def working(q: PgQueue) -> Iterator[None]:
    worker = q.worker()
    worker.start()
    try:
        yield
    finally:
        worker.close()


def test_a_role_that_works_can_run_jobs_and_use_every_verb(role: Role, q: PgQueue) -> None:
    role.grant(*WORKS)
    good, bad = q.task(enqueueing).enqueue().id, q.task(retry=Retry(max_attempts=2, base=1))(boom).enqueue().id
    with working(q):
        assert q.wait(good, PATIENCE).errors == []
        assert [q.wait(bad, PATIENCE).state, len(q.job(bad).errors)] == [State.DISCARDED, 2]
    use_every_verb(q)


def use_every_verb(q: PgQueue) -> None:
    id = q.enqueue("x", {}, unique_key="k").id
    answers = [q.set_priority(id, 3), q.reschedule(id, delay=60), q.retry(id), q.stop(id, reason="later"), q.retry(id)]
    assert answers == ["available", "scheduled", "available", "stopped", "available"]
    assert [q.cancel(id), q.delete(id)] == ["cancelled", "deleted"]
    assert [q.pause("default"), q.resume("default")] == [True, True]
    assert all([q.jobs(), q.queues(), q.workers(), q.stats()])


def test_a_dead_workers_jobs_are_taken_over_by_a_role_that_works(role: Role, q: PgQueue, admin: Conn) -> None:
    role.grant(*WORKS)

    id = q.task(one).enqueue().id  # such a job runs in a process of its own, which imports its function
    admin.execute("delete from pgqueue.ready")
    admin.execute(
        """with dead as (
             insert into pgqueue.worker (pid, lease, name, host, version, queues, kinds, stopped_at)
             values (1, '15 s', 'dead', 'here', '0', '{}', '{}', clock_timestamp()) returning id)
           insert into pgqueue.lease (id, worker_id, ids, claims) select 1, id, array[%s::bigint], '{0}' from dead""",
        [id],
    )
    with working(q):
        assert q.result(id, PATIENCE) == 1


def test_a_role_that_reads_sees_every_public_relation_and_changes_nothing(role: Role, q: PgQueue, admin: Conn) -> None:
    role.grant(*READS)
    id = PgQueue().enqueue("x", {}, conn=admin).id
    assert q.job(id).kind == "x"
    assert [[job.id for job in found] for found in (q.jobs(), q.jobs(kind="x", state="completed"))] == [[id], []]
    assert [job.id for job in q.jobs(state="available")] == [id]
    assert (q.stats()["available"], len(q.queues()), q.workers()) == (1, 1, [])
    with psycopg.connect(role.dsn, autocommit=True) as conn:
        for view in VIEWS:
            conn.execute(f"select * from pgqueue.{view}")
        for more in ("update pgqueue.job set attempt = 1", "select pgqueue.enqueue('x')"):
            with pytest.raises(errors.InsufficientPrivilege):
                conn.execute(more)


def test_the_readme_lists_grants_for_each_of_its_roles() -> None:
    assert (len(ENQUEUES), len(WORKS), len(READS)) == (9, 5, 2)


def test_the_readers_views_are_all_the_views_there_are(admin: Conn) -> None:
    found = admin.execute("select relname from pg_class where relnamespace = 'pgqueue'::regnamespace and relkind = 'v'")
    assert sorted(name for (name,) in found) == sorted(VIEWS)


def test_default_privileges_reach_what_later_migrations_make(role: Role, admin: Conn) -> None:
    role.grant(
        "grant usage on schema pgqueue to {role}",
        "alter default privileges in schema pgqueue grant select, insert, update, delete on tables to {role}",
        "alter default privileges in schema pgqueue grant usage on sequences to {role}",
    )
    admin.execute("create table pgqueue.later (id bigserial); create view pgqueue.late as select * from pgqueue.later")
    with psycopg.connect(role.dsn, autocommit=True) as conn:
        conn.execute("insert into pgqueue.later default values")
        assert conn.execute("select id from pgqueue.late").fetchall() == [(1,)]


@pytest.mark.parametrize("line", ["stats", "enqueue mail", "jobs list", "queues pause mail"])
def test_a_role_without_grants_is_told_where_they_are_listed(role: Role, line: str) -> None:
    result = invoke(*line.split(), dsn=role.dsn)
    assert result.exit_code == 1
    assert result.stderr == (
        "pgqueue: the database refused: permission denied for schema pgqueue; "
        'the owner of the schema can allow it: see "Grants" in the README\n'
    )
