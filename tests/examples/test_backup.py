"""examples/backup.py and restore.py: what comes back is what was there, and what is damaged is never taken for good."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from examples.archive import NOTHING, read_manifest
from examples.backup import backup, q
from examples.restore import restore, verify
from pgqueue import State
from tests.engine.kit import PATIENCE, until, value, working
from tests.examples.kit import broken_off, checkpoint, ended, gone_on, grows, locked, refusal

DDL = """
create schema shop;
create type shop.mood as enum ('sad', 'happy');
create table shop.kinds (
  id int generated always as identity primary key, small smallint, big bigint, real real, double float8,
  exact numeric, money money, flag boolean, words text, fixed char(5), bytes bytea, doc jsonb, raw json, at timestamptz,
  local timestamp, day date, clock timetz, span interval, uuid uuid, address inet, ints int[], texts text[],
  mood shop.mood, "range" tstzrange, class regclass, computed int generated always as (small * 2) stored);
create table shop."Odd / ""Nämé"" !" (
  "Key, 1" text collate "C", at timestamptz, n numeric, primary key (at, "Key, 1"));
create table shop.keyless (n int, word text);
create table shop.empty (id int primary key);
create table shop.split (id int primary key, word text) partition by range (id);
create table shop.split_low partition of shop.split for values from (0) to (50);
create table shop.split_high partition of shop.split for values from (50) to (1000);
"""
ROWS = r"""
set timezone to 'Asia/Kolkata';
insert into shop.kinds (small, big, real, double, exact, money, flag, words, fixed, bytes, doc, raw, at, local, day,
    clock, span, uuid, address, ints, texts, mood, "range", class)
  select n, 9223372036854775807, 0.1::real * n, 1e-300 * n, repeat('9', n)::numeric / 7, 1234.56, n % 2 = 0,
    E'\\.\n\\N\ttab\r\\ \x01 "quoted" ä€😀 ' || n, 'ab', decode('00ff0a5c5c2e' || lpad(to_hex(n), 4, '0'), 'hex'),
    jsonb_build_object('k', E'a\nb\\' || n, 'l', '[1, null, 1e1000]'::jsonb), '{"a":  1, "a": 2}',
    '2026-03-29T01:30:00.123456Z'::timestamptz + n * interval '1 hour', 'infinity', '4713-01-01 BC',
    '12:00:00+05:30', '1 mon -3 days +04:05:06.789', gen_random_uuid(), '::1/64', array[[n, null], [3, 4]],
    array['', null, 'NULL', E'a"b\\c{},\n'], 'happy', tstzrange(now(), null, '(]'), 'shop.keyless'
  from generate_series(1, 60) n;
insert into shop.kinds (small) values (null);
insert into shop.kinds (double, exact, at, words)
  values ('NaN', 'NaN', '-infinity', ''), ('-0', 'Infinity', null, null);
insert into shop."Odd / ""Nämé"" !"
  select E'a\\b''c\n' || chr(n), '2026-01-01'::timestamptz + (n % 5) * interval '1 us', n
  from generate_series(33, 93) n;
insert into shop.keyless select n / 2, repeat('x', n * 37 % 1900) from generate_series(1, 300) n;
insert into shop.split select n, 'word ' || n from generate_series(1, 99) n;
reset timezone;
"""
# What a database may say about the text of values: none of it may matter.
ODDLY = """
do $$ begin
  execute format('
    alter database %1$I set datestyle to sql, dmy; alter database %1$I set timezone to "Asia/Tokyo";
    alter database %1$I set intervalstyle to sql_standard; alter database %1$I set bytea_output to escape;
    alter database %1$I set extra_float_digits to -3; alter database %1$I set client_encoding to latin1',
    current_database());
end $$
"""


def content(conn: psycopg.Connection) -> dict[str, list[bytes]]:
    """Every row of the schema's tables as COPY writes it, sorted."""
    found = {}
    tables = conn.execute("select relname from pg_class where relnamespace = 'shop'::regnamespace and relkind = 'r'")
    for (table,) in tables.fetchall():
        query = sql.SQL("copy (select * from {}) to stdout").format(sql.Identifier("shop", table))
        with conn.cursor().copy(query) as copy:
            found[table] = sorted(bytes(row) for row in copy)
    return found


