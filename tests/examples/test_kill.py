"""Each example while its worker is killed with SIGKILL in the middle of the work, and another one goes on.

On one version of PostgreSQL only: what is tested is the processes.
"""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from examples import backup, import_orders, prune, restore
from pgqueue import State
from tests.engine.kit import PATIENCE, until, value
from tests.examples.kit import WAITS, checkpoint, ended, grows, killed, locked, worker_of


@pytest.fixture
def template(request: pytest.FixtureRequest) -> object:
    """Overrides the one that runs every test on each server."""
    return request.getfixturevalue("newest_template")


def test_a_backup_goes_on_where_its_killed_worker_was(
    admin: psycopg.Connection, copy: psycopg.Connection, source: str, tmp_path: Path
) -> None:
    """The file is ahead of the cursor by then, and torn."""
    for conn in (admin, copy):
        conn.execute("create table big (id int primary key, word text)")
    admin.execute("insert into big select n, md5(n::text) from generate_series(1, 5000) n")
    home = tmp_path / "archive"
    with worker_of("backup", source) as victim:
        id = backup.backup.enqueue("public", str(home), batch=10).id
        grows(home / "big.copy")
        with locked(source, "lock table big in access exclusive mode"):
            until(admin, WAITS)
            # By itself: the attempt doesn't end, it only lasts longer than checkpoint_every.
            rows = "select (value::json -> 'stamp' ->> 'rows')::int from pgqueue.checkpoint where name = 'copy big'"
            durable = until(admin, rows)
            killed(victim)
    with (home / "big.copy").open("ab") as file:
        file.write(b"12345\ttorn of")
    assert isinstance(durable, int)
    assert 0 < durable < 5000
    before = (home / "big.copy").read_bytes().splitlines()[:durable]
    admin.execute("delete from big where id <= 5")  # they are in the archive, so a second beginning would show
    with worker_of("backup", source):
        job = backup.q.wait(id, PATIENCE)
    assert job.result == {"tables": 1, "rows": 5000, "changed": ["big"]}, job.errors
    assert (home / "big.copy").read_bytes().splitlines()[:durable] == before

    assert ended(backup.q, restore.restore.enqueue(str(home), "public", dsn=copy.info.dsn).id).result == 5000
    assert value(copy, "select count(*) from big where word = md5(id::text) and id between 1 and 5000") == 5000


def test_a_restore_goes_on_where_its_killed_worker_was(
    admin: psycopg.Connection, copy: psycopg.Connection, source: str, tmp_path: Path
) -> None:
    """One table is there, and nobody may remember that; of the other one there is nothing."""
    for conn in (admin, copy):
        conn.execute("create table a (n int); create table b (n int)")
    admin.execute("insert into a values (1), (2), (2), (null); insert into b select n from generate_series(1, 1000) n")
    home = tmp_path / "archive"
    ended(backup.q, backup.backup.enqueue("public", str(home)).id)
    with worker_of("restore", source) as victim, locked(copy.info.dsn, "lock table b in share mode"):
        id = restore.restore.enqueue(str(home), "public", dsn=copy.info.dsn).id
        until(copy, WAITS)
        assert checkpoint(admin, id) == {}, "not even that the files were checked"
        killed(victim)
    assert value(copy, "select count(*) from a") == 4
    with worker_of("restore", source):
        job = backup.q.wait(id, PATIENCE)
    assert (job.state, job.result) == (State.COMPLETED, 1004), job.errors
    assert value(copy, "select array[(select count(*) from a), (select count(*) from b)]") == [4, 1000]


def test_a_prune_counts_exactly_though_its_worker_was_killed(admin: psycopg.Connection, source: str) -> None:
    admin.execute("create table event (id int primary key, created_at timestamptz not null)")
    admin.execute("insert into event select n, now() - (9000 - n) * interval '1 day' from generate_series(1, 500) n")
    admin.execute("insert into event select n, now() from generate_series(501, 520) n")
    with worker_of("prune", source) as victim, locked(source, "select from event where id = 250 for update"):
        id = prune.prune.enqueue("event", 30, batch=20, pause=0).id
        until(admin, WAITS)
        killed(victim)
    assert value(admin, "select count(*) from event") == 520 - 240, "twelve batches"
    with worker_of("prune", source):
        job = prune.q.wait(id, PATIENCE)
    assert (job.state, job.result) == (State.COMPLETED, 500), job.errors
    assert admin.execute("select count(*), min(id) from event").fetchone() == (20, 501)


def test_an_import_misses_no_line_and_imports_none_twice_though_its_worker_was_killed(
    admin: psycopg.Connection, source: str, tmp_path: Path
) -> None:
    admin.execute(import_orders.TABLES)
    path = tmp_path / "orders.csv"
    lines = (f"{n},Ada,{'?' if n % 100 == 0 else n},2026-01-31T12:00Z\n" for n in range(1, 1001))
    path.write_text("id,customer,amount,placed_at\n" + "".join(lines))
    with (
        worker_of("import_orders", source) as victim,
        locked(source, "insert into orders values (555, 'another', 0, now())"),
    ):
        id = import_orders.import_orders.enqueue(str(path), batch=50).id
        until(admin, WAITS)
        killed(victim)
    assert value(admin, "select array[(select count(*) from orders), (select count(*) from order_reject)]") == [544, 5]
    with worker_of("import_orders", source):
        job = import_orders.q.wait(id, PATIENCE)
    assert job.result == {"offset": path.stat().st_size, "line": 1001, "imported": 990, "rejected": 10}, job.errors
    assert admin.execute("select count(*), count(distinct id) from orders").fetchone() == (990, 990)
    rejects = "select array_agg(line order by line) from order_reject"
    assert value(admin, rejects) == [n + 1 for n in range(100, 1001, 100)]
