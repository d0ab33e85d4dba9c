"""What an example's docstring tells to type is typed, in a shell, and all jobs complete."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from examples.import_orders import TABLES
from tests.cli.commands import PATIENCE, REPOSITORY, environment
from tests.engine.kit import until

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
PUBLIC = {"pgqueue", "psycopg", "examples", *sys.stdlib_module_names}
# What the reader has, where the example doesn't make it.
GIVEN = {
    "backup": "create table event (id int primary key, note text); insert into event values (1, 'one'), (2, null)",
    "prune": "create table event (created_at timestamptz); insert into event select now() - n * interval '1 day'"
    " from generate_series(80, 100) n",
    "import_orders": TABLES,
}
RESULTS: dict[str, list[object]] = {
    "backup": [{"tables": 1, "rows": 2, "changed": []}],
    "prune": [11],
    "import_orders": [{"line": 5001, "imported": 4995, "rejected": 5}],
    "restore": [2, 2],
}


@pytest.fixture
def template(request: pytest.FixtureRequest) -> object:
    """Overrides the one that runs every test on each server."""
    return request.getfixturevalue("newest_template")


def commands(example: str) -> list[str]:
    doc = ast.get_docstring(ast.parse((REPOSITORY / "examples" / f"{example}.py").read_text(encoding="utf-8"))) or ""
    found = [line.strip() for line in re.findall(r"^    (\S.*)$", doc, re.MULTILINE)]
    return [line for line in found if not line.startswith("export ")]


class Shell:
    """In a directory of its own, which has the examples as a checkout has."""

    def __init__(self, home: Path, dsn: str) -> None:
        (home / "examples").symlink_to(REPOSITORY / "examples")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.home, self.environment = home, environment(dsn, PATH=path)

    def start(self, command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=self.home, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def type_in(self, example: str, admin: psycopg.Connection, replacing: tuple[str, str] = ("", "")) -> list[object]:
        """Run the commands of an example; the results of all jobs there are."""
        *before, worker = [line.replace(*replacing) for line in commands(example)]
        for command in before:
            done = self.start(command)
            output, _ = done.communicate(timeout=PATIENCE)
            assert done.returncode == 0, f"{command}: {output}"
        with self.start(worker) as running:
            try:
                until(admin, "select bool_and(state = 'completed') from pgqueue.jobs")
            finally:
                running.send_signal(signal.SIGTERM)
                output, _ = running.communicate(timeout=PATIENCE)
        assert running.returncode == 0, output
        return [result for (result,) in admin.execute("select result from pgqueue.jobs order by id").fetchall()]


@pytest.mark.parametrize("example", ["backup", "import_orders", "prune"])
def test_the_commands_do_what_is_said(admin: psycopg.Connection, source: str, tmp_path: Path, example: str) -> None:
    admin.execute(GIVEN[example])
    results = Shell(tmp_path, source).type_in(example, admin)
    for result in results:
        if isinstance(result, dict):
            result.pop("offset", None)
    assert results == RESULTS[example]


def test_so_do_those_that_need_a_backup(
    admin: psycopg.Connection, copy: psycopg.Connection, source: str, tmp_path: Path
) -> None:
    admin.execute(GIVEN["backup"])
    copy.execute("create table event (id int primary key, note text)")
    shell = Shell(tmp_path, source)
    shell.type_in("backup", admin)
    assert shell.type_in("restore", admin, ("dbname=copy", copy.info.dsn)) == RESULTS["backup"] + RESULTS["restore"]
    assert copy.execute("select * from event order by id").fetchall() == [(1, "one"), (2, None)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_uses_public_names_only(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            assert all(name.name in PUBLIC for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module in ("pgqueue", "psycopg") or (node.module or "").split(".")[0] in PUBLIC - {"pgqueue"}
