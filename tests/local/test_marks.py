"""`*_tx` in a local run: exactly once, since the marks are in the queue's database until they are in the file."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from pgqueue import PgqueueError, State
from pgqueue.db.schema import migrate
from pgqueue.errors import ConfigError
from pgqueue.local import LocalJob
from tests.cli.commands import REPOSITORY, Running
from tests.engine.kit import until as until_in
from tests.local import deeds
from tests.local.kit import NOWHERE, state_of

q = deeds.q
MARKING = ("marking", "marking_remotely")


@pytest.fixture
def template(request: pytest.FixtureRequest) -> object:
    """Overrides the one that runs every test on each server: what is tested here is the processes."""
    return request.getfixturevalue("newest_template")


def run(kind: str, home: Path, state: Path, fault: str = "", **args: object) -> LocalJob:
    (home / "fault").write_text(fault)
    return q.run_local(kind, {"home": str(home), **args}, state=state)


def deeds_of(db: psycopg.Connection) -> list[str]:
    return [text for (text,) in db.execute("select text from deed order by ctid").fetchall()]


def marks_of(db: psycopg.Connection) -> int:
    row = db.execute("select count(*) from pgqueue.checkpoint").fetchone()
    assert row is not None
    return int(row[0])


def note_of(state: Path) -> Path:
    return state.with_name(f"{state.name}.marks")


@pytest.mark.parametrize("kind", [*MARKING, "marking_coroutine"])
def test_a_marked_step_is_done_once_though_the_job_failed_after_it(
    kind: str, home: Path, state: Path, db: psycopg.Connection
) -> None:
    assert run(kind, home, state, "error").state is State.RETRYABLE
    assert (marks_of(db), note_of(state).exists()) == (0, False), "the mark has moved into the file"
    assert run(kind, home, state).result == "done"
    assert deeds_of(db) == ["step"]


@pytest.mark.parametrize("kind", MARKING)
@pytest.mark.parametrize("how", ["rollback", "savepoint"])
def test_a_mark_that_was_rolled_back_was_never_made(
    kind: str, how: str, home: Path, state: Path, db: psycopg.Connection
) -> None:
    first = run(kind, home, state, how)
    assert first.state is (State.RETRYABLE if how == "rollback" else State.COMPLETED)
    assert deeds_of(db) == ([] if how == "rollback" else ["step"])
    if how == "rollback":
        assert run(kind, home, state).state is State.COMPLETED
        assert deeds_of(db) == ["step"]
    assert marks_of(db) == 0


def test_a_step_whose_savepoint_was_rolled_back_is_not_done(home: Path, state: Path, db: psycopg.Connection) -> None:
    """What the function did beside that stands: the mark alone says whether the step is done."""
    (home / "fault").write_text("savepoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deeds, "meet", lambda home: 1 / 0)
        run("marking", home, state, "savepoint")
    assert run("marking", home, state).state is State.COMPLETED
    assert deeds_of(db) == ["step", "step"]


def test_a_cursor_that_commits_with_each_row_misses_none_and_repeats_none(
    home: Path, state: Path, db: psycopg.Connection
) -> None:
    assert run("loading", home, state, "error", upto=10).state is State.RETRYABLE
    assert bytes(state_of(state).checkpoint["cursor"]["load"]) == b"5"
    assert run("loading", home, state, upto=10).result == 10
    assert deeds_of(db) == [str(number) for number in range(1, 11)]


def test_a_job_that_completes_itself_is_completed_whatever_comes_after(
    home: Path, state: Path, db: psycopg.Connection
) -> None:
    job = run("completing", home, state, "error")
    assert (job.state, job.result, job.data) == (State.COMPLETED, {"all": 1}, {"seen": True})
    assert (deeds_of(db), marks_of(db)) == (["all"], 0)


def test_a_completion_that_was_rolled_back_is_a_failure(home: Path, state: Path, db: psycopg.Connection) -> None:
    job = run("completing", home, state, "rollback")
    assert job.error is not None
    assert (job.state, deeds_of(db)) == (State.RETRYABLE, [])
    assert "complete_tx was rolled back" in str(job.error["message"])
    assert run("completing", home, state).state is State.COMPLETED


def test_a_transaction_that_is_still_open_at_the_end_counts_when_it_is_committed(
    state: Path, db: psycopg.Connection, fresh_db: str
) -> None:
    """Nobody waits for it at the end of the run that has forgotten it; the next one finds out what became of it."""
    job = q.run_local("leaking", {"dsn": fresh_db}, state=state)
    assert job.error is not None
    assert (job.state, note_of(state).exists()) == (State.RETRYABLE, True)
    assert "complete_tx was rolled back or never committed" in str(job.error["message"])
    with deeds.leaked.pop() as conn:
        conn.commit()
    assert q.run_local("leaking", {"dsn": fresh_db}, state=state).result == "late"
    assert (deeds_of(db), marks_of(db)) == (["leaked"], 0)


def test_the_death_of_its_process_after_the_commit_doubles_nothing(
    home: Path, state: Path, db: psycopg.Connection
) -> None:
    assert run("marking_remotely", home, state, "killed after commit").state is State.AVAILABLE
    assert run("marking_remotely", home, state).state is State.COMPLETED
    assert deeds_of(db) == ["step"]


def command(kind: str, home: Path, state: Path) -> list[str]:
    return ["run", kind, f'{{"home": "{home}"}}', "-A", "tests.local.deeds:q", "--local", "--state", str(state)]


@pytest.mark.parametrize("kind", MARKING)
def test_kill_9_after_the_commit_doubles_nothing(
    kind: str, home: Path, state: Path, db: psycopg.Connection, fresh_db: str
) -> None:
    (home / "fault").write_text("hang after commit")
    with Running(*command(kind, home, state), dsn=fresh_db, cwd=REPOSITORY) as running:
        running.wait_for("hanging")
        running.process.kill()
        assert running.process.wait() == -9
    assert (marks_of(db), note_of(state).exists()) == (1, True), "it could not say goodbye"
    assert run(kind, home, state).state is State.COMPLETED
    assert (deeds_of(db), marks_of(db), note_of(state).exists()) == (["step"], 0, False)


def test_kill_9_after_a_job_has_completed_itself_does_not_run_it_anew(
    home: Path, state: Path, db: psycopg.Connection, fresh_db: str
) -> None:
    (home / "fault").write_text("die")
    with Running(*command("completing", home, state), dsn=fresh_db, cwd=REPOSITORY) as running:
        assert running.ended() == -9
    job = run("completing", home, state)
    assert (job.state, job.result, job.data) == (State.COMPLETED, {"all": 1}, {"seen": True})
    assert (deeds_of(db), marks_of(db), note_of(state).exists()) == (["all"], 0, False)
    assert run("completing", home, state).id != job.id, "now that it was told"
    assert deeds_of(db) == ["all", "all"]


def test_kill_9_during_the_commit_doubles_nothing(
    home: Path, state: Path, db: psycopg.Connection, fresh_db: str
) -> None:
    """The server goes on with a COMMIT whose sender is gone; whoever resumes the job waits for its end."""
    db.execute(
        """create table gate (); create function wait_at_gate() returns trigger language plpgsql as $$
           begin lock table gate in share mode; return null; end $$;
           create constraint trigger slow after insert on deed deferrable initially deferred
           for each row execute function wait_at_gate()"""
    )
    waits = "select count(*) from pg_locks where not granted and relation = 'gate'::regclass"
    asks = "exists (select from pg_locks where not granted and locktype = 'advisory')"
    with psycopg.connect(fresh_db) as gate:
        gate.execute("lock table gate in exclusive mode")
        with Running("run", "slow_commit", "-A", "tests.local.deeds:q", "--local", "--state", str(state), dsn=fresh_db,
                     cwd=REPOSITORY) as running:  # fmt: skip
            until_in(db, f"select ({waits}) = 1")
            running.process.kill()
            running.process.wait()
        with Running("run", "slow_commit", "-A", "tests.local.deeds:q", "--local", "--state", str(state), dsn=fresh_db,
                     cwd=REPOSITORY) as running:  # fmt: skip
            until_in(db, f"select ({waits}) = 2 or {asks}")
            gate.rollback()
            assert running.ended() == 0, running.output
    assert deeds_of(db) == ["slow"]


def test_a_database_that_is_away_when_a_mark_is_made_is_the_steps_failure(
    home: Path, state: Path, monkeypatch: pytest.MonkeyPatch, fresh_db: str
) -> None:
    monkeypatch.setenv("PGQUEUE_DSN", f"{fresh_db}_that_isnt")
    with psycopg.connect(fresh_db) as conn:
        conn.execute("create table deed (text text)")
    job = q.run_local("elsewhere", {"dsn": fresh_db}, state=state)
    assert job.error is not None
    assert (job.state, job.error["type"]) == (State.RETRYABLE, "pgqueue.errors.StepError")
    assert "leaves its mark in the queue's database: no connection to" in str(job.error["message"])
    assert not note_of(state).exists()


def test_a_database_that_is_away_when_a_job_is_resumed_is_one_error_and_loses_nothing(
    home: Path, state: Path, db: psycopg.Connection, fresh_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "fault").write_text("hang after commit")
    with Running(*command("marking", home, state), dsn=fresh_db, cwd=REPOSITORY) as running:
        running.wait_for("hanging")
        running.process.kill()
        running.process.wait()
    before = state.read_bytes()
    q.close()
    monkeypatch.setenv("PGQUEUE_DSN", f"{fresh_db}_that_isnt")
    with pytest.raises(PgqueueError, match="no connection to"):
        run("marking", home, state)
    assert (state.read_bytes(), note_of(state).exists()) == (before, True)
    q.close()
    monkeypatch.setenv("PGQUEUE_DSN", fresh_db)
    assert run("marking", home, state).state is State.COMPLETED
    assert deeds_of(db) == ["step"]


def test_a_mark_is_refused_by_another_database(
    state: Path, db: psycopg.Connection, empty_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(empty_db)
    job = q.run_local("elsewhere", {"dsn": empty_db}, state=state)
    assert job.error is not None
    assert "this connection is to another database" in str(job.error["message"])


def test_a_job_is_not_resumed_with_another_database_than_the_one_that_has_its_marks(
    home: Path, state: Path, db: psycopg.Connection, fresh_db: str, empty_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(empty_db)
    (home / "fault").write_text("hang after commit")
    with Running(*command("marking", home, state), dsn=fresh_db, cwd=REPOSITORY) as running:
        running.wait_for("hanging")
        running.process.kill()
        running.process.wait()
    q.close()
    monkeypatch.setenv("PGQUEUE_DSN", empty_db)
    with pytest.raises(ConfigError, match="another database"):
        run("marking", home, state)
    q.close()
    monkeypatch.setenv("PGQUEUE_DSN", fresh_db)
    assert run("marking", home, state).state is State.COMPLETED
    assert deeds_of(db) == ["step"]


def test_a_file_that_was_thrown_away_takes_its_marks_along(
    home: Path, state: Path, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every later job of that file would ask a database that it doesn't need."""
    note_of(state).write_text("of a job that is no more")
    monkeypatch.setenv("PGQUEUE_DSN", NOWHERE)
    assert run("threaded", home, state).state is State.COMPLETED


def test_local_runs_leave_no_connection_behind(home: Path, state: Path, db: psycopg.Connection) -> None:
    sessions = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    for _ in range(3):
        run("marking_coroutine", home, state)
    q.close()
    until_in(db, f"select ({sessions}) = 0")
