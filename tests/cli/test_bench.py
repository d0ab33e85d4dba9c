"""`pgqueue bench`: it measures, it leaves nothing, and it touches nothing of anybody else's, whatever ends it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pytest_postgresql.executors.noop import NoopExecutor

from pgqueue import PgQueue
from pgqueue.bench.figures import figure, percentile
from pgqueue.db.adapt import run
from pgqueue.demo.home import is_running
from pgqueue.store import cluster
from tests.cli.commands import Running, finish, invoke
from tests.db.pooler import Pooler
from tests.engine.kit import until, value

BRIEF = ("--jobs", "200", "--duration", "0.3")
ENDLESS = ("--jobs", "200", "--duration", "1h", "--processes", "2")
TIMED = {"enqueue_one", "enqueue_many", "latency", "mixed_enqueue", "mixed_latency"}
WORKERS = "select array_agg(pid order by id) from pgqueue.worker where 'pgqueue.bench.noop' = any (kinds)"
BUSY = "select exists (select from pgqueue.tally where starts_with(queue, 'pgqueue.bench.') and state = 'completed')"
GONE = """
select count(*) = 0 from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and starts_with(application_name, 'pgqueue')
"""
THEIRS = {"job": (0, 1), "ready": (0, 1)}  # what somebody else enqueued during a run

Tables = dict[str, list[str]]


def tables(conn: psycopg.Connection) -> Tables:
    """Every row of every table of pgqueue."""
    names = conn.execute(
        "select relname from pg_class where relnamespace = 'pgqueue'::regnamespace and relkind = 'r'"
    ).fetchall()
    return {
        name: [text for (text,) in conn.execute(f"select t::text from pgqueue.{name} t order by 1").fetchall()]
        for (name,) in names
    }


def changes(before: Tables, after: Tables) -> dict[str, tuple[int, int]]:
    """Of each table that is not as it was, how many rows are gone and how many are new."""
    counted = {name: (Counter(before[name]), Counter(after[name])) for name in before}
    return {name: ((old - new).total(), (new - old).total()) for name, (old, new) in counted.items() if old != new}


@pytest.fixture(scope="session")
def template(newest_template: NoopExecutor) -> NoopExecutor:
    """Overrides the one that runs every test on each server: its statements are prepared on each elsewhere."""
    return newest_template


@pytest.fixture
def theirs(fresh_db: str) -> Iterator[psycopg.Connection]:
    """A connection to a database in which somebody else has jobs in several states, and queues."""
    q = PgQueue(fresh_db)

    @q.task
    def fine() -> str:
        return "done"

    @q.task
    def bad() -> None:
        raise ValueError("no")

    bad.using(max_attempts=1, queue="mail").enqueue()
    fine.enqueue()
    worker = q.worker("default,mail")
    worker.start()
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        until(conn, "select count(*) = 2 from pgqueue.job where status > 0")
        worker.close()
        fine.enqueue_many([()] * 3)
        fine.using(delay=86400, queue="pgqueue.bench").enqueue()  # not a name of ours
        fine.using(unique_key="once", queue="pgqueue.benchmark.1.000000000000").enqueue()
        q.pause("mail")
        q.pause("pgqueue.bench.mine")
        q.close()
        yield conn


def test_every_workload_gives_its_figures_and_nothing_is_left(fresh_db: str, theirs: psycopg.Connection) -> None:
    before = tables(theirs)
    done = finish("bench", *BRIEF, "--json", dsn=fresh_db)
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)  # one document, nothing else
    assert set(said) == {"conditions", "plan", "results", "warnings"}
    assert set(said["conditions"]) == {
        "database", "schema", "server", "fsync", "synchronous_commit", "full_page_writes", "round_trip", "commit",
        "pooled", "listen", "cores", "python", "pgqueue",
    }  # fmt: skip
    assert said["conditions"]["round_trip"] > 0
    assert said["plan"] | {"jobs": 200, "duration": 0.3, "executor": "async"} == said["plan"]
    results = said["results"]
    assert set(results) == TIMED | {"drain", "mixed"}
    for name, each in results.items():
        assert set(each) == {"jobs", "seconds", "jobs_per_second", "p50", "p90", "p99", "max", "timed"}
        assert each["jobs"] > 0, name
        assert each["seconds"] > 0, name
        assert each["jobs_per_second"] == pytest.approx(each["jobs"] / each["seconds"]), name
        if name in TIMED:
            assert 0 <= each["p50"] <= each["p90"] <= each["p99"] <= each["max"], name
            assert each["max"] > 0, name
    assert results["enqueue_many"]["jobs"] == results["drain"]["jobs"] == 200
    assert changes(before, tables(theirs)) == {}


def test_people_get_the_conditions_and_a_table_of_what_they_named(fresh_db: str, theirs: psycopg.Connection) -> None:
    before = tables(theirs)
    theirs.execute(f"alter database {conninfo_to_dict(fresh_db)['dbname']} set synchronous_commit = off")
    done = invoke("bench", "enqueue", *BRIEF, dsn=fresh_db)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "Conditions"
    assert "synchronous_commit off" in done.stdout
    assert "! synchronous_commit is off: a crash of the server loses the last commits" in done.stdout
    assert lines[-3].split() == ["WORKLOAD", "JOBS", "JOBS/S", "P50", "P90", "P99", "MAX", "TIMED"]
    assert [line[:23].rstrip() for line in lines[-2:]] == ["enqueue, one by one", "enqueue, 1,000 at once"]
    assert changes(before, tables(theirs)) == {}


def test_tasks_run_where_they_are_wanted_and_the_settings_of_other_workers_do_not_matter(
    fresh_db: str, tmp_path: Path
) -> None:
    (tmp_path / "pgqueue.yaml").write_text("name: mine\nqueues: theirs=1\nprocesses: 3\nschema: nowhere\n")
    invoke("migrate", "--schema", "other", dsn=fresh_db)
    options = ("--executor", "process", "--concurrency", "3", "--schema", "other", "--json")
    done = finish("bench", "latency", *BRIEF, *options, dsn=fresh_db, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["plan"] | {"executor": "process", "concurrency": 3, "processes": 1} == said["plan"]
    assert said["conditions"]["schema"] == "other"
    assert list(said["results"]) == ["latency"]


def test_behind_a_pooler_workers_poll_and_it_says_so(fresh_db: str) -> None:
    with contextlib.closing(Pooler(fresh_db, "refused")) as pooler, psycopg.connect(fresh_db, autocommit=True) as conn:
        before = tables(conn)
        options = ("--dsn", pooler.dsn, "--pooled", "--executor", "thread", "--json")
        done = finish("bench", "drain", *BRIEF, *options)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert (said["conditions"]["pooled"], said["conditions"]["listen"]) == (True, False)
        assert any("workers poll" in warning for warning in said["warnings"])
        assert said["results"]["drain"]["jobs"] == 200
        assert changes(before, tables(conn)) == {}


def test_ctrl_c_ends_a_run_in_progress_which_clean_leaves_alone(fresh_db: str, theirs: psycopg.Connection) -> None:
    before = tables(theirs)
    with Running("bench", "mixed", *ENDLESS, dsn=fresh_db) as bench:
        until(theirs, BUSY)
        assert bench.process.poll() is None
        theirs.execute("select pgqueue.enqueue('theirs')")
        workers = value(theirs, WORKERS)
        assert isinstance(workers, list)
        assert len(workers) == 2
        clean = invoke("bench", "--clean", dsn=fresh_db)
        assert clean.stderr.startswith("1 run in progress")
        assert clean.stdout == "there is nothing to remove\n"
        bench.send(signal.SIGINT)
        assert bench.ended() == 130
    assert bench.output.endswith("interrupted: the workers are stopped, the jobs are removed\n")
    assert not any(map(is_running, workers))
    assert changes(before, tables(theirs)) == THEIRS


def test_what_a_killed_run_left_is_removed_by_clean(fresh_db: str, theirs: psycopg.Connection) -> None:
    before = tables(theirs)
    with Running("bench", "mixed", *ENDLESS, dsn=fresh_db) as bench:
        until(theirs, BUSY)
        theirs.execute("select pgqueue.enqueue('theirs')")
        bench.send(signal.SIGKILL)
        assert bench.ended() == -signal.SIGKILL
    queue = value(theirs, "select name from pgqueue.queue where name ~ 'bench.[0-9]'")
    until(theirs, GONE)
    # Others take jobs of its dead workers before anybody cleans.
    job = value(theirs, "select pgqueue.enqueue('pgqueue.bench.noop', '{\"number\": 1}', %s::text)", queue)
    worker = value(
        theirs,
        "update pgqueue.worker set seen_at = seen_at - interval '1 hour' where queues ? %s::text and kinds <> '{}'"
        " returning id",
        queue,
    )
    theirs.execute(
        "insert into pgqueue.lease (id, worker_id, ids, claims) values (-1, %s, array[%s], '{0}')", [worker, job]
    )
    assert run(theirs, cluster.rescue(schema="pgqueue"))[0] > 0
    assert value(theirs, "select count(*) from pgqueue.suspect") != 0
    theirs.execute("insert into pgqueue.void (queue, jobs) values (%s, 1)", [queue])
    clean = invoke("bench", "--clean", dsn=fresh_db)
    assert clean.exit_code == 0
    assert clean.stdout.startswith("removed ")
    assert clean.stdout.endswith(" jobs of 1 killed run\n")
    assert changes(before, tables(theirs)) == THEIRS
    assert invoke("bench", "--clean", "--json", dsn=fresh_db).stdout == '{"runs":0,"jobs":0}\n'


def test_a_run_that_another_machine_was_killed_in_is_removed_by_the_next_one(
    fresh_db: str, theirs: psycopg.Connection
) -> None:
    before = tables(theirs)
    queue = f"pgqueue.bench.{value(theirs, 'select max(id) + 1 from pgqueue.job')}.0123456789ab"
    q = PgQueue(fresh_db)
    q.pause(queue)
    q.enqueue("pgqueue.bench.noop", {"number": 1}, queue=queue)
    q.close()
    theirs.execute(
        "insert into pgqueue.worker (pid, seen_at, lease, name, host, version, queues, kinds)"
        " values (1, clock_timestamp() - interval '31 seconds', '30 seconds', 'pgqueue bench', 'elsewhere', '1',"
        " jsonb_build_object(%s::text, 0), '{}')",
        [queue],
    )
    assert finish("bench", "enqueue", "--jobs", "1", dsn=fresh_db).returncode == 0
    assert changes(before, tables(theirs)) == {}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_worker_that_dies_ends_the_run_in_one_line_and_nothing_is_left(
    fresh_db: str, theirs: psycopg.Connection
) -> None:
    before = tables(theirs)
    with Running("bench", "latency", *ENDLESS, dsn=fresh_db) as bench:
        until(theirs, BUSY)
        workers = value(theirs, WORKERS)
        assert isinstance(workers, list)
        os.kill(workers[0], signal.SIGKILL)
        assert bench.ended() == 1
    assert "pgqueue: a worker of the bench died of signal 9 (SIGKILL)" in bench.output
    assert "Traceback" not in bench.output
    assert not is_running(workers[1])
    assert changes(before, tables(theirs)) == {}


def test_without_a_schema_it_says_which_command_makes_it(empty_db: str) -> None:
    done = invoke("bench", dsn=empty_db)
    assert done.exit_code == 2
    assert done.stderr == "pgqueue: schema 'pgqueue' is not installed in this database: run `pgqueue migrate`\n"


def test_without_a_database_it_says_so_in_one_line() -> None:
    done = invoke("bench", dsn="postgresql://nobody@127.0.0.1:1/nothing")
    assert done.exit_code == 1
    assert done.stderr.startswith("pgqueue: no connection to the database: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--jobs", "0"], "0 is not in the range 1<=x<=10000000"),
        (["drian"], "'drian' is not one of 'enqueue', 'drain', 'latency', 'mixed'"),
        (["--duration", "0"], "--duration 0: must be more than 0 seconds and at most an hour"),
        (["--duration", "soon"], "'soon' is no duration"),
        (["--rate", "-1"], "-1"),
        (["--executor", "fork"], "'fork' is not one of 'async', 'thread', 'process'"),
    ],
)
def test_an_option_that_cannot_be_is_one_line_and_status_2(args: list[str], said: str) -> None:
    done = invoke("bench", *args, dsn="postgresql://nobody@127.0.0.1:1/nothing")
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_role_that_may_not_remove_jobs_is_told_before_anything_is_made(fresh_db: str) -> None:
    role = f"bench_reader_{os.getpid()}"
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        conn.execute(
            f"create role {role} login; grant usage on schema pgqueue to {role};"
            f"grant select, insert on all tables in schema pgqueue to {role};"
            f"grant usage on all sequences in schema pgqueue to {role}"
        )
        before = tables(conn)
        try:
            done = invoke("bench", "enqueue", dsn=make_conninfo(fresh_db, user=role))
            assert done.exit_code == 1
            assert 'see "Grants" in the README' in done.stderr
            assert changes(before, tables(conn)) == {}
        finally:
            conn.execute(f"drop owned by {role}; drop role {role}")


def test_percentiles_are_values_that_were_measured() -> None:
    assert [percentile([3.0, 1.0, 2.0, 4.0], share) for share in (0.01, 0.5, 0.51, 0.99, 1.0)] == [1, 2, 3, 4, 4]
    assert percentile([7.0], 0.5) == 7
    assert figure(10, 0.0).jobs_per_second == 0
