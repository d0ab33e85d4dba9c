"""`pgqueue worker` as a process: it starts, obeys signals, and says what is wrong."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import psycopg
import pytest

from pgqueue import PgQueue, State
from tests.cli.commands import Running, finish

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) +[\w.]+: ")


def test_it_runs_jobs_until_it_is_told_to_stop(fresh_db: str, shop: Path) -> None:
    q = PgQueue(fresh_db)
    job = q.enqueue("send_welcome", {"user_id": 1}, queue="mail").id
    with Running("worker", "-A", "app:q", dsn=fresh_db, cwd=shop) as worker:
        assert re.search(r"database \w+ on \S+:\d+, schema pgqueue, application app:q", worker.wait_for("application"))
        assert "default, mail" in worker.wait_for("takes from")  # the queues that its tasks name
        assert q.result(job) == {"sent": 1}
        worker.send(signal.SIGTERM)
        assert worker.ended() == 0
    assert all(LINE.match(line) for line in worker.output.splitlines()), worker.output
    assert [each.state for each in q.workers()] == ["stopped"]
    q.close()


def test_the_second_signal_stops_it_at_once_and_the_job_loses_nothing(fresh_db: str, shop: Path) -> None:
    q = PgQueue(fresh_db)
    job = q.enqueue("nap", {"seconds": 600}).id
    with Running("worker", "-A", "app", "-q", "default=1", "--grace", "600", dsn=fresh_db, cwd=shop) as worker:
        worker.wait_for("napping")
        worker.send(signal.SIGINT)
        worker.wait_for("stopping: 1 job")
        worker.send(signal.SIGINT)
        assert worker.ended() == 0
    assert (q.job(job).state, q.job(job).attempt) == (State.AVAILABLE, 0)
    q.close()


STUCK = """
import asyncio, threading
from pgqueue import PgQueue
q = PgQueue()

@q.task
async def deaf():
    print("deaf", flush=True)
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass

@q.task
async def waits():
    print("waits", flush=True)
    await asyncio.to_thread(threading.Event().wait)
"""


def test_tasks_that_never_end_do_not_keep_a_worker_that_has_stopped(fresh_db: str, shop: Path) -> None:
    (shop / "app.py").write_text(STUCK)
    q = PgQueue(fresh_db)
    ids = [q.enqueue(kind).id for kind in ("deaf", "waits")]
    with Running("worker", "-A", "app", "--grace", "0", dsn=fresh_db, cwd=shop) as worker:
        worker.wait_for("deaf")
        worker.wait_for("waits")
        worker.send(signal.SIGTERM)
        assert worker.ended() == 0
    assert "did not stop; it is given back all the same" in worker.output
    assert "threads that tasks started do not end, leaving without them: asyncio_0" in worker.output
    assert [(q.job(id).state, q.job(id).attempt) for id in ids] == [(State.AVAILABLE, 0)] * 2
    q.close()


def test_a_closed_terminal_stops_it_in_order(fresh_db: str, shop: Path) -> None:
    with Running("worker", "-A", "app", dsn=fresh_db, cwd=shop) as worker:
        worker.wait_for("takes from")
        worker.send(signal.SIGHUP)
        worker.wait_for("stopping")
        assert worker.ended() == 0


def test_sigquit_writes_the_stacks_and_harms_nobody(fresh_db: str, shop: Path) -> None:
    with Running("worker", "-A", "app", dsn=fresh_db, cwd=shop) as worker:
        worker.wait_for("takes from")
        worker.send(signal.SIGQUIT)
        worker.wait_for("Thread MainThread (most recent call last)")
        worker.wait_for("Stack for <Task")
        worker.send(signal.SIGTERM)
        assert worker.ended() == 0


def test_it_logs_json_for_machines(fresh_db: str, shop: Path) -> None:
    args = ("worker", "-A", "app", "--json", "--name", "w1")
    with Running(*args, dsn=fresh_db, cwd=shop, PGQUEUE_QUEUES="mail=2") as worker:
        event = json.loads(worker.wait_for("takes from"))
        worker.send(signal.SIGTERM)
        assert worker.ended() == 0
    assert (event["level"], event["logger"]) == ("info", "pgqueue.worker")
    assert event["message"].startswith("worker w1 (1) takes from mail")
    assert all(json.loads(line)["time"] for line in worker.output.splitlines())


def test_a_database_that_is_away_is_said_and_waited_for(shop: Path) -> None:
    nowhere = "postgresql://postgres@127.0.0.1:1/nothing"
    with Running("worker", "-A", "app", dsn=nowhere, cwd=shop) as worker:
        line = worker.wait_for("the database can't be reached, trying again")
        assert "port 1 failed: Connection refused" in line
        worker.wait_for("the database can't be reached, trying again")
        worker.send(signal.SIGTERM)
        assert worker.ended() == 0


def test_a_schema_that_is_missing_is_status_2_with_the_command_to_run(empty_db: str, shop: Path) -> None:
    done = finish("worker", "-A", "app", dsn=empty_db, cwd=shop)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last == "pgqueue: schema 'pgqueue' is not installed in this database: run `pgqueue migrate`"


def test_a_schema_that_is_too_new_is_status_2_and_needs_another_release(fresh_db: str, shop: Path) -> None:
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        conn.execute("comment on table pgqueue.schema_version is 'version 9999'")
    done = finish("worker", "-A", "app", "--check", dsn=fresh_db, cwd=shop)
    assert done.returncode == 2
    assert "is at version 9999" in done.stderr
    assert "pip install --upgrade pgqueue-jobs" in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "pgqueue: which application? say -A module:name"),
        (("-A", "shop"), "pgqueue: -A shop: there is no module 'shop'"),
        (("-A", "app:qq"), "pgqueue: -A app:qq: app has no 'qq'; did you mean 'q'?"),
    ],
)
def test_an_application_that_is_not_there_is_one_line_and_status_2(
    args: tuple[str, ...], said: str, shop: Path
) -> None:
    done = finish("worker", *args, cwd=shop)
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def test_debug_shows_where_an_application_breaks(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("1 / 0\n")
    assert "Traceback" not in finish("worker", "-A", "app", cwd=tmp_path).stderr
    assert "Traceback" in finish("worker", "-A", "app", "--log-level", "debug", cwd=tmp_path).stderr


def test_several_processes_have_names_of_their_own_and_stop_together(fresh_db: str, shop: Path) -> None:
    args = ("worker", "-A", "app", "--processes", "2", "--name", "w")
    with Running(*args, dsn=fresh_db, cwd=shop) as worker:
        worker.wait_for("takes from")
        worker.wait_for("takes from")
        worker.send(signal.SIGTERM)
        assert worker.ended() == 0
    with PgQueue(fresh_db).pool.connection() as conn:
        found = conn.execute("select name, state from pgqueue.workers order by name").fetchall()
    assert found == [("w-1", "stopped"), ("w-2", "stopped")]


def test_several_processes_with_a_mistake_say_it_once(empty_db: str, shop: Path) -> None:
    done = finish("worker", "-A", "app:p", "--processes", "3", dsn=empty_db, cwd=shop)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    missing = finish("worker", "-A", "app", "--processes", "3", dsn=empty_db, cwd=shop)
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "run `pgqueue migrate`" in missing.stderr
