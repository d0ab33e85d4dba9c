"""Desks on the test's database: `desk` is one connection, `desks()` gives as many more as are needed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.store.desk import Desk


@pytest.fixture
def desks(dsn: str) -> Iterator[Callable[[], Desk]]:
    with contextlib.ExitStack() as open_desks:
        yield lambda: open_desks.enter_context(Desk(dsn))


@pytest.fixture
def desk(desks: Callable[[], Desk]) -> Desk:
    return desks()
