"""Every statement fits the schema, has its function, and works in a schema of another name beside the usual one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from importlib import resources
from pathlib import Path

import pytest

from pgqueue.core.states import State, Verb
from pgqueue.db.placeholders import numbered
from pgqueue.db.schema import migrate
from pgqueue.store import bench, cluster, control, jobs, local
from pgqueue.store.statement import queries
from tests.store.desk import KINDS, Desk, bring_to

MODULES = {"bench.sql": bench, "jobs.sql": jobs, "cluster.sql": cluster, "control.sql": control, "local.sql": local}
QUERIES = [(file, name) for file in MODULES for name in queries(file)]
VIEWS = ("jobs", "live_jobs", "job_attempts", "job_logs", "queue_stats", "job_stats", "workers", "schedules")


@pytest.mark.parametrize(("file", "name"), QUERIES)
def test_every_query_can_be_prepared(desk: Desk, file: str, name: str) -> None:
    sql = queries(file)[name]
    text, _ = numbered(sql, dict.fromkeys(re.findall(r"%\((\w+)\)s", sql)))
    desk.conn.execute(f"prepare q as {text}".encode())


@pytest.mark.parametrize(("file", "name"), QUERIES)
def test_every_query_has_a_function_that_runs_it(file: str, name: str) -> None:
    assert callable(getattr(MODULES[file], name, None)) or f'"{name}"' in Path(str(MODULES[file].__file__)).read_text()


def test_every_sql_file_is_covered_here() -> None:
    found = {each.name for each in resources.files("pgqueue.store").iterdir() if each.name.endswith(".sql")}
    assert found == set(MODULES)


def test_every_query_says_what_it_is_for() -> None:
    for file in MODULES:
        for name, sql in queries(file).items():
            assert sql.startswith("-- "), f"{file}: {name}"


def test_every_public_relation_and_each_of_its_columns_has_a_comment(desk: Desk) -> None:
    missing = desk.sql(
        """select c.relname, a.attname from pg_class c
           join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
           where c.relnamespace = 'pgqueue'::regnamespace and c.relkind = 'v'
             and (obj_description(c.oid, 'pg_class') is null or col_description(c.oid, a.attnum) is null)"""
    )
    assert missing == []
    views = desk.sql("select viewname from pg_views where schemaname = 'pgqueue'")
    assert {name for (name,) in views} == set(VIEWS)


def test_every_table_and_function_has_a_comment(desk: Desk) -> None:
    assert (
        desk.sql(
            """select relname from pg_class where relnamespace = 'pgqueue'::regnamespace and relkind = 'r'
             and obj_description(oid, 'pg_class') is null and relname not in ('meta')
           union all select proname from pg_proc where pronamespace = 'pgqueue'::regnamespace
             and obj_description(oid, 'pg_proc') is null"""
        )
        == []
    )


@pytest.fixture
def pair(empty_db: str) -> Iterator[tuple[Desk, Desk]]:
    """Two installations in one database."""
    migrate(empty_db)
    migrate(empty_db, schema="other_Schema")
    with Desk(empty_db) as usual, Desk(empty_db, schema="other_Schema") as other:
        yield usual, other


def test_the_schema_works_under_another_name_and_neither_touches_the_other(pair: tuple[Desk, Desk]) -> None:
    usual, other = pair
    usual.enqueue(3)
    before = usual.snapshot()

    states = sorted(State, key=lambda state: state is State.AVAILABLE)  # last, or the others' claims would take it
    ids = [bring_to(other, state, unique_key=str(state)) for state in states]
    assert other.states() == dict.fromkeys(map(str, State), 1)
    for verb in Verb:
        other.apply(verb, ids[1])
    other.enqueue(5)
    held = other.claim()
    other.give_back(held, held.jobs[:1], part=True)
    other.fail(held, chosen=held.jobs[1:2], part=True)
    other.die()
    other.make_due()
    other.claim_suspect()
    other.value("select pgqueue.enqueue('k')")
    run_the_rest(other)

    assert usual.snapshot() == before
    assert usual.claim().ids == [1, 2, 3]


def run_the_rest(desk: Desk) -> None:
    """Every function that the story above leaves out."""
    schema = desk.schema
    worker, lease = desk.worker, desk.new_lease()
    desk.run(cluster.pulse(worker, running=1, queues=["default"], kinds=KINDS, doubtful=[1], schema=schema))
    identity = cluster.Identity(name="w", host="h", pid=1, version="0", lease=9, queues={}, kinds=[])
    assert desk.run(cluster.revive(worker, identity, schema=schema)) == worker
    desk.run(cluster.tidy(schema=schema))
    assert desk.run(jobs.forget(lease, worker=worker, schema=schema))
    assert desk.run(jobs.held(lease, schema=schema)).jobs == []
    desk.insert({"queue": "tx"})
    running = desk.claim(queue="tx")
    assert desk.keep(running, {"data": {"a": 1}}) == running.ids
    desk.set_checkpoint(running, "data", "b", 2)
    assert desk.metadata(running.ids[0]) == {"pgqueue": {"data": {"a": 1, "b": 2}}}
    desk.complete_tx(running)
    assert desk.run(local.install(schema=schema)) == desk.install
    desk.run(local.mark(desk.install, -1, '{"done": {"a": 1}}', schema=schema))
    assert desk.run(local.marks(-1, schema=schema)) == [("done", "a", "1")]
    desk.run(local.forget(-1, schema=schema))
    assert desk.apply(Verb.DELETE, *running.ids) == dict.fromkeys(running.ids, "deleted")
    assert desk.run(jobs.survey("default", kinds=KINDS, marks={}, schema=schema))[0] == [0]
    assert desk.run(control.pause("default", schema=schema))
    assert desk.run(control.resume("default", schema=schema))
    assert desk.run(control.match(control.Filter(kind="k"), limit=5, before=None, schema=schema))
    assert desk.run(control.match(control.Filter(state=State.AVAILABLE), limit=5, before=None, schema=schema))
    assert [each.queue for each in desk.run(control.queues(schema=schema))] == ["default", "tx"]
    assert desk.run(control.workers(schema=schema))[0].lease >= timedelta(seconds=1)
    assert desk.run(control.stats(schema=schema))["completed"] == 2
    desk.run(cluster.sign_off(worker, schema=schema))


def test_a_sleeper_is_woken_by_its_own_schema_only(pair: tuple[Desk, Desk]) -> None:
    usual, other = pair
    sleeper = usual.conn
    for name, schema in (("pgqueue.ready", "pgqueue"), ("other_Schema.ready", '"other_Schema"')):
        sleeper.execute(f'listen "{name}"'.encode())
        gate = f"{schema}.wake" if schema != "pgqueue" else "pgqueue.wake"
        sleeper.execute("select pg_advisory_lock_shared(hashtext(%s), hashtext('default'))", [gate])
    other.enqueue(1)
    (note,) = sleeper.notifies(timeout=5, stop_after=1)
    assert (note.channel, note.payload) == ("other_Schema.ready", "default")

    sleeper.execute("select pg_advisory_unlock_shared(hashtext('pgqueue.wake'), hashtext('default'))")
    usual_enqueuer = other
    usual_enqueuer.schema = "pgqueue"
    usual_enqueuer.enqueue(1)  # nobody sleeps there now: no note
    usual_enqueuer.conn.execute("notify \"pgqueue.ready\", 'end'")
    (note,) = sleeper.notifies(timeout=5, stop_after=1)
    assert note.payload == "end"
