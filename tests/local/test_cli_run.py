"""`pgqueue run KIND --local` as a process that is interrupted and killed. It could reach no database."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import pytest

from pgqueue import State
from tests.cli.commands import REPOSITORY, Running, finish, invoke
from tests.local.kit import EXECUTORS, NOWHERE, log_of, state_of, until

APP = ("-A", "tests.local.deeds:q", "--local")
every = pytest.mark.parametrize("kind", EXECUTORS)


def command(kind: str, home: Path, state: Path, *more: str) -> list[str]:
    return ["run", kind, json.dumps({"home": str(home)}), *APP, "--state", str(state), *more]


def running(kind: str, home: Path, state: Path, fault: str) -> Running:
    (home / "fault").write_text(fault)
    return Running(*command(kind, home, state), dsn=NOWHERE, cwd=REPOSITORY)


def test_it_prints_the_result_and_only_that(home: Path, state: Path) -> None:
    done = invoke(*command("threaded", home, state))
    assert (done.exit_code, done.stdout, done.stderr) == (0, "[1, 2, 3, 4, 5]\n", "")


def test_json_has_all_there_is_to_know(home: Path, state: Path) -> None:
    (home / "fault").write_text("snooze")
    done = invoke(*command("threaded", home, state, "--json"))
    said = json.loads(done.stdout)
    assert (done.exit_code, said["state"], said["delay"], said["data"]) == (1, "scheduled", 90.0, {"reached": 2})
    (home / "fault").write_text("")
    done = invoke(*command("threaded", home, state, "--json"))
    said = json.loads(done.stdout)
    assert (done.exit_code, said["state"], said["result"]) == (0, "completed", [1, 2, 3, 4, 5])


def test_a_failure_is_told_with_its_traceback_and_how_to_go_on(home: Path, state: Path) -> None:
    (home / "fault").write_text("error")
    failed = invoke(*command("threaded", home, state))
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert "threaded is retryable: ValueError: no such order" in failed.stderr
    assert "in meet" in failed.stderr
    assert "the same command goes on from job.json" in failed.stderr
    (home / "fault").write_text("")
    assert invoke(*command("threaded", home, state)).exit_code == 0
    assert log_of(home) == ["1", "2", "3", "4", "5", "local 2"]


def test_the_death_of_a_process_is_told_as_what_it_is(home: Path, state: Path) -> None:
    (home / "fault").write_text("die")
    died = invoke(*command("process", home, state))
    assert died.exit_code == 1
    assert "process was interrupted (its process died of signal 9 (SIGKILL)" in died.stderr


def test_a_restart_forgets_what_was_reached(home: Path, state: Path) -> None:
    (home / "fault").write_text("error")
    invoke(*command("threaded", home, state))
    (home / "fault").write_text("")
    assert invoke(*command("threaded", home, state, "--restart")).exit_code == 0
    assert log_of(home) == ["1", "2", "1", "2", "3", "4", "5", "local 1"]


def test_what_is_wrong_with_the_command_is_one_line_and_status_2(home: Path, state: Path, tmp_path: Path) -> None:
    (home / "fault").write_text("error")
    invoke(*command("threaded", home, state))
    wrong = [
        (["run", "threaded", *APP[:2]], "say --local"),
        (["run", "threadde", "{}", *APP], "threaded"),
        (["run", "threaded", "{}", *APP], "home"),
        (["run", "threaded", "[1]", *APP], "object"),
        (command("coroutine", home, state), "--restart"),
        (command("threaded", home, tmp_path), "is not the state of a job"),
        (command("threaded", home, tmp_path / "none" / "job.json"), "No such file or directory"),
    ]
    for arguments, said in wrong:
        refused = invoke(*arguments)
        assert (refused.exit_code, refused.stdout) == (2, ""), arguments
        (line,) = refused.stderr.splitlines()
        assert said in line, line


def test_marks_in_a_database_that_is_away_are_one_line_and_at_once(home: Path, state: Path) -> None:
    (home / "fault").write_text("error")
    invoke(*command("threaded", home, state))
    before = state.read_bytes()
    note = state.with_name("job.json.marks")
    note.touch()
    refused = invoke(*command("threaded", home, state))
    (line,) = refused.stderr.splitlines()
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "no connection to the database" in line
    assert (state.read_bytes(), note.exists(), log_of(home)) == (before, True, ["1", "2"])


def test_without_a_state_file_named_it_is_in_the_working_directory(home: Path, tmp_path: Path) -> None:
    done = invoke("run", "threaded", json.dumps({"home": str(home)}), *APP)
    assert done.exit_code == 0, done.stderr
    assert state_of(tmp_path / "threaded.state.json").state is State.COMPLETED


@pytest.mark.parametrize(
    ("kind", "signum"), [*((kind, signal.SIGINT) for kind in EXECUTORS), ("threaded", signal.SIGTERM)]
)
def test_the_first_signal_asks_the_job_to_end(kind: str, signum: signal.Signals, home: Path, state: Path) -> None:
    with running(kind, home, state, "hang") as run:
        run.wait_for("hanging")
        run.send(signum)
        assert run.ended() == 1
    assert "was interrupted: the same command goes on" in run.output
    assert (state_of(state).state, state_of(state).attempt) == (State.AVAILABLE, 0)
    (home / "fault").write_text("")
    assert finish(*command(kind, home, state)).returncode == 0
    assert log_of(home) == ["1", "2", "3", "4", "5", "local 1"]


@pytest.mark.parametrize("kind", ["threaded", "coroutine", "timed"])
def test_the_second_signal_leaves_a_job_that_does_not_end(kind: str, home: Path, state: Path) -> None:
    with running(kind, home, state, "stuck") as run:
        run.wait_for("hanging")
        if kind == "timed":  # it was asked already, by its time-out
            threading.Event().wait(0.5)
        run.send(signal.SIGINT)
        if kind == "coroutine":
            run.wait_for("hanging")  # it has swallowed the first
        else:
            threading.Event().wait(0.2)  # two that are pending at once are one
        run.send(signal.SIGINT)
        assert run.ended() == 1
    assert "Exception" not in run.output
    assert run.output.rstrip().endswith("the same command goes on from job.json")
    (home / "fault").write_text("")
    assert finish(*command(kind, home, state)).returncode == 0
    assert log_of(home)[:5] == ["1", "2", "3", "4", "5"]


@every
def test_kill_9_loses_nothing_that_was_in_the_file(kind: str, home: Path, state: Path) -> None:
    with running(kind, home, state, "hang") as run:
        run.wait_for("hanging")
        until(lambda: len(state_of(state).checkpoint.get("done", {})) == 2)
        run.process.kill()
        assert run.process.wait() == -9
    (home / "fault").write_text("")
    assert finish(*command(kind, home, state)).returncode == 0
    assert log_of(home) == ["1", "2", "3", "4", "5", "local 1"]


def test_a_cursor_goes_into_the_file_while_the_step_runs(state: Path) -> None:
    arguments = ["run", "counting", '{"upto": 50}', *APP, "--state", str(state)]

    def cursor() -> int:
        return int(bytes(state_of(state).checkpoint.get("cursor", {}).get("count", b"0")))

    with Running(*arguments, cwd=REPOSITORY) as run:
        run.wait_for("from None")
        first = until(cursor)
        until(lambda: cursor() > first)
        run.process.kill()
        run.process.wait()
    reached = cursor()
    with Running(*arguments, cwd=REPOSITORY) as run:
        assert run.ended() == 0
    assert f"from {reached}\n" in run.output


def test_a_coroutine_that_blocks_the_event_loop_is_kept_too(state: Path) -> None:
    with Running("run", "blocking", '{"upto": 150}', *APP, "--state", str(state), cwd=REPOSITORY) as run:
        run.wait_for("still blocking")
        run.process.kill()
        run.process.wait()
    assert len(state_of(state).checkpoint["done"]) > 20


def test_a_file_in_use_is_refused(home: Path, state: Path) -> None:
    with running("threaded", home, state, "hang") as run:
        run.wait_for("hanging")
        refused = finish(*command("threaded", home, state))
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
        assert "another run uses it" in refused.stderr
