"""`pgqueue queues`, `workers` and `stats` against a database."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pgqueue import PgQueue
from tests.cli.commands import invoke


@pytest.fixture
def q(dsn: str) -> Iterator[PgQueue]:
    queue = PgQueue(dsn)
    yield queue
    queue.close()


def test_an_empty_database_says_so(dsn: str) -> None:
    assert invoke("jobs", "list", dsn=dsn).stderr == "there are no jobs\n"
    assert "there are no queues yet" in invoke("queues", "list", dsn=dsn).stderr
    assert "no worker is running: start one with" in invoke("workers", dsn=dsn).stderr
    assert invoke("queues", "list", "--json", dsn=dsn).output == ""


def test_queues_show_what_waits_and_leave_out_columns_of_zeros(q: PgQueue, dsn: str) -> None:
    q.enqueue("mail", queue="mail")
    q.enqueue("mail", queue="mail", delay=60)
    header, row = invoke("queues", "list", dsn=dsn).stdout.splitlines()
    assert header.split() == ["QUEUE", "AVAILABLE", "OLDEST", "RUNNING", "SCHEDULED"]
    assert [row.split()[index] for index in (0, 1, 3, 4)] == ["mail", "1", "0", "1"]
    document = json.loads(invoke("queues", "list", "--json", dsn=dsn).stdout)
    assert (document["queue"], document["completed"], document["paused"]) == ("mail", 0, False)


def test_pause_and_resume_say_whether_they_changed_anything(q: PgQueue, dsn: str) -> None:
    q.enqueue("mail", queue="mail")
    assert invoke("queues", "pause", "mail", dsn=dsn).output == "mail is paused\n"
    assert invoke("queues", "pause", "mail", dsn=dsn).output == "mail was paused already\n"
    assert "paused" in invoke("queues", "list", dsn=dsn).stdout.splitlines()[1]
    assert json.loads(invoke("queues", "resume", "mail", "--json", dsn=dsn).stdout) == {
        "queue": "mail",
        "paused": False,
        "changed": True,
    }
    assert invoke("queues", "resume", "mail", dsn=dsn).output == "mail was not paused\n"


def test_pausing_a_queue_that_nobody_knows_is_done_with_a_hint(q: PgQueue, dsn: str) -> None:
    q.enqueue("mail", queue="mail")
    result = invoke("queues", "pause", "mial", dsn=dsn)
    assert (result.exit_code, result.stdout) == (0, "mial is paused\n")
    assert result.stderr == "queue 'mial' is new, no job was in it yet; did you mean 'mail'?\n"
    assert invoke("queues", "pause", "not a name", dsn=dsn).exit_code == 2


def test_workers_that_have_stopped_are_shown_on_request(q: PgQueue, dsn: str) -> None:
    @q.task
    def nothing() -> None: ...

    worker = q.worker({"default": 3}, name="w1")
    worker.start()
    row = invoke("workers", dsn=dsn).stdout.splitlines()[1].split()
    worker.close()
    assert [row[1], row[2], row[-1]] == ["w1", "active", "default=3"]
    assert "no worker is running" in invoke("workers", dsn=dsn).stderr
    document = json.loads(invoke("workers", "--all", "--json", dsn=dsn).stdout)
    assert (document["name"], document["state"], document["lease"]) == ("w1", "stopped", 15.0)


def test_stats_count_jobs_by_state(q: PgQueue, dsn: str) -> None:
    q.cancel(q.enqueue("mail", delay=60).id)
    q.enqueue("mail")
    counts = json.loads(invoke("stats", "--json", dsn=dsn).stdout)
    assert (counts["available"], counts["cancelled"], counts["completed"]) == (1, 1, 0)
    rows = dict(line.split() for line in invoke("stats", dsn=dsn).stdout.splitlines())
    assert rows == {"STATE": "JOBS"} | {state: str(count) for state, count in counts.items()}
