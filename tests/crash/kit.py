"""Real processes and real signals: workers to kill, a ledger of what they did, and a proxy that loses answers."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from pgqueue.demo import postgres

ROOT = Path(postgres.__file__).parents[2]
PATIENCE = 60.0
LEASE = 2.0  # seconds
QUICKLY: dict[str, Any] = {"lease": LEASE, "beat": 0.3}


class Fleet:
    """The worker processes of one test, and what their tasks noted."""

    def __init__(self, dsn: str, home: Path) -> None:
        self.dsn = dsn
        self.home = home
        self.ledger = home / "ledger"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *, dsn: str | None = None, wait: bool = True, **settings: Any) -> subprocess.Popen[bytes]:
        """A worker process, with QUICKLY unless told otherwise; returns when it claims jobs."""
        number = len(self.processes)
        environment = os.environ | {
            "CRASH_DSN": dsn or self.dsn,
            "CRASH_LEDGER": str(self.ledger),
            "CRASH_SETTINGS": json.dumps(QUICKLY | {"name": f"w{number}"} | settings),
        }
        with (self.home / f"log{number}").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.worker_app"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment,
            )
        self.processes.append(process)
        if wait:
            self.until(lambda: "takes from" in self.log(number), f"worker {number} takes jobs")
        return process

    def log(self, number: int) -> str:
        return (self.home / f"log{number}").read_text(errors="replace")

    def lines(self) -> list[tuple[int, int, int, str]]:
        """(pid, job, attempt, event) as they were noted."""
        if not self.ledger.exists():
            return []
        whole, _, _ = self.ledger.read_text().rpartition("\n")  # what is being written has no end of line yet
        rows = (line.split() for line in whole.splitlines())
        return [(int(pid), int(job), int(attempt), event) for pid, job, attempt, event in rows]

    def count(self, event: str) -> Counter[int]:
        """How often each job noted this."""
        return Counter(job for _, job, _, what in self.lines() if what == event)

    def pids(self, event: str) -> dict[int, list[int]]:
        """The processes in which each job noted this, in order."""
        found: dict[int, list[int]] = defaultdict(list)
        for pid, job, _, what in self.lines():
            if what == event:
                found[job].append(pid)
        return found

    def open_gate(self) -> None:
        """Let the holding tasks end."""
        Path(f"{self.ledger}.open").touch()

    def unblock(self) -> None:
        """Let event loops go that a task has stopped."""
        Path(f"{self.ledger}.unblock").touch()

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until `condition` holds; show the logs if it never does."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"never: {what}\n{self.story()}")
            time.sleep(0.01)

    def story(self) -> str:
        return "\n".join(f"--- w{n}\n{self.log(n)[-3000:]}" for n in range(len(self.processes)))

    def noted(self, event: str, times: int = 1) -> None:
        """Wait until tasks have noted this so often."""
        self.until(lambda: sum(self.count(event).values()) >= times, f"{event} x {times}")

    def ends(self, process: subprocess.Popen[bytes], seconds: float = PATIENCE) -> int:
        """The exit code of a worker that is to end by itself."""
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end\n{self.story()}") from None

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


class Bench:
    """The database of a test, as its admin sees it. Comes back after a restart."""

    def __init__(self, dsn: str, fleet: Fleet) -> None:
        self.dsn = dsn
        self.fleet = fleet
        self._conn: psycopg.Connection | None = None

    def do(self, text: str, *params: object) -> psycopg.Cursor:
        """Run any SQL."""
        if self._conn is None or self._conn.closed:
            self._conn = psycopg.connect(self.dsn, autocommit=True)
        return self._conn.execute(text, params or None)

    def value(self, query: str, *params: object) -> object:
        """The one value that `query` gives."""
        row = self.do(query, *params).fetchone()
        return None if row is None else row[0]

    def enqueue_many(self, kind: str, count: int) -> None:
        """Jobs with the arguments {"n": 0} to {"n": count - 1}."""
        self.do(
            "select count(pgqueue.enqueue(%s, jsonb_build_object('n', n))) from generate_series(0, %s - 1) n",
            kind,
            count,
        )

    def until(self, query: str, *params: object) -> object:
        """What `query` gives, once that is true; an outage is waited out."""
        found: list[object] = []

        def look() -> bool:
            with contextlib.suppress(psycopg.OperationalError):
                found[:] = [self.value(query, *params)]
            return bool(found and found[0])

        self.fleet.until(look, f"{query} {params}")
        return found[0]

    def all_completed(self, count: int) -> None:
        """Wait until so many jobs are completed; none of another outcome, none held, each ended once."""
        self.until("select count(*) = %s from pgqueue.job where status = 1", count)
        assert self.value("select count(*) from pgqueue.job where status <> 1") == 0
        assert self.value("select sum(jobs) from pgqueue.tally where state = 'completed'") == count
        assert self.value("select count(*) from ends group by job_id having count(*) > 1") is None
        assert self.value("select count(*) from ends") == count
        self.until("select count(*) = 0 from pgqueue.lease where ids <> '{}'")

    def watch_ends(self) -> None:
        """Write down every change of a job's status from now on."""
        self.do(
            """create table ends (job_id bigint, claim int, status int, was int);
            create function note_end() returns trigger language plpgsql as $$ begin
              insert into public.ends values (new.id, new.claim, new.status, old.status); return null; end $$;
            create trigger note_end after update on pgqueue.job for each row
              when (old.status is distinct from new.status) execute function note_end()"""
        )

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()


