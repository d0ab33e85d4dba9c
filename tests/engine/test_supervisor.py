"""A supervisor with its workers: real processes that say what happens to them, and really die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from pgqueue.engine.supervisor import REFUSALS, Pace, Slot
from tests.engine.waiting import LONG, Ear, has_ended

ROOT = Path(__file__).parents[2]

SUPERVISOR = """
import logging, sys
sys.path.insert(0, {root!r})
from pgqueue.engine.supervisor import Pace, Supervisor
logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
pace = Pace(first={first}, steady={steady})
sys.exit(Supervisor({argv!r}, processes={processes}, pace=pace).run())
"""

PLAIN = """
import os, signal, sys
ear = os.open(sys.argv[1], os.O_WRONLY)
def say(what):
    os.write(ear, f"{os.environ['PGQUEUE_WORKER_NUMBER']} {what}\\n".encode())
heeded = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
signal.pthread_sigmask(signal.SIG_BLOCK, heeded)
say(os.getpid())
def next_signal():
    name = signal.Signals(signal.sigwait(heeded)).name
    say(name)
    return name
"""
OBEDIENT = f"{PLAIN}\nwhile next_signal() != 'SIGTERM': pass"
BUSY = f"{PLAIN}\nnext_signal(); next_signal()"
DEAF = f"{PLAIN}\nwhile True: next_signal()"
REFUSING = f"{PLAIN}\nsys.exit('no such option')"
FIRST_REFUSES = f"{PLAIN}\nif os.environ['PGQUEUE_WORKER_NUMBER'] == '1': sys.exit(1)\nnext_signal()"
FORGETTING = f"{PLAIN}\nif os.fork() == 0:\n    say(os.readlink('/proc/self'))\n    os._exit(0)\nos._exit(0)"


@dataclass
class Run:
    """A supervisor that runs, what its workers say, and what it logs."""

    process: subprocess.Popen[str]
    ear: Ear
    log: Ear

    def started(self, count: int) -> dict[str, int]:
        """Number -> process id of the next so many workers that start."""
        heard = [self.ear.hear().split() for _ in range(count)]
        return {number: int(pid) for number, pid in heard}

    def logged(self, words: str) -> str:
        """The next line of its log that has these words."""
        while words not in (line := self.log.hear()):
            pass
        return line

    def tell(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def status(self) -> int:
        return self.process.wait(LONG)


@contextmanager
def supervised(
    tmp_path: Path, worker: str, *, processes: int = 2, first: float = 0.01, steady: float = 0.0,
    prefix: Sequence[str] = (),
) -> Iterator[Run]:  # fmt: skip
    ear, log = Ear(tmp_path / "ear"), Ear(tmp_path / "log")
    argv = [sys.executable, "-c", worker, ear.path]
    program = SUPERVISOR.format(root=str(ROOT), argv=argv, processes=processes, first=first, steady=steady)
    with open(log.path, "w") as stderr:
        process = subprocess.Popen([*prefix, sys.executable, "-c", program], stderr=stderr, text=True)
    try:
        yield Run(process, ear, log)
    finally:
        with suppress(ProcessLookupError):
            for _ in range(3):
                process.send_signal(signal.SIGTERM)
        process.wait(LONG)
        ear.close()
        log.close()


def test_it_starts_as_many_as_told_and_tells_each_its_number(tmp_path: Path) -> None:
    with supervised(tmp_path, OBEDIENT, processes=3) as run:
        assert sorted(run.started(3)) == ["1", "2", "3"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_stops_all_in_order(tmp_path: Path, signum: signal.Signals) -> None:
    with supervised(tmp_path, OBEDIENT) as run:
        run.started(2)
        run.tell(signum)

        assert sorted([run.ear.hear(), run.ear.hear()]) == ["1 SIGTERM", "2 SIGTERM"]
        assert run.status() == 0


def test_the_second_signal_is_passed_on_too(tmp_path: Path) -> None:
    with supervised(tmp_path, BUSY, processes=1) as run:
        run.started(1)
        run.tell(signal.SIGTERM)
        assert run.ear.hear() == "1 SIGTERM"
        run.tell(signal.SIGTERM)
        assert run.ear.hear() == "1 SIGTERM"

        assert run.status() == 0


def test_the_third_signal_kills(tmp_path: Path) -> None:
    with supervised(tmp_path, DEAF, processes=1) as run:
        (pid,) = run.started(1).values()
        for _ in range(2):
            run.tell(signal.SIGTERM)
            assert run.ear.hear() == "1 SIGTERM"
        run.tell(signal.SIGTERM)

        assert run.status() == 1
        assert has_ended(pid)


def test_a_worker_that_was_killed_is_replaced_and_the_log_says_what_killed_it(tmp_path: Path) -> None:
    with supervised(tmp_path, OBEDIENT) as run:
        first = run.started(2)
        os.kill(first["2"], signal.SIGKILL)

        assert "worker 2" in run.logged("died of signal 9 (SIGKILL)")
        ((number, pid),) = run.started(1).items()
        assert number == "2"
        assert pid not in first.values()


def test_a_configuration_error_ends_it(tmp_path: Path) -> None:
    with supervised(tmp_path, REFUSING, steady=LONG) as run:
        assert run.status() == 1
        assert "error in the configuration" in run.logged("no worker starts")


def test_a_program_that_does_not_exist_is_a_configuration_error(tmp_path: Path) -> None:
    program = SUPERVISOR.format(root=str(ROOT), argv=["/no/such"], processes=1, first=0.01, steady=LONG)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG)

    assert done.returncode == 1
    assert "/no/such" in done.stderr


def test_one_worker_that_does_not_start_does_not_end_the_others(tmp_path: Path) -> None:
    with supervised(tmp_path, FIRST_REFUSES, steady=LONG) as run:
        heard = run.started(1) | run.started(1)
        for _ in range(REFUSALS + 1):
            heard |= run.started(1)
        run.tell(signal.SIGTERM)

        while run.ear.hear() != "2 SIGTERM":
            pass
        assert "2" in heard


def test_workers_end_in_order_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    with supervised(tmp_path, OBEDIENT) as run:
        pids = run.started(2)
        run.tell(signal.SIGKILL)

        assert sorted([run.ear.hear(), run.ear.hear()]) == ["1 SIGTERM", "2 SIGTERM"]
        assert all(has_ended(pid) for pid in pids.values())


def test_sighup_replaces_one_after_the_other(tmp_path: Path) -> None:
    with supervised(tmp_path, OBEDIENT) as run:
        before = run.started(2)
        run.tell(signal.SIGHUP)
        run.logged("SIGHUP")
        logged = [run.log.hear() for _ in range(4)]
        heard = [run.ear.hear().split() for _ in range(4)]
        run.tell(signal.SIGTERM)

        assert [line.split()[1:3] for line in logged] == [["worker", number] for number in "1122"]
        assert ["started" in line for line in logged] == [False, True, False, True]
        assert {what for _, what in heard}.isdisjoint(str(pid) for pid in before.values())
        assert run.status() == 0


def test_sigquit_is_passed_on_and_ends_nothing(tmp_path: Path) -> None:
    with supervised(tmp_path, OBEDIENT, processes=1) as run:
        run.started(1)
        run.tell(signal.SIGQUIT)
        assert run.ear.hear() == "1 SIGQUIT"
        run.tell(signal.SIGTERM)

        assert run.status() == 0


def test_ctrl_c_in_a_terminal_reaches_workers_once(tmp_path: Path) -> None:
    """The terminal signals the whole process group of the supervisor; the workers are not in it."""
    with supervised(tmp_path, OBEDIENT, processes=1, prefix=["setsid", "--wait"]) as run:
        (pid,) = run.started(1).values()

        assert os.getpgid(pid) == pid


def is_reaped(pid: int) -> bool:
    """Wait until a process is not even a zombie; nothing tells of that."""
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        os.sched_yield()
    return False


def test_as_process_1_it_reaps_orphans(tmp_path: Path) -> None:
    unshare = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode != 0:
        pytest.skip("no right to make a process namespace")
    with supervised(tmp_path, FORGETTING, processes=1, prefix=unshare) as run:
        run.started(1)
        (orphan,) = run.started(1).values()  # its number outside
        try:
            assert is_reaped(orphan)
        finally:
            run.process.kill()  # unshare listens to nothing else; the supervisor goes with it


def test_the_pause_before_a_restart_doubles_until_a_worker_lived_long() -> None:
    pace = Pace(first=1.0, cap=4.0, steady=5.0, reset=60.0)
    slot = Slot(1, pace)
    pauses = []
    for lived in (0.0, 0.0, 0.0, 0.0, 61.0, 0.0):
        slot.started_at = 1000.0
        slot.ended(-signal.SIGKILL, 1000.0 + lived)
        pauses.append(slot.start_at - 1000.0 - lived)

    assert pauses == [1.0, 2.0, 4.0, 4.0, 1.0, 2.0]
    assert slot.refusals == 0


def test_only_errors_soon_after_the_start_are_refusals() -> None:
    slot = Slot(1, Pace(steady=5.0))
    for code, lived, refusals in [(1, 0.1, 1), (2, 0.1, 2), (-9, 0.1, 0), (1, 0.1, 1), (1, 6.0, 0), (0, 0.1, 0)]:
        slot.started_at = 0.0
        slot.ended(code, lived)
        assert slot.refusals == refusals
