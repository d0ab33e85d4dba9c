"""Fixtures of the engine's tests.

q      PgQueue on a migrated database of the test's own
admin  psycopg.Connection to it, autocommit
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from pgqueue import PgQueue


@pytest.fixture
def q(fresh_db: str) -> Iterator[PgQueue]:
    queue = PgQueue(fresh_db)
    yield queue
    queue.close()


@pytest.fixture
def admin(fresh_db: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        yield conn
