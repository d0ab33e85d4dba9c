"""The examples without a worker: killed with SIGKILL in the middle, and gone on with by the same command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from examples import import_orders
from tests.cli.commands import REPOSITORY, Running
from tests.engine.kit import until, value
from tests.examples.kit import WAITS, grows, locked


@pytest.fixture
def template(request: pytest.FixtureRequest) -> object:
    """Overrides the one that runs every test on each server: what is tested here is the processes."""
    return request.getfixturevalue("newest_template")


@pytest.fixture
def admin(fresh_db: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        yield conn


def running(kind: str, args: dict[str, object], state: Path, dsn: str) -> Running:
    arguments = ["run", kind, json.dumps(args), "-A", f"examples.{kind}:q", "--local", "--state", str(state)]
    return Running(*arguments, dsn=dsn, cwd=REPOSITORY)


def killed(run: Running) -> None:
    run.process.kill()
    assert run.process.wait() == -9


def result(kind: str, args: dict[str, object], state: Path, dsn: str) -> object:
    with running(kind, args, state, dsn) as run:
        assert run.ended() == 0, run.output
    return json.loads(run.output)


def test_an_import_misses_no_line_and_imports_none_twice(
    admin: psycopg.Connection, fresh_db: str, tmp_path: Path, state: Path
) -> None:
    admin.execute(import_orders.TABLES)
    path = tmp_path / "orders.csv"
    lines = (f"{n},Ada,{'?' if n % 100 == 0 else n},2026-01-31T12:00Z\n" for n in range(1, 1001))
    path.write_text("id,customer,amount,placed_at\n" + "".join(lines))
    args: dict[str, object] = {"path": str(path), "batch": 50}
    with (
        running("import_orders", args, state, fresh_db) as victim,
        locked(fresh_db, "insert into orders values (555, 'another', 0, now())"),
    ):
        until(admin, WAITS)
        killed(victim)
    assert value(admin, "select array[(select count(*) from orders), (select count(*) from order_reject)]") == [544, 5]
    found = result("import_orders", args, state, fresh_db)
    assert found == {"offset": path.stat().st_size, "line": 1001, "imported": 990, "rejected": 10}
    assert admin.execute("select count(*), count(distinct id) from orders").fetchone() == (990, 990)
    assert value(admin, "select count(*) from order_reject") == 10
    assert value(admin, "select count(*) from order_import") == 1
    assert value(admin, "select count(*) from pgqueue.checkpoint") == 0


def test_a_prune_counts_exactly(admin: psycopg.Connection, fresh_db: str, state: Path) -> None:
    admin.execute("create table event (id int primary key, created_at timestamptz not null)")
    admin.execute("insert into event select n, now() - (9000 - n) * interval '1 day' from generate_series(1, 500) n")
    args: dict[str, object] = {"table": "event", "days": 30, "batch": 20, "pause": 0}
    with (
        running("prune", args, state, fresh_db) as victim,
        locked(fresh_db, "select from event where id = 250 for update"),
    ):
        until(admin, WAITS)
        killed(victim)
    assert value(admin, "select count(*) from event") == 500 - 240, "twelve batches"
    assert result("prune", args, state, fresh_db) == 500
    assert value(admin, "select count(*) from event") == 0


def test_a_backup_goes_on_where_it_was(admin: psycopg.Connection, fresh_db: str, tmp_path: Path, state: Path) -> None:
    admin.execute("create table big (id int primary key, word text)")
    admin.execute("insert into big select n, md5(n::text) from generate_series(1, 3000) n")
    home = tmp_path / "archive"
    args: dict[str, object] = {"schema": "public", "directory": str(home), "batch": 10}
    with running("backup", args, state, fresh_db) as victim:
        grows(home / "big.copy")
        with locked(fresh_db, "lock table big in access exclusive mode"):
            until(admin, WAITS)
            until(admin, "select pg_sleep(1.1)::text = ''")  # by then the file has what was reached
            killed(victim)
    stamp = json.loads(state.read_text())["checkpoint"]["cursor"]["copy big"]["stamp"]
    assert 0 < stamp["rows"] < 3000
    before = (home / "big.copy").read_bytes().splitlines()[: stamp["rows"]]
    admin.execute("delete from big where id <= 5")  # they are in the archive, so a second beginning would show
    found = result("backup", args, state, fresh_db)
    assert found == {"tables": 1, "rows": 3000, "changed": ["big"]}
    assert (home / "big.copy").read_bytes().splitlines()[: stamp["rows"]] == before
