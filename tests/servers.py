"""The PostgreSQL servers that the tests run on.

Guarantees: one server of each version per test run, shared by all xdist workers, started when first needed and gone
with the run, even a killed one; data lies in memory where there is room.
Never: a server that somebody else uses, unless PGQUEUE_TEST_DSN names it; then only databases of our own in it.

PGQUEUE_TEST_DSN=postgresql://...   use that server and no other; its role has to be a superuser
PGQUEUE_REQUIRE_PG15=1              a missing PostgreSQL 15 is an error instead of a skip
PGQUEUE_PG_BIN=/path/to/bin         the newest server's programs
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgqueue.demo.postgres import OLDEST, EmbeddedServer, find_binaries
from pgqueue.errors import MissingExtra

GIVEN_DSN = os.environ.get("PGQUEUE_TEST_DSN")
REQUIRE_OLDEST = os.environ.get("PGQUEUE_REQUIRE_PG15") == "1"
PREFIX = "pgqueue-test-"
ROOM = 2 << 30


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server listens; also what pytest-postgresql expects of the fixture it depends on."""

    host: str
    port: int
    user: str
    password: str | None
    options: str = ""
    maintenance_dbname: str = "postgres"
    template_dbname: str | None = None


class Servers:
    """The servers of one test run, by role: "newest" and "oldest"."""

    def __init__(self, ports: dict[str, int] | None = None) -> None:
        self._given_ports = ports or {}
        self._running: dict[str, EmbeddedServer] = {}
        self._open = contextlib.ExitStack()

    def get(self, role: str) -> Server:
        if GIVEN_DSN:
            return _given(GIVEN_DSN)
        if role in self._given_ports:
            return Server(EmbeddedServer.host, self._given_ports[role], EmbeddedServer.user, None)
        if role not in self._running:
            self._running[role] = self._start(role)
        return Server(EmbeddedServer.host, self._running[role].port, EmbeddedServer.user, None)

    def start_all(self) -> dict[str, int]:
        """The ports of all servers, started here on behalf of xdist's workers."""
        return {} if GIVEN_DSN else {role: self.get(role).port for role in versions()}

    def stop(self) -> None:
        self._open.close()

    def _start(self, role: str) -> EmbeddedServer:
        home = self._open.enter_context(_home())
        return self._open.enter_context(EmbeddedServer(home / "server", version=versions()[role], fast=True))


def versions() -> dict[str, int]:
    """The versions that this run covers, by role; nothing if there is no PostgreSQL at all."""
    if GIVEN_DSN:
        return {"newest": _given_version(GIVEN_DSN)}
    try:
        newest = find_binaries().version
    except MissingExtra:
        return {}
    return {"newest": newest} | ({"oldest": OLDEST} if newest != OLDEST and (_has_oldest() or REQUIRE_OLDEST) else {})


def why_not_oldest() -> str | None:
    """Why this run doesn't cover the oldest version; None if it does."""
    if OLDEST in versions().values():
        return None
    if GIVEN_DSN:
        return f"PGQUEUE_TEST_DSN names the only server to test on: PostgreSQL {OLDEST} not covered"
    return f"PostgreSQL {OLDEST} is not installed here, its tests did not run: install postgresql-{OLDEST}"


def _has_oldest() -> bool:
    try:
        find_binaries(OLDEST)
    except MissingExtra:
        return False
    return True


def _given(dsn: str) -> Server:
    parts = conninfo_to_dict(dsn)
    password = parts.get("password")
    return Server(
        host=str(parts.get("host", EmbeddedServer.host)),
        port=int(str(parts.get("port", 5432))),
        user=str(parts.get("user", EmbeddedServer.user)),
        password=None if password is None else str(password),
        maintenance_dbname=str(parts.get("dbname", "postgres")),
    )


def _given_version(dsn: str) -> int:
    with psycopg.connect(dsn) as conn:
        return conn.info.server_version // 10000


@contextlib.contextmanager
def _home() -> Iterator[Path]:
    """A directory for a server, removed at the end; first removes those of runs that were killed."""
    base = _roomiest()
    _sweep(base)
    home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    home.chmod(0o711)  # the server's account has to pass through
    with _locked(home):
        try:
            yield home
        finally:
            shutil.rmtree(home, ignore_errors=True)


def _roomiest() -> Path:
    """Memory if there is enough of it, and programs copied there may run; else the temporary directory."""
    shm = Path("/dev/shm")  # noqa: S108  mkdtemp makes an unguessable name in it
    if shm.is_dir() and os.access(shm, os.W_OK):
        volume = os.statvfs(shm)
        if volume.f_bavail * volume.f_frsize > ROOM and not volume.f_flag & os.ST_NOEXEC:
            return shm
    return Path(tempfile.gettempdir())


def _sweep(base: Path) -> None:
    for left in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), _locked(left):  # not ours, or its run is alive: leave it
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Hold the lock that says that a run lives; the kernel drops it when the run is killed.

    raises  BlockingIOError if somebody else holds it
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl  # Unix only

    with (home / "alive").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
