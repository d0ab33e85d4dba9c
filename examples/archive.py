"""The directory that examples/backup.py writes and examples/restore.py reads: a file per table, and a manifest.

A file has the rows in COPY's text format and nothing else, so psql's copy reads it as well. Its stamp says what it has
to contain, whatever the order of rows. Guarantees: what a cursor says of a file is on disk before; a file that isn't as
its cursor or the manifest says is an error that names it, never taken for good; the manifest is there only if all files
are whole; one attempt at a time writes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from pgqueue import Context, Discard, Snooze

CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What a text of rows contains.

    digest  the sum of the SHA-256 of all rows: the same in whatever order they come
    """

    rows: int
    size_bytes: int
    digest: str


NOTHING = Stamp(rows=0, size_bytes=0, digest=f"{0:064x}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A table in the archive: the cursor while it is copied, then its entry in the manifest.

    last  the primary key of the last row so far, as text; None before the end of the first batch, and after the last
    """

    table: str
    columns: list[str]
    key: list[str]
    last: list[str] | None
    stamp: Stamp


class Tally:
    """Makes a stamp of the text that passes, in pieces of any size. A row ends with the only line break in it."""

    def __init__(self) -> None:
        self._rows = self._size = self._sum = 0
        self._rest = b""

    def add(self, data: bytes) -> None:
        """The text goes on with these bytes."""
        *rows, self._rest = (self._rest + data).split(b"\n")
        for row in rows:
            self._sum += int.from_bytes(hashlib.sha256(row).digest())
        self._rows += len(rows)
        self._size += len(data)

    @property
    def stamp(self) -> Stamp:
        """Of all so far."""
        return Stamp(rows=self._rows, size_bytes=self._size, digest=f"{self._sum % 2**256:064x}")


class PartWriter:
    """Writes a part's file on from where its cursor is: what came after that is cut off.

    raises  Discard if what came before isn't as it was written
    """

    def __init__(self, home: Path, table: str, stamp: Stamp) -> None:
        path = path_of(home, table)
        try:
            self._file = path.open("w+b" if stamp == NOTHING else "r+b")
        except FileNotFoundError:
            raise Discard(f"{path} is gone, and a part of it was written: is this worker on another machine?") from None
        self._tally = Tally()
        while data := self._file.read(min(CHUNK, stamp.size_bytes - self._tally.stamp.size_bytes)):
            self._tally.add(data)
        if self._tally.stamp != stamp:
            self._file.close()
            raise Discard(f"{path} was changed since the last attempt: {self._tally.stamp}, its cursor says {stamp}")
        self._file.truncate(stamp.size_bytes)
        sync_directory(home)

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._tally.add(data)

    def sync(self) -> Stamp:
        """Have all of it on disk: only then may a cursor say so."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._tally.stamp


@contextmanager
def owned(ctx: Context, home: Path) -> Iterator[Path]:
    """The directory, for this job alone. An attempt that others believe dead may still write: then it is waited for."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (home / "owner").open("a+")
    except OSError as error:
        raise Discard(f"can't write into {home}: {error.strerror}; name a directory where the worker may") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Snooze(10) from None
        lock.seek(0)
        if not (owner := lock.read()):
            print(owner := f"job {ctx.job.id}", end="", file=lock, flush=True)
        if owner != f"job {ctx.job.id}":
            raise Discard(f"{home} has the archive of {owner}: name a directory that has none")
        yield home


def path_of(home: Path, table: str) -> Path:
    """Where a table's rows are. Its name may have any characters."""
    return home / f"{quote(table, safe=' ')}.copy"


def check_file(ctx: Context, home: Path, part: Part) -> None:
    """Read a file again. Raises Discard if it isn't what its part says."""
    tally, path = Tally(), path_of(home, part.table)
    try:
        with path.open("rb") as file:
            feed(ctx, lambda: file.read(CHUNK), tally.add)
    except FileNotFoundError:
        raise Discard(f"{path} is missing, and the manifest has it") from None
    if tally.stamp != part.stamp:
        raise Discard(f"{path} is damaged: it has {tally.stamp}, the manifest says {part.stamp}")


def feed(ctx: Context, read: Callable[[], bytes | bytearray | memoryview], write: Callable[[bytes], object]) -> None:
    """Everything from one to the other, unless the attempt is asked to end."""
    while data := read():
        ctx.raise_if_cancelled()
        write(bytes(data))


def write_manifest(home: Path, parts: list[Part]) -> None:
    """All of it or none of it, and durable."""
    with (home / "manifest.new").open("w", encoding="utf-8") as file:
        json.dump([asdict(part) for part in parts], file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    (home / "manifest.new").rename(home / "manifest.json")
    sync_directory(home)


def read_manifest(home: Path) -> list[Part]:
    """The parts of an archive that was finished."""
    try:
        entries = json.loads((home / "manifest.json").read_text(encoding="utf-8"))
        return [Part(**entry | {"stamp": Stamp(**entry["stamp"])}) for entry in entries]
    except OSError as error:
        raise Discard(f"there is no finished archive in {home}: manifest.json: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise Discard(f"{home / 'manifest.json'} is damaged: {error}") from error


def sync_directory(home: Path) -> None:
    """Make the names in it durable."""
    directory = os.open(home, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
