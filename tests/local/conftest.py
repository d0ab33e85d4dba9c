"""Fixtures of the tests of local runs.

state  Path of a state file that isn't there yet; no database can be reached
home   str: the job's own directory; see `deeds`
db     psycopg.Connection to the database that the jobs' queue has, with a table `deed`; asked for, it is reachable
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.local import deeds
from tests.local.kit import NOWHERE


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in [*os.environ]:
        if name.startswith(("PGQUEUE_", "DATABASE_URL", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGPASSWORD")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PGQUEUE_DSN", NOWHERE)
    monkeypatch.chdir(tmp_path)
    yield
    deeds.q.close()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "job.json"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def db(fresh_db: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection]:
    monkeypatch.setenv("PGQUEUE_DSN", fresh_db)
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        conn.execute("create table deed (text text)")
        yield conn
