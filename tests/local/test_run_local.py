"""`q.run_local`: a job without a server goes on where it stopped, in each executor. No database can be reached here."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from pgqueue import PgQueue, PgqueueError, State
from pgqueue.errors import ConfigError, InvalidArguments
from pgqueue.local import LocalJob
from tests.local import deeds
from tests.local.kit import EXECUTORS, log_of, state_of

q = deeds.q
every = pytest.mark.parametrize("kind", EXECUTORS)


def run(kind: str, home: Path, state: Path, fault: str = "") -> LocalJob:
    (home / "fault").write_text(fault)
    return q.run_local(kind, {"home": str(home)}, state=state)


@every
def test_a_job_runs_to_its_end_without_any_database(kind: str, home: Path, state: Path) -> None:
    job = run(kind, home, state)
    assert (job.state, job.result, job.attempt, job.error) == (State.COMPLETED, [1, 2, 3, 4, 5], 0, None)
    assert job.id < 0
    assert log_of(home) == ["1", "2", "3", "4", "5", "local 1"]
    assert job.data == {"reached": 5}, "it outlives success"
    assert state_of(state).checkpoint.keys() == {"data"}, "what only the steps needed doesn't"


@pytest.mark.parametrize("kind", ["threaded", "process"])
def test_nothing_needs_to_say_where_a_database_would_be(
    kind: str, home: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGQUEUE_DSN")
    assert run(kind, home, state).state is State.COMPLETED


@every
def test_a_job_that_failed_goes_on_at_the_step_that_failed(kind: str, home: Path, state: Path) -> None:
    failed = run(kind, home, state, "error")
    assert (failed.state, failed.attempt, failed.data) == (State.RETRYABLE, 1, {"reached": 2})
    assert failed.error is not None
    assert failed.delay is not None
    assert (failed.error["type"], failed.error["message"]) == ("ValueError", "no such order")
    assert "in meet" in str(failed.error["traceback"])
    job = run(kind, home, state)
    assert (job.state, job.result, job.error, job.id) == (State.COMPLETED, [1, 2, 3, 4, 5], None, failed.id)
    assert log_of(home) == ["1", "2", "3", "4", "5", "local 2"], "each step once, at the second attempt"


@pytest.mark.parametrize(
    ("kind", "fault", "expected", "delay"),
    [
        ("threaded", "snooze", State.SCHEDULED, 90.0),
        ("coroutine", "snooze", State.SCHEDULED, 90.0),
        ("process", "snooze", State.SCHEDULED, 90.0),
        ("threaded", "later", State.RETRYABLE, 7.0),
        ("threaded", "cancel", State.CANCELLED, None),
        ("coroutine", "cancel", State.CANCELLED, None),
        ("threaded", "discard", State.DISCARDED, None),
        ("process", "discard", State.DISCARDED, None),
    ],
)
def test_what_a_job_raises_means_what_it_means_to_a_worker(
    kind: str, fault: str, expected: State, delay: float | None, home: Path, state: Path
) -> None:
    job = run(kind, home, state, fault)
    assert (job.state, job.delay) == (expected, delay)
    assert state_of(state).state is expected
    assert run(kind, home, state).result == [1, 2, 3, 4, 5]
    last = "local 2" if fault == "later" else "local 1"
    assert log_of(home) == ["1", "2", "3", "4", "5", last]


@pytest.mark.parametrize("kind", ["threaded", "process"])
def test_a_job_may_raise_what_would_end_the_program(kind: str, home: Path, state: Path) -> None:
    job = run(kind, home, state, "exit")
    assert job.error is not None
    assert (job.state, job.error["type"]) == (State.RETRYABLE, "SystemExit")


def test_a_time_out_keeps_what_was_reached(home: Path, state: Path) -> None:
    job = run("timed", home, state, "hang")
    assert job.error is not None
    assert (job.state, job.error["type"], job.attempt) == (State.RETRYABLE, "Timeout", 1)
    assert run("timed", home, state).state is State.COMPLETED
    assert log_of(home) == ["1", "2", "3", "4", "5", "local 2"]


def test_the_death_of_its_process_is_told_and_loses_no_step(home: Path, state: Path) -> None:
    job = run("process", home, state, "die")
    assert job.error is not None
    assert (job.state, job.error["type"]) == (State.AVAILABLE, "WorkerLost")
    assert "SIGKILL" in str(job.error["message"])
    assert run("process", home, state).result == [1, 2, 3, 4, 5]
    assert log_of(home) == ["1", "2", "3", "4", "5", "local 1"]


def test_a_job_that_gave_up_is_given_another_life_by_running_it_again(home: Path, state: Path) -> None:
    run("threaded", home, state, "error")
    assert run("threaded", home, state, "error").state is State.DISCARDED
    assert run("threaded", home, state).state is State.COMPLETED
    assert log_of(home) == ["1", "2", "3", "4", "5", "local 1"]


def test_a_completed_job_is_run_anew(home: Path, state: Path) -> None:
    first = run("threaded", home, state)
    second = run("threaded", home, state)
    assert second.id != first.id
    assert log_of(home) == ["1", "2", "3", "4", "5", "local 1"] * 2


def test_a_restart_forgets_what_was_reached(home: Path, state: Path) -> None:
    run("threaded", home, state, "error")
    (home / "fault").write_text("")
    job = q.run_local("threaded", {"home": str(home)}, state=state, restart=True)
    assert job.state is State.COMPLETED
    assert log_of(home) == ["1", "2", "1", "2", "3", "4", "5", "local 1"]


def test_the_file_of_another_job_is_refused_and_left_as_it_is(home: Path, state: Path, tmp_path: Path) -> None:
    run("threaded", home, state, "error")
    before = state.read_bytes()
    with pytest.raises(ConfigError, match=r'job\.json: is of threaded {"home":".*"}, which is retryable: .*--restart'):
        run("coroutine", home, state)
    with pytest.raises(ConfigError, match="give the same arguments"):
        q.run_local("threaded", {"home": str(tmp_path)}, state=state)
    assert state.read_bytes() == before
    assert log_of(home) == ["1", "2"]


def test_a_completed_job_leaves_its_file_to_any_other(home: Path, state: Path) -> None:
    run("threaded", home, state)
    assert run("coroutine", home, state).state is State.COMPLETED


def test_an_unknown_kind_and_wrong_arguments_are_refused_before_there_is_a_file(state: Path) -> None:
    with pytest.raises(InvalidArguments, match="threaded"):
        q.run_local("threadde", {}, state=state)
    with pytest.raises(InvalidArguments, match="home"):
        q.run_local("threaded", {}, state=state)
    assert [*state.parent.glob("job*")] == []


def test_a_long_result_of_a_step_is_no_longer_when_it_was_read_from_the_file(home: Path, state: Path) -> None:
    run("wide", home, state, "error")
    job = run("wide", home, state)
    assert (job.state, job.result) == (State.COMPLETED, 5), job.error


def test_a_process_task_runs_in_a_process_of_its_own(state: Path) -> None:
    assert q.run_local("remote_pid", state=state).result != os.getpid()


async def test_inside_an_event_loop_it_says_how_to_call_it(home: Path, state: Path) -> None:
    with pytest.raises(PgqueueError, match=r"asyncio\.to_thread"):
        run("threaded", home, state)
    job = await asyncio.to_thread(run, "coroutine", home, state)
    assert job.state is State.COMPLETED


def test_a_directory_that_vanishes_under_a_running_job_is_one_error(state: Path, home: Path) -> None:
    inside = home / "inside"
    inside.mkdir()

    own = PgQueue()

    @own.task
    def vanishing() -> None:
        shutil.rmtree(inside)

    with pytest.raises(PgqueueError, match=r"inside/job.json: can't be written: No such file or directory"):
        own.run_local("vanishing", state=inside / "job.json")
