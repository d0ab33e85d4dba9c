"""Fixtures of the crash tests. They run on one version of PostgreSQL only: what is tested is the processes.

fleet  worker processes on a database of the test's own
bench  that database; changes of status are written down in its table `ends`
q      PgQueue with the tasks of worker_app, to enqueue them
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgqueue import PgQueue
from tests.crash.kit import Bench, Fleet


@pytest.fixture
def template(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> object:
    """Overrides the one that runs every test on each server."""
    return request.getfixturevalue("newest_template")


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that any account may pass through."""
    directory = Path(tempfile.mkdtemp(prefix="pgqueue-crash-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def fleet(fresh_db: str, home: Path) -> Iterator[Fleet]:
    found = Fleet(fresh_db, home)
    yield found
    found.close()


@pytest.fixture
def bench(fresh_db: str, fleet: Fleet) -> Iterator[Bench]:
    found = Bench(fresh_db, fleet)
    found.watch_ends()
    yield found
    found.close()


@pytest.fixture
def q(fresh_db: str) -> Iterator[PgQueue]:
    queue = PgQueue(fresh_db)
    yield queue
    queue.close()
