"""Attempts in processes of their own: real ones, really killed. No database: a lane in, reports out."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgqueue import PgQueue
from pgqueue.core.job import Claimed
from pgqueue.core.outcome import NOTHING, Asked, Crashed, Ended, Interrupted, Raised, Returned, TimedOut, decide
from pgqueue.core.retry import Retry
from pgqueue.core.states import State, Verb
from pgqueue.engine.lane import Attempt, Lane, Lease, Reason
from pgqueue.engine.place import check_importable
from pgqueue.engine.processes import ProcessExecutor, ProcessOptions
from pgqueue.errors import ConfigError
from pgqueue.tasks.task import Task
from tests.engine import deeds
from tests.engine.kit import PATIENCE, errors_of, working
from tests.engine.waiting import LONG, Ear, has_ended

ROOT = Path(__file__).parents[2]


class Rig:
    """An executor between a lane and a list of reports."""

    def __init__(self, **options: float) -> None:
        self.reports: queue.SimpleQueue[tuple[Attempt, Ended]] = queue.SimpleQueue()
        self.notes: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.lane = Lane("default", 4, lambda: None)
        self.executor = ProcessExecutor(
            lambda attempt, ended: self.reports.put((attempt, ended)),
            context="tests.engine.deeds:Here",
            settings={"colour": "blue"},
            options=ProcessOptions(**options),
            on_note=lambda attempt, note: self.notes.put(note),
        )

    def start(self, fn: Callable[..., object], *, solo: bool = False, **args: object) -> Attempt:
        task = fn if isinstance(fn, Task) else Task(fn, sender=deeds.Nobody(), executor="process")
        job = Claimed(
            id=1, claim=1, kind=task.name, args=json.dumps(args), metadata=None, attempt=0, max_attempts=None,
            crashes=0, timeout=60.0, expires_at=None, tenant=None, priority=0,
        )  # fmt: skip
        attempt = Attempt(job, task, self.lane, Lease(1, 1, solo=solo), self.executor)
        self.lane.offer([attempt])
        return attempt

    def end_of(self, attempt: Attempt) -> Ended:
        reported, ended = self.reports.get(timeout=LONG)
        assert reported is attempt
        return ended

    def run(self, fn: Callable[..., object], *, solo: bool = False, **args: object) -> Ended:
        return self.end_of(self.start(fn, solo=solo, **args))

    def pid(self, fn: Callable[..., object] = deeds.get_pid, *, solo: bool = False) -> int:
        ended = self.run(fn, solo=solo)
        assert isinstance(ended, Returned)
        return int(ended.result or 0)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(grace=LONG, kill_after=LONG)
    yield rig
    rig.executor.close()


@pytest.fixture
def impatient() -> Iterator[Rig]:
    rig = Rig(grace=0.05, kill_after=0.05)
    yield rig
    rig.executor.close()


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    ear = Ear(tmp_path / "ear")
    yield ear
    ear.close()


def script(path: Path, text: str) -> list[str]:
    """A program that has the project on its path."""
    path.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{text}")
    return [sys.executable, str(path)]


# Running ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", [deeds.get_pid, deeds.aget_pid])
def test_attempts_run_in_one_process_that_is_not_ours(rig: Rig, fn: Callable[..., object]) -> None:
    pids = {rig.pid(fn) for _ in range(3)}

    assert len(pids) == 1
    assert os.getpid() not in pids


def test_attempts_at_the_same_time_run_in_different_processes(rig: Rig, ear: Ear) -> None:
    attempts = [rig.start(deeds.until_asked, path=ear.path) for _ in range(3)]
    pids = {ear.hear() for _ in attempts}
    for attempt in attempts:
        attempt.interrupt(Reason.CANCEL)
    ended = [rig.reports.get(timeout=LONG)[1] for _ in attempts]

    assert len(pids) == 3
    assert all(isinstance(end, Returned) for end in ended)


def test_returning_nothing_is_the_frequent_end_told_by_identity(rig: Rig) -> None:
    assert rig.run(deeds.nothing) is NOTHING


def test_a_task_is_found_under_its_name_as_well_as_a_plain_function(rig: Rig) -> None:
    assert rig.run(deeds.decorated) is NOTHING


def test_a_megabyte_goes_there_and_back(rig: Rig) -> None:
    text = "ä\n" * 250_000

    assert rig.run(deeds.echo, text=text) == Returned(json.dumps(text, ensure_ascii=False))


def test_what_a_job_printed_is_there_when_it_has_ended(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    rig.run(deeds.shout, text="can you hear me")

    assert capfd.readouterr().out == "can you hear me\n"


def test_the_context_is_made_there_of_what_is_known_here(rig: Rig) -> None:
    ended = rig.run(deeds.tell)

    assert isinstance(ended, Returned)
    assert json.loads(ended.result or "") == {
        "id": 1, "kind": "tell", "queue": "default", "settings": {"colour": "blue"},
    }  # fmt: skip
    assert json.loads(rig.notes.get(timeout=LONG)) == {"half": "done"}


def test_what_a_coroutine_leaves_on_the_event_loop_is_there_for_the_next_one(rig: Rig) -> None:
    assert rig.run(deeds.leave_a_task_behind) is NOTHING
    assert rig.run(deeds.let_it_end) == Returned("true")


# How it ended ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", deeds.STEERING)
def test_whatever_is_raised_there_decides_as_if_it_had_been_raised_here(rig: Rig, how: str) -> None:
    retry = Retry(base=2, jitter=0)
    there = rig.run(deeds.steer, how=how)
    assert isinstance(there, Raised)
    here = Raised(deeds.STEERING[how], there.traceback)

    assert decide(there, attempt=0, crashes=0, retry=retry) == decide(here, attempt=0, crashes=0, retry=retry)
    assert "in steer" in (there.traceback or "")


def test_a_result_that_json_can_not_hold_is_the_attempts_failure(rig: Rig) -> None:
    ended = rig.run(deeds.unstorable)

    assert isinstance(ended, Raised)
    assert "object" in str(ended.error)


def test_arguments_that_do_not_fit_the_signature_any_more_are_a_failure(rig: Rig) -> None:
    ended = rig.run(deeds.echo, words="hello")

    assert isinstance(ended, Raised)
    assert "words" in str(ended.error)


# Death -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("killed", "its process died of signal 9 (SIGKILL)"),
        ("segfault", "its process died of signal 11 (SIGSEGV)"),
        ("exit", "its process exited with code 3"),
    ],
)
def test_the_death_of_a_process_is_a_crash_of_its_attempt_and_the_next_has_a_fresh_one(
    rig: Rig, capfd: pytest.CaptureFixture[str], how: str, said: str
) -> None:
    before = rig.pid()

    assert rig.run(deeds.die, how=how) == Crashed(said)
    assert rig.pid() != before


def test_the_death_of_a_process_leaves_its_neighbours_alone(rig: Rig, ear: Ear) -> None:
    neighbour = rig.start(deeds.until_asked, path=ear.path)
    ear.hear()

    assert isinstance(rig.run(deeds.die, how="killed"), Crashed)
    neighbour.interrupt(Reason.CANCEL)
    assert isinstance(rig.end_of(neighbour), Returned)


def test_a_death_is_noticed_even_if_a_forked_heir_lives_on(rig: Rig, ear: Ear) -> None:
    attempt = rig.start(deeds.die_leaving_an_heir, path=ear.path)
    heir = int(ear.hear())
    try:
        assert isinstance(rig.end_of(attempt), Crashed)
    finally:
        os.kill(heir, signal.SIGKILL)


def test_a_process_that_dies_while_idle_costs_no_attempt(rig: Rig) -> None:
    idle = rig.pid()
    os.kill(idle, signal.SIGKILL)
    assert has_ended(idle)

    assert rig.pid() != idle


def test_suspects_run_one_after_another_in_a_process_that_only_its_own_job_can_kill(rig: Rig) -> None:
    usual = rig.pid()

    assert [rig.pid(solo=True), rig.pid(solo=True)] == [usual, usual]


def test_processes_die_with_their_worker(tmp_path: Path, ear: Ear) -> None:
    program = script(
        tmp_path / "worker.py",
        f"""
