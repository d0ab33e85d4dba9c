"""The state file: replaced as a whole, refused if it is of something else, used by one run at a time."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import msgspec
import pytest

from pgqueue import PgqueueError, State
from pgqueue.errors import ConfigError
from pgqueue.state_file import LocalState, StateFile, new_state
from tests.local import deeds

q = deeds.q


def of(path: Path) -> StateFile:
    return StateFile(path)


def test_what_was_saved_is_what_is_read(state: Path) -> None:
    saved = new_state("mail", '{"to": "\u00e5"}')
    saved.checkpoint = {"done": {"a": msgspec.Raw(b'{"b":[1.50,2]}')}}
    of(state).save(saved)
    found = of(state).load()
    assert found is not None
    assert (found.id, found.kind, found.state) == (saved.id, "mail", State.AVAILABLE)
    assert bytes(found.checkpoint["done"]["a"]) == b'{"b":[1.50,2]}', "no digit and no space more or less"


def test_there_may_be_no_file_yet(state: Path) -> None:
    assert of(state).load() is None


def test_only_its_owner_may_read_it(state: Path) -> None:
    of(state).save(new_state("mail", "{}"))
    assert state.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\x00\xff",
        b'{"format":1,"id":-1,"kind":"mail","args":{},"state":"lost"}',
        b'{"format":1,"id":-1,"kind":"mail","args":{},"checkpoint":[]}',
        b'{"format":1,"id":-1,"kind":"m\xff","args":{}}',
        b'{"name": "some-package", "version": "1.0"}',
    ],
)
def test_what_is_no_state_of_a_job_is_refused_and_left_alone(content: bytes, state: Path, home: Path) -> None:
    state.write_bytes(content)
    for restart in (False, True):
        with pytest.raises(ConfigError, match=r"job\.json: is not the state of a job .*; name another file"):
            q.run_local("threaded", {"home": str(home)}, state=state, restart=restart)
    assert state.read_bytes() == content
    assert [*home.iterdir()] == [], "nothing ran"


def test_a_torn_file_is_refused(state: Path) -> None:
    of(state).save(new_state("mail", "{}"))
    text = state.read_bytes()
    for length in range(1, len(text) - 2):
        state.write_bytes(text[:length])
        with pytest.raises(ConfigError, match="is not the state of a job"):
            of(state).load()


def test_the_file_of_another_release_is_refused(state: Path) -> None:
    file = of(state)
    saved = new_state("mail", "{}")
    saved.format = 2
    file.save(saved)
    with pytest.raises(ConfigError, match=r"another release \(format 2\)"):
        file.load()


def test_a_directory_is_refused(state: Path) -> None:
    state.mkdir()
    with pytest.raises(ConfigError, match="is not the state of a job"):
        q.run_local("threaded", {"home": "/"}, state=state)


def test_where_no_file_can_be_it_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, why in ((tmp_path / "none" / "job.json", "No such file"), (tmp_path / "file" / "job.json", "Not a dir")):
        with pytest.raises(ConfigError, match=why):
            q.run_local("threaded", {"home": "/"}, state=path)


def test_what_can_not_be_written_stays_as_it_was(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = of(state)
    file.save(new_state("mail", "{}"))
    before = state.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PgqueueError, match=r"job\.json: can't be written: No space left on device; it stays as it was"):
        file.save(new_state("mail", "{}"))
    assert state.read_bytes() == before
    assert [path.name for path in state.parent.iterdir() if path.is_file()] == ["job.json"], "no litter"


def full(handle: int) -> None:
    raise OSError(28, "No space left on device")


def test_one_run_at_a_time_uses_it_by_whatever_name(state: Path) -> None:
    link = state.with_name("link.json")
    link.symlink_to(state)
    with of(state).locked():
        for path in (state, link):
            with pytest.raises(ConfigError, match="another run uses it"), of(path).locked():
                pass
    with of(link).locked():
        of(link).save(new_state("mail", "{}"))
    assert link.is_symlink()
    assert of(state).load() is not None


def test_a_name_may_have_all_the_characters_that_the_system_allows(tmp_path: Path) -> None:
    file = of(tmp_path / ("n" * 249))
    with file.locked():
        file.save(new_state("mail", "{}"))
        assert file.load() is not None


def test_a_reader_never_sees_a_torn_file_and_neither_does_kill_9_leave_one(state: Path) -> None:
    file = of(state)
    file.save(new_state("mail", "{}"))
    process = multiprocessing.get_context("spawn").Process(target=save_for_ever, args=(str(state),))
    process.start()
    seen: set[int] = set()
    while len(seen) < 20:
        found = file.load()
        assert found is not None
        seen.add(found.attempt)
    process.kill()
    process.join()
    assert isinstance(file.load(), LocalState)


def save_for_ever(path: str) -> None:
    file, state = of(Path(path)), new_state("mail", "{}")
    state.checkpoint = {"data": {str(n): msgspec.Raw(b"1") for n in range(2000)}}
    while True:
        state.attempt += 1
        file.save(state)
