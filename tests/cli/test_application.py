"""`-A`: the application is found, or it is said why not."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgqueue import PgQueue
from pgqueue.cli.application import find_queue
from pgqueue.config import load
from pgqueue.errors import ConfigError

_serial = itertools.count(1)
TASKS = "from pgqueue import PgQueue\nq = PgQueue()\n@q.task\ndef f(): ...\n"


@pytest.fixture
def module() -> Iterator[str]:
    """A module name that nothing has imported yet."""
    name = f"shop{next(_serial)}"
    yield name
    sys.modules.pop(name, None)


def refusal(target: str, **flags: object) -> str:
    with pytest.raises(ConfigError) as caught:
        find_queue(load({"app": target, **flags}, environ={}))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_queue_is_found_by_name_or_because_it_is_the_only_one(module: str) -> None:
    Path(f"{module}.py").write_text(f"{TASKS}also = q\n")
    named = find_queue(load({"app": f"{module}:q"}, environ={}))
    assert find_queue(load({"app": module}, environ={})) is named
    assert find_queue(load(environ={"PGQUEUE_APP": f"{module}:also"})) is named


def test_a_queue_may_stand_in_a_package_and_in_an_object(module: str) -> None:
    Path(module).mkdir()
    Path(module, "__init__.py").write_text("")
    Path(module, "tasks.py").write_text(f"{TASKS}class Holder:\n    inner = q\n")
    assert len(find_queue(load({"app": f"{module}.tasks:Holder.inner"}, environ={})).tasks) == 1


def test_the_database_that_is_configured_is_what_the_application_gets(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGQUEUE_DSN", "")
    Path(f"{module}.py").write_text(TASKS)
    Path("pgqueue.yaml").write_text("dsn: postgresql:///from_file\n")
    find_queue(load({"app": module}, environ={}))
    assert os.environ["PGQUEUE_DSN"] == "postgresql:///from_file"


@pytest.mark.parametrize(
    ("text", "target", "said"),
    [
        ("", "{0}x", "-A {0}x: there is no module '{0}x' in {cwd} or sys.path"),
        ("", "{0}.sub:q", "-A {0}.sub:q: there is no module '{0}.sub' in {cwd}"),
        ("", "{0}.py:q", "-A {0}.py:q: name a module, not a file: {0}"),
        ("", "src/{0}", "-A src/{0}: name a module, not a file: src.{0}"),
        ("", "{0}", "-A {0}: there is no PgQueue in {0}; say which: -A module:name"),
        (TASKS, "{0}:qq", "-A {0}:qq: {0} has no 'qq'; did you mean 'q'?"),
        (TASKS, "{0}:f", "-A {0}:f: f is not a PgQueue but a Task; did you mean {0}:q?"),
        (f"{TASKS}r = PgQueue()", "{0}", "-A {0}: say which queue: -A {0}:q or -A {0}:r"),
        ("from pgqueue import PgQueue\nq = PgQueue()", "{0}:q", "-A {0}:q: it has no tasks: import the modules"),
        ("\nimport missing_thing", "{0}", "{0}.py, line 2: ModuleNotFoundError: No module named 'missing_thing'"),
        ("\n\n1 / 0", "{0}", "{0}.py, line 3: ZeroDivisionError: division by zero"),
        ("def f(:", "{0}", "{0}.py, line 1: SyntaxError: invalid syntax"),
        ("raise SystemExit(3)", "{0}", "{0}.py, line 1: SystemExit: 3"),
    ],
)
def test_what_is_wrong_with_it_is_said_in_one_line(module: str, text: str, target: str, said: str) -> None:
    Path(f"{module}.py").write_text(text)
    assert said.format(module, cwd=os.getcwd()) in refusal(target.format(module))


def test_settings_that_the_application_contradicts_are_an_error(module: str) -> None:
    Path(f"{module}.py").write_text(TASKS.replace("PgQueue()", 'PgQueue("postgresql:///own", schema="own")'))
    assert "it names its database itself, so --dsn can't" in refusal(module, dsn="postgresql:///other")
    assert "it uses schema='own', but --schema says 'other'" in refusal(module, schema="other")
    assert find_queue(load({"app": module, "schema": "own"}, environ={})).dsn == "postgresql:///own"


def direct_dsn_of(module: str, **flags: object) -> str | None:
    """Where the worker of this application would LISTEN."""
    q = find_queue(load({"app": module, **flags}, environ=os.environ))
    return q.worker()._options.direct_dsn


def test_the_way_around_the_pooler_that_is_configured_is_the_one_that_workers_take(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGQUEUE_DSN", "postgresql:///pooler")
    monkeypatch.setenv("PGQUEUE_DIRECT_DSN", "")
    Path(f"{module}.py").write_text(TASKS.replace("PgQueue()", "PgQueue(pooled=True)"))
    assert direct_dsn_of(module) is None
    Path("pgqueue.yaml").write_text("direct_dsn: postgresql:///direct\n")
    assert direct_dsn_of(module) == "postgresql:///direct"
    monkeypatch.setenv("PGQUEUE_DIRECT_DSN", "postgresql:///from_environment")
    assert direct_dsn_of(module) == "postgresql:///from_environment"


def test_the_environments_way_around_its_pooler_leads_to_no_database_that_was_named(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGQUEUE_DIRECT_DSN", "postgresql:///direct")
    own = PgQueue("postgresql:///own").worker()._options
    assert (own.dsn, own.direct_dsn) == ("postgresql:///own", "postgresql:///own")
    assert PgQueue("postgresql:///own", pooled=True).worker()._options.direct_dsn is None


def test_a_direct_dsn_that_the_application_contradicts_is_an_error(module: str) -> None:
    Path("pgqueue.yaml").write_text("direct_dsn: postgresql://user:secret@host/direct\n")
    Path(f"{module}.py").write_text(
        f"{TASKS}own = PgQueue('postgresql:///own')\nown.task(f.fn)\n"
        "direct = PgQueue(direct_dsn='postgresql:///other')\ndirect.task(f.fn)\n"
        "same = PgQueue('postgresql:///own', direct_dsn='postgresql://user:secret@host/direct')\nsame.task(f.fn)\n"
    )
    assert "it names its database itself, so pgqueue.yaml: direct_dsn can't say" in refusal(f"{module}:own")
    assert "it names its direct_dsn itself, so pgqueue.yaml: direct_dsn can't say" in refusal(f"{module}:direct")
    find_queue(load({"app": f"{module}:same"}, environ={}))
