"""A file is replaced as a whole, or stays as it was with nothing beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pgqueue.features.durable import replace, replacing


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    return path


def test_it_is_the_old_one_until_the_block_has_ended(path: Path) -> None:
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file"]


def test_a_block_that_is_left_by_an_error_changes_nothing(path: Path) -> None:
    def write_half() -> None:
        with replacing(path) as file:
            file.write(b"half of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_so_does_an_error_of_the_disk(call: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(OSError, match="Input/output error"):
        replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["file"]


def test_the_content_and_then_the_name_are_written_to_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[bytes, bool]] = []  # what the file's name leads to, and whether it is the directory's turn
    fsync = os.fsync

    def watched(handle: int) -> None:
        synced.append((path.read_bytes(), os.path.samestat(os.fstat(handle), os.stat(path.parent))))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    replace(path, b"new")
    assert synced == [(b"old", False), (b"new", True)]
