"""Where the jobs of one measurement are: a fresh database on the server of the run, or a Redis server.

Guarantees: each is gone at the end of its block. Never: touches a database it did not make.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from benchmarks.harness import Bench
from benchmarks.peers.interface import Configuration, Environment, Unavailable
from benchmarks.peers.processes import install

_numbers = itertools.count(1)
REDIS_START_SECONDS = 10.0


class Database:
    """A database of its own, with the peer's schema in it."""

    def __init__(self, target: str, unfinished: str) -> None:
        self.target = target
        self._unfinished = unfinished
        self._conn = psycopg.connect(target, autocommit=True)

    def unfinished(self, jobs: int) -> int:
        row = self._conn.execute(self._unfinished.encode(), {"jobs": jobs}).fetchone()
        assert row is not None
        return int(row[0])

    def settle(self) -> None:
        """Statistics, and no checkpoint soon."""
        self._conn.execute("analyze")
        self._conn.execute("checkpoint")

    def close(self) -> None:
        self._conn.close()


@contextlib.contextmanager
def database(bench: Bench, environment: Environment, way: Configuration, *, unfinished: str) -> Iterator[Database]:
    """An empty database, then the peer's own installation."""
    name = f"pgqueue_peers_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(bench.dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("create database {} template template0").format(sql.Identifier(name)))
        try:
            target = url(bench.dsn, name)
            install(environment, target, way)
            with contextlib.closing(Database(target, unfinished)) as made:
                yield made
        finally:
            conn.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def url(dsn: str, dbname: str) -> str:
    """The address of a database as a URL, which every driver understands."""
    parts = {name: quote(str(value), safe="") for name, value in conninfo_to_dict(dsn).items() if value is not None}
    parts.pop("dbname", None)
    secret = f":{parts.pop('password')}" if "password" in parts else ""
    user = f"{parts.pop('user')}{secret}@" if "user" in parts else ""
    where = ""
    if not parts.get("host", "").startswith("%2F"):  # else it's a directory with a socket, and goes with the rest
        host = parts.pop("host", "localhost").replace("%3A", ":")
        where = (f"[{host}]" if ":" in host else host) + (f":{parts.pop('port')}" if "port" in parts else "")
    rest = "&".join(f"{name}={value}" for name, value in parts.items())
    return f"postgresql://{user}{where}/{quote(dbname, safe='')}" + f"?{rest}" * bool(rest)


class Redis:
    """A Redis server of its own; asked in its own protocol, so that no driver is needed here."""

    def __init__(self, port: int, queue: str) -> None:
        self.target = f"redis://127.0.0.1:{port}/0"
        self._queue = queue
        self._conn = socket.create_connection(("127.0.0.1", port))
        self._answers = self._conn.makefile("rb")

    def unfinished(self, jobs: int) -> int:
        """Queued, or handed to a worker and not acknowledged."""
        return self._ask("LLEN", self._queue) + self._ask("HLEN", "unacked")

    def settle(self) -> None:
        """Redis needs nothing."""

    def close(self) -> None:
        self._answers.close()
        self._conn.close()

    def _ask(self, *words: str) -> int:
        request = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        self._conn.sendall(request.encode())
        answer = self._answers.readline()
        if not answer.startswith(b":"):
            raise RuntimeError(f"Redis answered {answer!r} to {' '.join(words)}")
        return int(answer[1:])


@contextlib.contextmanager
def redis(queue: str, options: Sequence[str]) -> Iterator[Redis]:
    """A server with an empty directory, on a free port."""
    home = Path(tempfile.mkdtemp(prefix="pgqueue-redis-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(home), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with contextlib.closing(_connected(port, queue)) as made:
            yield made
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _connected(port: int, queue: str) -> Redis:
    deadline = time.monotonic() + REDIS_START_SECONDS
    while True:
        try:
            return Redis(port, queue)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def redis_version() -> str:
    """Of the server on this machine. Raises Unavailable."""
    if shutil.which("redis-server") is None:
        raise Unavailable("Celery needs a Redis server: apt-get install redis-server")
    said = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
    return next((word[2:] for word in said.split() if word.startswith("v=")), said.strip())
