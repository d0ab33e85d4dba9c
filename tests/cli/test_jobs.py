"""`pgqueue jobs` and `pgqueue enqueue` against a database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pgqueue import Job, PgQueue, State
from pgqueue.cli import verbs
from tests.cli.commands import finish, invoke


@pytest.fixture
def q(dsn: str) -> Iterator[PgQueue]:
    queue = PgQueue(dsn)
    yield queue
    queue.close()


def fail_once(q: PgQueue) -> int:
    """A job that was discarded by an error."""
    mine = PgQueue(q.dsn)

    @mine.task(queue="failing")
    def boom() -> None:
        raise ValueError("no \x1b[31m such user")

    id = boom.using(max_attempts=1).enqueue().id
    worker = mine.worker("failing")
    worker.start()
    mine.wait(id)
    worker.close()
    mine.close()
    return id


def test_enqueue_prints_the_id_of_a_job_with_all_its_options(q: PgQueue, dsn: str) -> None:
    Path("notes.json").write_text('{"from": "form"}')
    result = invoke(
        "enqueue", "mail", '{"to": "größer"}', "--queue", "out", "--priority", "-5", "--delay", "1h",
        "--max-attempts", "3", "--timeout", "30s",
        "--expires-at", "2100-01-01T00:00Z", "--unique-key", "k", "--tag", "a", "--tag", "b",
        "--tenant", "t", "--metadata", "@notes.json", dsn=dsn,
    )  # fmt: skip
    job = q.job(int(result.stdout))
    assert (job.kind, job.queue, job.state, job.priority, job.max_attempts) == ("mail", "out", "scheduled", -5, 3)
    assert (job.args, job.metadata, job.tags, job.tenant) == ({"to": "größer"}, {"from": "form"}, ["a", "b"], "t")
    assert (job.timeout, job.unique_key) == (timedelta(seconds=30), "k")
    assert job.expires_at == datetime(2100, 1, 1, tzinfo=UTC)
    assert timedelta(minutes=59) < job.scheduled_at - job.created_at <= timedelta(hours=1)


def test_enqueue_reads_arguments_from_standard_input_and_needs_none(q: PgQueue, dsn: str) -> None:
    piped = invoke("enqueue", "mail", "-", stdin='{"a": [1]}', dsn=dsn)
    assert q.job(int(piped.stdout)).args == {"a": [1]}
    assert q.job(int(invoke("enqueue", "mail", dsn=dsn).stdout)).args == {}


def test_a_time_without_zone_is_local(q: PgQueue, dsn: str) -> None:
    result = invoke("enqueue", "mail", "--at", "2100-06-01T12:00", dsn=dsn)
    assert q.job(int(result.stdout)).scheduled_at == datetime(2100, 6, 1, 12).astimezone()


def test_enqueue_says_when_a_unique_key_is_taken(q: PgQueue, dsn: str) -> None:
    first = invoke("enqueue", "mail", "--unique-key", "k", "--json", dsn=dsn)
    again = invoke("enqueue", "mail", "--unique-key", "k", "--json", dsn=dsn)
    id = json.loads(first.stdout)["id"]
    assert json.loads(again.stdout) == {"id": id, "inserted": False, "kind": "mail", "queue": "default"}
    assert again.stderr == f"nothing inserted: job {id} has the same unique key and is not final\n"
    assert again.exit_code == 0


def test_enqueue_with_an_application_checks_kind_and_arguments(q: PgQueue, dsn: str, shop: Path) -> None:
    done = finish("enqueue", "send_welcome", '{"user_id": 7}', "-A", "app:q", dsn=dsn, cwd=shop)
    assert (done.returncode, done.stderr) == (0, "")
    job = q.job(int(done.stdout))
    assert (job.queue, job.max_attempts, job.args) == ("mail", 3, {"user_id": 7})

    wrong = finish("enqueue", "send_welcome", '{"user_id": "x"}', dsn=dsn, cwd=shop, PGQUEUE_APP="app")
    assert wrong.returncode == 2
    assert wrong.stderr == "pgqueue: send_welcome(): argument 'user_id': Expected `int`, got `str`\n"

    unknown = finish("enqueue", "send_welcom", dsn=dsn, cwd=shop, PGQUEUE_APP="app")
    assert unknown.returncode == 2
    assert "app has no task 'send_welcom'; did you mean 'send_welcome'? (--unchecked" in unknown.stderr
    assert finish("enqueue", "send_welcom", "--unchecked", dsn=dsn, cwd=shop, PGQUEUE_APP="app").returncode == 0


def test_enqueue_can_wait_for_the_result(q: PgQueue, dsn: str) -> None:
    @q.task
    def add(a: int, b: int) -> int:
        return a + b

    @q.task
    def boom() -> None:
        raise ValueError("no such user")

    worker = q.worker("default")
    worker.start()
    assert invoke("enqueue", "add", '{"a": 1, "b": 2}', "--wait", "30s", dsn=dsn).stdout == "3\n"
    failed = invoke("enqueue", "boom", "--max-attempts", "1", "--wait", "30s", dsn=dsn)
    worker.close()
    assert failed.exit_code == 1
    assert "is discarded: no such user; see `pgqueue jobs show" in failed.stderr
    never = invoke("enqueue", "add", "--queue", "nobody", "--wait", "0.01", dsn=dsn)
    assert never.exit_code == 1
    assert "was not final" in never.stderr


def test_list_shows_the_newest_first_and_what_one_wants_to_know(q: PgQueue, dsn: str) -> None:
    waiting = q.enqueue("mail", {"to": 1}, delay=3600).id
    failed = fail_once(q)
    running = q.enqueue("import", tenant="shop").id
    lines = invoke("jobs", "list", dsn=dsn).stdout.splitlines()
    assert lines[0].split() == ["ID", "STATE", "KIND", "QUEUE", "ATTEMPT", "AGE", "TENANT", "DETAIL"]
    assert [int(line.split()[0]) for line in lines[1:]] == [running, failed, waiting]
    assert r"ValueError: no \x1b[31m such user" in lines[2]
    assert 'in 60m: {"to": 1}' in lines[3]


def test_list_filters_and_pages(q: PgQueue, dsn: str) -> None:
    ids = [q.enqueue("mail", tags=["x"] if n % 2 else None).id for n in range(6)]
    q.enqueue("other")

    def listed(*args: str) -> list[int]:
        return [json.loads(line)["id"] for line in invoke("jobs", "list", "--json", *args, dsn=dsn).stdout.splitlines()]

    assert listed("--kind", "mail") == ids[::-1]
    assert listed("--kind", "mail", "--tag", "x") == ids[::-2]
    assert listed("--kind", "mail", "--limit", "2") == ids[:-3:-1]
    assert listed("--kind", "mail", "--limit", "2", "--before", str(ids[4])) == [ids[3], ids[2]]
    assert len(listed("--state", "available", "--queue", "default", "--since", "1h")) == 7
    assert listed("--until", "1h") == []
    assert invoke("jobs", "list", "--kind", "nothing", dsn=dsn).stderr == "no jobs fit\n"


def test_list_goes_on_beyond_one_page_of_the_database(q: PgQueue, dsn: str) -> None:
    mine = PgQueue(dsn)

    @mine.task
    def many(n: int) -> None: ...

    many.enqueue_many([(n,) for n in range(1100)])
    mine.close()
    assert len(invoke("jobs", "list", "--json", "--limit", "5000", dsn=dsn).stdout.splitlines()) == 1100


def test_show_tells_a_jobs_whole_life(q: PgQueue, dsn: str) -> None:
    id = fail_once(q)
    text = invoke("jobs", "show", str(id), dsn=dsn).stdout
    assert text.splitlines()[0] == f"job {id}  boom  discarded"
    assert "attempt 1  discarded" in text
    assert "Traceback (most recent call last):" in text
    assert r"ValueError: no \x1b[31m such user" in text
    assert "\x1b" not in text

    document = json.loads(invoke("jobs", "show", str(id), "--json", dsn=dsn).stdout)
    assert document["errors"][0]["type"] == "ValueError"
    assert isinstance(document["duration"], float)
    assert set(document) == set(Job.__dataclass_fields__)


def test_a_job_that_does_not_exist_is_status_1(dsn: str) -> None:
    result = invoke("jobs", "show", "999", dsn=dsn)
    assert (result.exit_code, result.stderr) == (1, "pgqueue: there is no job 999\n")


def test_verbs_answer_for_each_job_and_fail_if_nothing_was_done(q: PgQueue, dsn: str) -> None:
    a, b = (str(q.enqueue("mail").id) for _ in range(2))
    first = invoke("jobs", "cancel", a, b, "--reason", "wrong address", dsn=dsn)
    assert (first.exit_code, first.stdout) == (0, f"{a}  cancelled\n{b}  cancelled\n")
    again = invoke("jobs", "cancel", a, b, dsn=dsn)
    assert (again.exit_code, again.stdout) == (1, f"{a}  already cancelled\n{b}  already cancelled\n")
    assert q.job(int(a)).errors[0]["message"] == "wrong address"

    mixed = invoke("jobs", "retry", a, "999999", "--json", dsn=dsn)
    assert mixed.exit_code == 1
    assert [json.loads(line) for line in mixed.stdout.splitlines()] == [
        {"id": int(a), "answer": "available"},
        {"id": 999999, "answer": "not found"},
    ]


def test_every_verb_does_what_it_says(q: PgQueue, dsn: str) -> None:
    id = q.enqueue("mail").id

    def answer(*args: str) -> str:
        return invoke("jobs", *args, dsn=dsn).stdout.split()[-1]

    assert answer("priority", str(id), "-7") == "available"
    assert q.job(id).priority == -7
    assert answer("reschedule", str(id), "--at", "2100-01-01T00:00Z") == "scheduled"
    assert q.job(id).scheduled_at == datetime(2100, 1, 1, tzinfo=UTC)
    assert answer("stop", str(id)) == "stopped"
    assert answer("retry", str(id), "--restart") == "available"
    assert answer("delete", str(id)) == "deleted"
    assert q.jobs() == []


def test_filters_do_it_to_all_that_fit_but_a_script_has_to_say_yes(q: PgQueue, dsn: str) -> None:
    for _ in range(3):
        q.enqueue("mail")
    other = q.enqueue("other").id
    careful = invoke("jobs", "cancel", "--kind", "mail", dsn=dsn)
    assert careful.exit_code == 2
    assert "this would cancel all jobs with kind mail: add --yes" in careful.stderr
    assert len(q.jobs(state="available")) == 4

    assert invoke("jobs", "cancel", "--kind", "mail", "--yes", dsn=dsn).stdout == "3  cancelled\n"
    assert [job.id for job in q.jobs(state="available")] == [other]

    deleted = invoke("jobs", "delete", "--state", "cancelled", "--yes", "--json", dsn=dsn)
    assert json.loads(deleted.stdout) == {"answers": {"deleted": 3}}
    nothing = invoke("jobs", "delete", "--state", "cancelled", "--yes", dsn=dsn)
    assert (nothing.exit_code, nothing.stderr) == (0, "no jobs fit\n")


@pytest.mark.parametrize(("reply", "left"), [("n\n", State.AVAILABLE), ("y\n", State.CANCELLED)])
def test_a_person_is_asked_with_the_number_of_jobs(
    reply: str, left: State, q: PgQueue, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = q.enqueue("mail").id
    monkeypatch.setattr(verbs, "is_terminal", lambda: True)
    result = invoke("jobs", "cancel", "--kind", "mail", dsn=dsn, stdin=reply)
    assert "cancel 1 job with kind mail? [y/N]" in result.stderr
    assert result.exit_code == (0 if left is State.CANCELLED else 1)
    assert q.job(id).state is left