import signal
from tests.engine.test_processes import Rig
from tests.engine import deeds
from tests.engine.kit import PATIENCE, errors_of, working
if __name__ == "__main__":
    Rig().start(deeds.hang_deaf, path={ear.path!r})
    signal.pause()
""",
    )
    with subprocess.Popen(program) as worker:
        child = int(ear.hear())
        worker.kill()

    assert has_ended(child)


def test_idle_processes_end_when_the_executor_is_closed(rig: Rig) -> None:
    idle = rig.pid()
    rig.executor.close()

    assert has_ended(idle)


# Interruption ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "ended"),
    [
        (Reason.TIMEOUT, TimedOut),
        (Reason.CANCEL, Asked),
        (Reason.STOP, Asked),
        (Reason.SHUTDOWN, Interrupted),
        (Reason.LOST, Interrupted),
    ],
)
@pytest.mark.parametrize("fn", [deeds.hang, deeds.hang_deaf, deeds.ahang])
def test_an_interrupted_attempt_ends_as_what_it_was_interrupted_for(
    impatient: Rig, ear: Ear, fn: Callable[..., object], reason: Reason, ended: type[Ended]
) -> None:
    attempt = impatient.start(fn, path=ear.path)
    ear.hear()
    attempt.interrupt(reason)

    assert isinstance(impatient.end_of(attempt), ended)


def test_a_process_that_got_a_sigterm_is_used_no_more(rig: Rig, ear: Ear) -> None:
    attempt = rig.start(deeds.hang, path=ear.path)
    terminated = int(ear.hear())
    attempt.interrupt(Reason.TIMEOUT)
    rig.end_of(attempt)

    assert rig.pid() != terminated
    assert has_ended(terminated)


def test_a_timed_out_function_is_terminated_at_once_and_may_clean_up(rig: Rig, ear: Ear) -> None:
    attempt = rig.start(deeds.hang, path=ear.path)
    ear.hear()
    attempt.interrupt(Reason.TIMEOUT)

    assert ear.hear() == "Terminated"
    assert rig.end_of(attempt) == TimedOut(60.0)


def test_a_cancelled_coroutine_is_cancelled_at_once(rig: Rig, ear: Ear) -> None:
    attempt = rig.start(deeds.ahang, path=ear.path)
    pid = int(ear.hear())
    attempt.interrupt(Reason.CANCEL)

    assert ear.hear() == "CancelledError"
    ended = rig.end_of(attempt)
    assert isinstance(ended, Asked)
    assert ended.verb is Verb.CANCEL
    assert rig.pid() == pid


def test_a_coroutine_is_cancelled_even_if_its_context_was_first_to_know(rig: Rig, ear: Ear) -> None:
    attempt = rig.start(deeds.asee_and_go_on, path=ear.path)
    ear.hear()
    attempt.interrupt(Reason.CANCEL)

    assert isinstance(rig.end_of(attempt), Asked)


def test_a_function_sees_the_request_and_may_succeed_all_the_same(rig: Rig, ear: Ear) -> None:
    attempt = rig.start(deeds.until_asked, path=ear.path)
    ear.hear()
    attempt.interrupt(Reason.STOP)

    assert rig.end_of(attempt) == Returned('"stop"')


def test_a_request_is_not_seen_by_the_next_attempt(rig: Rig, ear: Ear) -> None:
    for reason, seen in [(Reason.CANCEL, "cancel"), (Reason.STOP, "stop")]:
        attempt = rig.start(deeds.until_asked, path=ear.path)
        ear.hear()
        attempt.interrupt(reason)
        assert rig.end_of(attempt) == Returned(json.dumps(seen))


def test_an_attempt_that_was_interrupted_before_it_began_does_not_run(rig: Rig, ear: Ear) -> None:
    rig.lane.limit = 0
    attempt = rig.start(deeds.hang, path=ear.path)
    attempt.interrupt(Reason.CANCEL)
    rig.lane.limit = 1
    rig.lane.start_more()

    assert isinstance(rig.end_of(attempt), Asked)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_that_are_meant_for_the_worker_do_not_end_an_attempt(
    rig: Rig, ear: Ear, tmp_path: Path, signum: signal.Signals
) -> None:
    words = tmp_path / "words"
    os.mkfifo(words)
    attempt = rig.start(deeds.wait_for_word, path=ear.path, words=str(words))
    os.kill(int(ear.hear()), signum)
    words.write_text("go")

    assert rig.end_of(attempt) == Returned('"go"')


# With a worker ---------------------------------------------------------------------------------------------------


def test_a_job_that_kills_its_process_is_given_up_after_three_and_the_worker_lives_on(q: PgQueue) -> None:
    die = q.task(executor="process")(deeds.die)
    get_pid = q.task(executor="process")(deeds.get_pid)
    with working(q):
        job = q.wait(die.enqueue("killed").id, PATIENCE)
        assert q.result(get_pid.enqueue().id, PATIENCE) != os.getpid()

    assert (job.state, job.crashes, job.attempt) == (State.DISCARDED, 3, 0)
    assert errors_of(job)[-1] == ("WorkerLost", "its process died of signal 9 (SIGKILL) (crash 3)")


def test_a_worker_that_stops_terminates_processes_and_gives_their_jobs_back(q: PgQueue, ear: Ear) -> None:
    hang = q.task(executor="process")(deeds.hang)
    job = hang.enqueue(ear.path)
    with working(q, grace=0.0):
        pid = int(ear.hear())

    found = q.job(job.id)
    assert (found.state, found.crashes, found.attempt) == (State.AVAILABLE, 0, 0)
    assert has_ended(pid)


# Finding the function --------------------------------------------------------------------------------------------


def test_a_function_inside_a_function_is_refused_before_anything_starts() -> None:
    def inner() -> None: ...

    with pytest.raises(ConfigError, match=r"inner.*can't be imported; define the function at the top level"):
        check_importable([Task(inner, sender=deeds.Nobody(), executor="process")])


def test_a_suspect_that_can_not_be_imported_fails_with_that_reason(rig: Rig) -> None:
    def inner() -> None: ...

    ended = rig.run(inner, solo=True)

    assert isinstance(ended, Raised)
    assert isinstance(ended.error, ConfigError)


SCRIPT = """
import os
from tests.engine.test_processes import Rig
def where() -> int:
    return os.getpid() if __name__ == "__mp_main__" else 0
"""


def test_a_task_of_the_main_script_is_found_by_running_it_again_by_another_name(tmp_path: Path) -> None:
    main = f"{SCRIPT}\nif __name__ == '__main__':\n    print(Rig().run(where))"
    done = subprocess.run(script(tmp_path / "main.py", main), capture_output=True, text=True, check=True, timeout=LONG)

    assert done.stdout.startswith("Returned(result='")


def test_a_main_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    main = f"{SCRIPT}\nprint(Rig().run(where))"
    done = subprocess.run(script(tmp_path / "main.py", main), capture_output=True, text=True, check=True, timeout=LONG)

    assert "Raised(" in done.stdout
    assert "under `if __name__" in done.stdout


def test_an_executor_needs_no_main_thread(ear: Ear) -> None:
    pids: list[int] = []

    def elsewhere() -> None:
        rig = Rig()
        pids.append(rig.pid())
        rig.executor.close()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(LONG)

    assert pids
    assert has_ended(pids[0])