@pytest.fixture(autouse=True)
def shop(admin: psycopg.Connection) -> None:
    admin.execute(DDL)
    admin.execute(ROWS)


def archive(tmp_path: Path, batch: int = 7) -> Path:
    """A backup, made just now."""
    job = ended(q, backup.enqueue("shop", str(tmp_path / "archive"), batch=batch).id)
    assert job.result == {"tables": 6, "rows": 63 + 61 + 300 + 99, "changed": []}
    return tmp_path / "archive"


@pytest.mark.parametrize("batch", [1, 7, 61, 10_000])
def test_a_restored_database_equals_its_source_byte_for_byte(
    admin: psycopg.Connection, copy: psycopg.Connection, tmp_path: Path, batch: int
) -> None:
    copy.execute(DDL)
    odd = {1: admin, 7: copy}.get(batch)
    if odd is not None:
        odd.execute(ODDLY)
    home = archive(tmp_path, batch)
    job = ended(q, restore.enqueue(str(home), "shop", dsn=copy.info.dsn).id)
    assert (job.state, job.result) == (State.COMPLETED, 523), job.errors
    assert content(copy) == content(admin)
    assert value(copy, "insert into shop.kinds default values returning id") == 64, "after the highest"


def test_restoring_again_changes_nothing_and_other_rows_are_an_error(
    admin: psycopg.Connection, copy: psycopg.Connection, tmp_path: Path
) -> None:
    copy.execute(DDL)
    home = archive(tmp_path)
    for _ in range(2):
        assert ended(q, restore.enqueue(str(home), "shop", dsn=copy.info.dsn).id).state is State.COMPLETED
    assert content(copy) == content(admin)
    copy.execute("update shop.keyless set n = 8 where n = 7")
    before = content(copy)
    assert "was the table empty?" in refusal(q, restore.enqueue(str(home), "shop", dsn=copy.info.dsn).id)
    assert content(copy) == before


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"1\tx\n")


