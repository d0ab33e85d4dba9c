"""The program as a whole: quick, helpful, and one line about what goes wrong."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pgqueue.cli.main import COMMANDS, cli
from tests.cli.commands import environment, finish, invoke

NOWHERE = "postgresql://postgres@127.0.0.1:1/nothing"


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from leaves(inner, (*path, name))
    else:
        yield path


LEAVES = list(leaves(cli))


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_explains_itself_with_an_example(path: tuple[str, ...]) -> None:
    result = invoke(*path, "--help")
    assert result.exit_code == 0
    usage, _, rest = result.stdout.partition("\n")
    assert usage.startswith(f"Usage: pgqueue {' '.join(path)}")
    assert f"  pgqueue {' '.join(path)}" in rest


def test_help_lists_what_is_there_and_imports_no_command() -> None:
    program = "import sys; from pgqueue.cli.main import main\ntry: main()\nfinally: print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, "--help"], env=environment(), capture_output=True, text=True, check=True
    )
    *said, modules = done.stdout.splitlines()
    assert [line.split()[0] for line in said[said.index("Commands:") + 1 :]] == list(COMMANDS)
    imported = set(modules.split())
    assert imported.isdisjoint(
        {"alembic", "sqlalchemy", "pgqueue.cli.worker", "pgqueue.cli.jobs", "pgqueue.demo.postgres"}
    )


def test_version() -> None:
    assert invoke("--version").stdout.startswith("pgqueue 0.")


@pytest.mark.parametrize("args", ["", "jobs", "queues", "config"])
def test_a_group_alone_shows_its_help_and_fails(args: str) -> None:
    result = invoke(*args.split())
    assert result.exit_code == 2
    assert "Commands:" in result.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("wrker", "no command is called 'wrker'; did you mean 'worker'?; see `pgqueue --help`"),
        ("jobs lst", "no such command 'lst'"),
        ("jobs list --limt 3", "no such option"),
        ("jobs show", "missing argument 'ID'; see `pgqueue jobs show --help`"),
        ("jobs show many", "invalid value for 'ID': 'many' is no job's id, which is a whole number"),
        ("jobs show 99999999999999999999", "is no job's id"),
        ("jobs list --state runing", "'runing' is not one of 'pending'"),
        ("jobs list --since 5y", "'5y' is no time: write for example 2h, 1d"),
        ("jobs list --limit 0", "0 is not in the range"),
        ("jobs cancel", "name jobs by id, or with filters"),
        ("jobs cancel 1 --kind mail", "name jobs by id, or with filters"),
        ("jobs reschedule 1", "say when: either --delay or --at"),
        ("enqueue mail --delay soon", "'soon' is no duration: write seconds, or for example 30s"),
        ("enqueue mail --at 2026-02-30", "'2026-02-30' is no time"),
        ("enqueue mail {", "JSON: not valid JSON"),
        ("enqueue mail [1]", "JSON [1]: must be a mapping"),
        ("enqueue mail @nothing.json", "can't read 'nothing.json': No such file or directory"),
        ("enqueue mail --metadata 1", "--metadata 1: must be a mapping"),
        ("worker -A app -q mail=x", "-q: queue 'mail': 'x' jobs at once"),
        ("worker -A app --lease 1", "--lease '1': must be a number from 6 to 86400"),
        ("migrate 0042 --sql", "schema version '0042' is unknown"),
        ("jobs list --schema a-b", "--schema: schema 'a-b'"),
        ("stats --config nowhere.yaml", "--config: can't read 'nowhere.yaml'"),
        ("dev --port 0", "0 is not in the range"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do_and_status_2(line: str, said: str) -> None:
    result = invoke(*shlex.split(line), dsn=NOWHERE)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("pgqueue: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr


@pytest.mark.parametrize(
    "line", ["jobs list", "enqueue mail", "queues pause mail", "workers", "migrate", "migrate --check"]
)
def test_a_database_that_does_not_answer_is_one_line_and_status_1(line: str) -> None:
    result = invoke(*line.split(), dsn=NOWHERE)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "port 1 failed: Connection refused; see that it runs, and name it with --dsn or PGQUEUE_DSN" in result.stderr


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m pgqueue config keys | true"
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(click.Group, "main", defect)
    assert isinstance(invoke("stats").exception, ZeroDivisionError)


def test_the_module_is_the_program() -> None:
    done = finish("stats", dsn=NOWHERE)
    assert done.returncode == 1
    assert done.stderr.startswith("pgqueue: no connection to the database")
