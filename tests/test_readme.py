"""What the README shows is run as it stands there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue import PgQueue
from pgqueue.core.states import VERBS, State, Verb

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: title=(\S+))?\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def block(language: str, containing: str) -> str:
    found: str
    (found,) = [text for kind, _, text in BLOCKS if kind == language and containing in text]
    return found


def shell(command: str, cwd: Path, dsn: str) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PGQUEUE_DSN": dsn}
    return subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def commands(text: str) -> list[str]:
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("export ")]


def test_the_start_runs_as_written(empty_db: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(block("python", "def sign_up"), encoding="utf-8")
    *before, worker = commands(block("sh", "pgqueue worker -A app:q"))
    for command in before:
        done = shell(command, tmp_path, empty_db)
        output, _ = done.communicate(timeout=60)
        assert done.returncode == 0, f"{command}: {output}"

    with shell(worker, tmp_path, empty_db) as running, psycopg.connect(empty_db, autocommit=True) as conn:
        history = block("sql", "from pgqueue.jobs order by id desc limit 10")
        deadline = time.monotonic() + 60
        while (rows := conn.execute(history).fetchall())[0][2] != "completed":
            assert time.monotonic() < deadline, rows
            assert running.poll() is None, running.stdout and running.stdout.read()
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=30) == 0
    ((_, kind, state, attempt, result, duration),) = rows
    assert (kind, state, attempt) == ("send_welcome", "completed", 1)
    assert result == {"sent": "welcome to user 1 in de"}
    assert duration.total_seconds() >= 0


def test_the_table_of_verbs_is_the_one_the_code_has() -> None:
    (table,) = re.findall(r"<!-- verbs -->\n(.*?)<!-- /verbs -->", README, re.DOTALL)
    head, _, *rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in table.strip().splitlines()]
    assert head == ["state", *Verb]
    assert {row[0]: row[1:] for row in rows} == {state.value: [VERBS[verb][state] for verb in Verb] for state in State}


def test_each_of_the_ten_questions_has_an_answer(conn: psycopg.Connection, dsn: str) -> None:
    q = PgQueue(dsn)
    try:
        q.enqueue("mail", {"to": "ada"}, tenant="acme", conn=conn)
    finally:
        q.close()
    questions = [part for part in block("sql", "-- 10.").split(";\n") if part.strip()]
    assert len(questions) == 10
    for question in questions:
        conn.execute(question.encode())
    assert len(conn.execute(questions[8].encode()).fetchall()) == 1


def test_the_task_shown_can_be_enqueued(monkeypatch: pytest.MonkeyPatch, conn: psycopg.Connection, dsn: str) -> None:
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    shown: dict[str, object] = {"__name__": "shown"}
    exec(compile(block("python", "def import_orders"), "README.md", "exec"), shown)  # noqa: S102 - our own text
    task = shown["import_orders"]
    job = task.using(conn).enqueue("orders.csv")  # type: ignore[attr-defined]
    assert conn.execute("select kind, queue from pgqueue.jobs where id = %s", [job.id]).fetchone() == (
        "import_orders",
        "import",
    )


def test_the_resumable_job_shown_resumes(monkeypatch: pytest.MonkeyPatch, fresh_db: str, tmp_path: Path) -> None:
    monkeypatch.setenv("PGQUEUE_DSN", fresh_db)
    (tmp_path / "lines.txt").write_text("one\ntwo\nthree\n", encoding="utf-8")
    shown: dict[str, Any] = {"__name__": "shown"}
    exec(compile(block("python", "def import_lines"), "README.md", "exec"), shown)  # noqa: S102 - our own text
    q: PgQueue = shown["q"]
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        conn.execute("create table line (number int primary key, text text check (text <> E'three\\n'))")
        id = shown["import_lines"].using(max_attempts=2).enqueue(str(tmp_path / "lines.txt")).id
        worker = q.worker("import")
        worker.start()
        while q.job(id).state != "retryable":
            time.sleep(0.01)
        stored = q.job(id).metadata["pgqueue"]
        assert stored == {"done": {"count": 3}, "cursor": {"load": 2}}
        conn.execute("alter table line drop constraint line_text_check")
        q.retry(id)
        assert q.result(id) == 3
        worker.close()
        assert conn.execute("select count(*) from line").fetchone() == (3,)
        assert q.job(id).metadata["pgqueue"] == {"data": {"progress": {"state": "words", "data": {"at": "c"}}}}
    q.close()


def test_the_local_run_shown_resumes(fresh_db: str, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\ntwo\nthree\n", encoding="utf-8")
    (tmp_path / "app.py").write_text(block("python", "def import_lines"), encoding="utf-8")
    (command,) = commands(block("sh", "--local"))
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        conn.execute("create table line (number int primary key, text text check (text <> E'three\\n'))")
        for status in (1, 0):
            done = shell(command, tmp_path, fresh_db)
            output, _ = done.communicate(timeout=60)
            assert done.returncode == status, output
            conn.execute("alter table line drop constraint if exists line_text_check")
        assert output == "3\n"
        assert conn.execute("select count(*) from line").fetchone() == (3,)
        assert conn.execute("select count(*) from pgqueue.checkpoint").fetchone() == (0,)


def test_each_verb_shown_works(conn: psycopg.Connection, dsn: str) -> None:
    q = PgQueue(dsn)
    text = "\n".join(line.partition("#")[0] for line in block("python", "q.cancel(id)").splitlines())
    calls = [call.strip() for call in re.split(r"[;\n]", text) if call.strip()]
    assert len(calls) > 10
    try:
        for call in calls:
            id = q.enqueue("mail", {}, conn=conn).id
            if "wait" in call or "result" in call:
                conn.execute("update pgqueue.job set status = 1, finalized_at = now() where id = %s", [id])
            eval(call, {"q": q, "id": id})  # noqa: S307 - our own text
    finally:
        q.close()