DAMAGE = {flip: "is damaged", shorten: "is damaged", lengthen: "is damaged", Path.unlink: "is missing"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_archive_that_was_damaged_is_one_error_and_nothing_of_it_is_restored(
    copy: psycopg.Connection, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    copy.execute(DDL)
    home = archive(tmp_path)
    assert ended(q, verify.enqueue(str(home)).id).result == 523
    damage(home / "split_low.copy")
    expected = f"{home / 'split_low.copy'} {DAMAGE[damage]}"
    assert expected in refusal(q, verify.enqueue(str(home)).id)
    assert expected in refusal(q, restore.enqueue(str(home), "shop", dsn=copy.info.dsn).id)
    assert not any(content(copy).values())


def broken_backup(admin: psycopg.Connection, source: str, home: Path) -> int:
    """A backup whose connection broke in the middle of the table `ahead`; a worker has to be there."""
    admin.execute("create table shop.ahead (id text, n int, primary key (n, id))")
    admin.execute("insert into shop.ahead select md5(n::text), n / 3 from generate_series(1, 4000) n")
    id = backup.enqueue("shop", str(home), batch=10).id
    grows(home / "ahead.copy")
    with locked(source, "lock table shop.ahead in access exclusive mode"):
        broken_off(q, id, admin)
    return id


def test_a_backup_that_broke_off_goes_on_in_the_middle_of_its_table(
    admin: psycopg.Connection, copy: psycopg.Connection, source: str, tmp_path: Path
) -> None:
    home = tmp_path / "archive"
    with working(q, "backup"):
        id = broken_backup(admin, source, home)
        cursor = checkpoint(admin, id)["cursor"]["copy ahead"]
        assert isinstance(cursor, dict)
        rows = cursor["stamp"]["rows"]
        assert 0 < rows < 4000
        assert rows % 10 == 0
        with (home / "ahead.copy").open("ab") as file:
            file.write(b"what was written after the cursor was set\n")
        before = (home / "ahead.copy").read_bytes()[: cursor["stamp"]["size_bytes"]]
        admin.execute("delete from shop.ahead where n < 3")  # 8 rows that are in the archive
        job = gone_on(q, id)
    assert job.result == {"tables": 7, "rows": 523 + 4000, "changed": ["ahead"]}, job.errors
    lines = (home / "ahead.copy").read_bytes()
    assert lines.startswith(before)
    assert len(set(lines.splitlines())) == 4000


def tampered(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (tampered, "was changed since the last attempt"),
        (lambda path: path.write_bytes(path.read_bytes()[:50]), "was changed since the last attempt"),
        (Path.unlink, "is gone"),
    ],
)
def test_an_archive_that_was_changed_between_attempts_is_one_error(
    admin: psycopg.Connection, source: str, tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    home = tmp_path / "archive"
    with working(q, "backup"):
        id = broken_backup(admin, source, home)
        damage(home / "ahead.copy")
        job = gone_on(q, id)
    assert job.state is State.DISCARDED
    assert f"{home / 'ahead.copy'} {reason}" in str(job.errors[-1]["message"])
    assert len(job.errors) == 2, "the connection's, and this"
    assert not (home / "manifest.json").exists()


def test_a_table_whose_columns_change_between_attempts_is_an_error(
    admin: psycopg.Connection, source: str, tmp_path: Path
) -> None:
    with working(q, "backup"):
        id = broken_backup(admin, source, tmp_path / "archive")
        admin.execute("alter table shop.ahead add column more int")
        job = gone_on(q, id)
    assert "shop.ahead got other columns since the last attempt" in str(job.errors[-1]["message"])


def test_the_manifest_has_each_table_with_its_key_in_the_order_of_the_index(tmp_path: Path) -> None:
    parts = {part.table: part for part in read_manifest(archive(tmp_path))}
    assert parts['Odd / "Nämé" !'].key == ["at", "Key, 1"]
    assert "computed" not in parts["kinds"].columns
    assert (parts["keyless"].key, parts["keyless"].stamp.rows) == ([], 300)
    assert parts["empty"].stamp == NOTHING


def test_while_another_attempt_may_still_write_a_job_waits(admin: psycopg.Connection, tmp_path: Path) -> None:
    home = tmp_path / "archive"
    home.mkdir()
    with (home / "owner").open("w") as zombie, working(q, "backup"):
        fcntl.flock(zombie, fcntl.LOCK_EX)
        id = backup.enqueue("shop", str(home)).id
        until(admin, "select state = 'scheduled' from pgqueue.jobs where id = %s", id)
        assert [path.name for path in home.iterdir()] == ["owner"]
        fcntl.flock(zombie, fcntl.LOCK_UN)
        q.retry(id)
        job = q.wait(id, PATIENCE)
    assert (job.state, job.attempt, job.errors) == (State.COMPLETED, 1, [])


def test_what_can_not_be_backed_up_is_one_error(admin: psycopg.Connection, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "no table in a schema 'shp'" in refusal(q, backup.enqueue("shp", str(tmp_path / "a")).id)
    below = str(tmp_path / "file" / "archive")
    assert f"can't write into {below}: Not a directory" in refusal(q, backup.enqueue("shop", below).id)
    home = archive(tmp_path)
    assert f"{home} has the archive of job" in refusal(q, backup.enqueue("shop", str(home)).id)
    assert ended(q, verify.enqueue(str(home)).id).state is State.COMPLETED, "it is as it was"


def test_what_can_not_be_restored_is_one_error(copy: psycopg.Connection, tmp_path: Path) -> None:
    dsn = copy.info.dsn
    assert "no finished archive" in refusal(q, restore.enqueue(str(tmp_path), "shop", dsn=dsn).id)
    home = archive(tmp_path)
    assert "has no table shop." in refusal(q, restore.enqueue(str(home), "shop", dsn=dsn).id)
    (home / "manifest.json").write_text("[{}]")
    assert "manifest.json is damaged" in refusal(q, verify.enqueue(str(home)).id)


def test_a_job_that_is_started_over_makes_its_archive_anew(admin: psycopg.Connection, tmp_path: Path) -> None:
    id = backup.enqueue("shop", str(tmp_path / "archive")).id
    assert ended(q, id).state is State.COMPLETED
    admin.execute("truncate shop.keyless")
    assert q.retry(id) == "available"
    assert ended(q, id).result == {"tables": 6, "rows": 223, "changed": []}
    shutil.rmtree(tmp_path / "archive")
