"""For the command line: no settings from outside, a working directory of the test's own, an application in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.cli.commands import APP


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGQUEUE_DSN", "PGQUEUE_DIRECT_DSN"):  # find_queue sets them: note what they were
        monkeypatch.setenv(name, "")
    for name in [*os.environ]:
        if name.startswith(("PGQUEUE_", "DATABASE_URL", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGPASSWORD")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The directory of an application: `-A app` or `-A app:q`."""
    (tmp_path / "app.py").write_text(APP)
    return tmp_path
