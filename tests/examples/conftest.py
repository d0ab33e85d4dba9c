"""Fixtures of the examples' tests. An example's queue object asks for PGQUEUE_DSN, so that is the test's database.

admin   psycopg.Connection to the queue's database, autocommit
source  that database's DSN
copy    the DSN of an empty one, to restore into
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from pytest_postgresql.executors.noop import NoopExecutor

from examples import backup, import_orders, prune


@pytest.fixture(scope="session")
def template(newest_template: NoopExecutor) -> NoopExecutor:
    """Overrides the one that runs every test on each server: an example is no statement of ours."""
    return newest_template


@pytest.fixture
def source(fresh_db: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("PGQUEUE_DSN", fresh_db)
    yield fresh_db
    for q in (backup.q, import_orders.q, prune.q):
        q.close()


@pytest.fixture
def admin(source: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(source, autocommit=True) as conn:
        yield conn


@pytest.fixture
def copy(empty_db: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(empty_db, autocommit=True) as conn:
        yield conn