@dataclass(slots=True)
class Cut:
    """What is to be done to the connections in a role."""

    after: bool
    skip: int


@dataclass(slots=True)
class Connection:
    """One connection through the proxy."""

    role: str = ""
    abandoned: bool = False


class Proxy:
    """Between workers and PostgreSQL: knows the connections by their role, cuts and freezes them at will.

    A connection's role is the last word of its application_name: claim, complete, heartbeat, listen.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._frozen: set[str] = set()
        self._held: set[str] = set()
        self._thawed = threading.Condition()
        self._cuts: dict[str, Cut] = {}
        self.cut_done: dict[str, threading.Event] = defaultdict(threading.Event)
        self._sockets: list[socket.socket] = []
        self._connections: list[Connection] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self, role: str) -> None:
        """Pass nothing on, either way, until `thaw`."""
        self._frozen.add(role)

    def hold(self, role: str) -> None:
        """Pass no answers on until `thaw`; the server gets what is sent to it."""
        self._held.add(role)

    def thaw(self, role: str) -> None:
        with self._thawed:
            self._frozen.discard(role)
            self._held.discard(role)
            self._thawed.notify_all()

    def abandon(self, role: str) -> None:
        """Pass nothing on any more for the connections that are open in this role; new ones work."""
        for connection in self._connections:
            connection.abandoned = connection.abandoned or connection.role == role

    def cut(self, role: str, *, after: bool, skip: int = 0) -> None:
        """Close the connection at its next statement: before it is passed on, or after the server has committed it.

        skip  so many statements before
        """
        self.cut_done[role].clear()
        self._cuts[role] = Cut(after, skip)

    def close(self) -> None:
        for sock in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._target) as server:
            self._sockets += [client, server]
            self._pass_on(client, server)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        connection = Connection()
        self._connections.append(connection)
        ready = selectors.DefaultSelector()
        ready.register(client, selectors.EVENT_READ, server)
        ready.register(server, selectors.EVENT_READ, client)
        with ready:
            while True:
                for key, _ in ready.select():
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    if source is client and not connection.role and b"pgqueue " in data:
                        connection.role = data.split(b"pgqueue ")[1].split(b"\0")[0].decode()
                    with self._thawed:
                        while connection.role in (self._frozen if source is client else self._frozen | self._held):
                            self._thawed.wait()
                    if connection.abandoned:
                        continue
                    cut = self._cuts.get(connection.role) if source is client else None
                    if cut is not None and cut.skip > 0:
                        cut.skip -= 1
                    elif cut is not None:
                        del self._cuts[connection.role]
                        if cut.after:
                            server.sendall(data)
                            self._await_answer(server)
                        self.cut_done[connection.role].set()
                        return
                    key.data.sendall(data)

    def _await_answer(self, server: socket.socket) -> None:
        answer = b""
        while b"Z\0\0\0\x05" not in answer:  # ReadyForQuery: whatever it was is committed
            more = server.recv(1 << 16)
            if not more:
                return
            answer += more


@contextlib.contextmanager
def every(seconds: float, action: Callable[[], object]) -> Iterator[list[object]]:
    """Do something again and again, in a thread, for the length of the block; what it returned."""
    stop = threading.Event()
    results: list[object] = []

    def loop() -> None:
        while not stop.wait(seconds):
            with contextlib.suppress(psycopg.Error):
                results.append(action())

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield results
    finally:
        stop.set()
        thread.join()


def freeze(process: subprocess.Popen[bytes]) -> None:
    """SIGSTOP, and wait until the process has stopped."""
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)


__all__ = ["LEASE", "PATIENCE", "Bench", "Fleet", "Proxy", "every", "freeze"]
