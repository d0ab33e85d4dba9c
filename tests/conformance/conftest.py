"""Fixtures of the conformance tests.

plays         jobs that do as they are told: each test once on every executor
plays_inside  the same, in a thread only: where the executor makes no difference
plays_apart   the same, in a process only: where that is to die
q, admin      PgQueue on a migrated database of the test's own; psycopg.Connection to it, autocommit
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgqueue import PgQueue
from tests.conformance.deeds import Scene
from tests.conformance.kit import Plays


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On the oldest server, and in processes, only what is their doing: the rest is the same there."""
    left_out = [
        item for item in items
        if item.path.parent == Path(__file__).parent and getattr(item, "callspec", None) and _is_twin(item)
    ]  # fmt: skip
    config.hook.pytest_deselected(items=left_out)
    left_out_ids = {item.nodeid for item in left_out}
    items[:] = [item for item in items if item.nodeid not in left_out_ids]


def _is_twin(item: pytest.Item) -> bool:
    params: dict[str, object] = item.callspec.params  # type: ignore[attr-defined]
    if params.get("plays") == "process" and item.path.stem in ("test_river_plain", "test_beyond_code"):
        return True  # rules that have no part in another process
    if params.get("template") != "oldest":
        return False
    return not item.path.stem.endswith("_tx") or params.get("plays") in ("async", "process")


@pytest.fixture
def q(fresh_db: str) -> Iterator[PgQueue]:
    queue = PgQueue(fresh_db)
    yield queue
    queue.close()


@pytest.fixture
def admin(fresh_db: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        conn.execute("create table imported (n int primary key)")
        yield conn


@pytest.fixture
def scene(fresh_db: str, tmp_path: Path) -> Scene:
    return Scene(str(tmp_path / "diary"), str(tmp_path / "gate"), fresh_db)


@pytest.fixture(params=["thread", "async", "process"])
def plays(q: PgQueue, admin: psycopg.Connection, scene: Scene, request: pytest.FixtureRequest) -> Plays:
    return Plays(q, admin, scene, request.param)


@pytest.fixture
def plays_inside(q: PgQueue, admin: psycopg.Connection, scene: Scene) -> Plays:
    return Plays(q, admin, scene, "thread")


@pytest.fixture
def plays_apart(q: PgQueue, admin: psycopg.Connection, scene: Scene) -> Plays:
    return Plays(q, admin, scene, "process")
