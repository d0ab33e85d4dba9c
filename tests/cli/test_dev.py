"""`pgqueue dev`: a server of one's own."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgqueue.db.schema import check
from pgqueue.demo.postgres import find_binaries
from pgqueue.errors import MissingExtra
from tests.cli.commands import Running, finish, invoke

PYTHON = sys.executable


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that the server's account may enter, unlike tmp_path."""
    try:
        find_binaries()
    except MissingExtra as error:
        pytest.skip(str(error))
    directory = Path(tempfile.mkdtemp(prefix="pgqueue-dev-"))
    directory.chmod(0o711)
    yield directory / "server"
    shutil.rmtree(directory)


def test_it_serves_until_told_to_stop_and_keeps_its_data_and_its_address(home: Path) -> None:
    with Running("dev", "--directory", str(home), "--json") as dev:
        dsn: str = json.loads(dev.wait_for("dsn"))["dsn"]
        assert check(dsn).is_current
        job = finish("enqueue", "mail", dsn=dsn).stdout

        # A second one uses the first one's server.
        lister = finish("dev", "--directory", str(home), "--", PYTHON, "-m", "pgqueue", "jobs", "list", "--json")
        assert json.loads(lister.stdout)["id"] == int(job)
        refused = finish("dev", "--directory", str(home), "--fresh")
        assert refused.returncode == 2
        assert "stop it first" in refused.stderr
        dev.send(signal.SIGTERM)
        assert dev.ended() == 0
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)

    say = "import os; print(os.environ['PGQUEUE_DSN'] == os.environ['DATABASE_URL'] == '{}')"
    again = finish("dev", "--directory", str(home), "--", PYTHON, "-c", say.format(dsn))
    assert (again.returncode, again.stdout) == (0, "True\n")

    count = (PYTHON, "-m", "pgqueue", "stats", "--json")
    assert json.loads(finish("dev", "--directory", str(home), "--", *count).stdout)["available"] == 1
    fresh = finish("dev", "--directory", str(home), "--fresh", "--", *count)
    assert json.loads(fresh.stdout)["available"] == 0


def test_it_ends_as_the_command_does(home: Path) -> None:
    assert finish("dev", "--directory", str(home), "--", PYTHON, "-c", "raise SystemExit(7)").returncode == 7
    missing = finish("dev", "--directory", str(home), "--", "no-such-program")
    assert missing.returncode == 2
    assert missing.stderr == "pgqueue: can't run 'no-such-program': No such file or directory\n"
    sleeper = "import time; print('asleep', flush=True); time.sleep(600)"
    with Running("dev", "--directory", str(home), "--", PYTHON, "-c", sleeper) as dev:
        dev.wait_for("asleep")
        dev.send(signal.SIGTERM)
        assert dev.ended() == 128 + signal.SIGTERM


def test_fresh_removes_no_directory_that_is_not_a_servers(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")
    result = invoke("dev", "--directory", str(tmp_path), "--fresh")
    assert result.exit_code == 2
    assert "does not look like a server's directory" in result.stderr
    assert (tmp_path / "precious").exists()
