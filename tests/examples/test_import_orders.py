"""examples/import_orders.py: every line is an order or a reject, once."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from examples.import_orders import TABLES, import_orders, q
from pgqueue import State
from tests.engine.kit import value, working
from tests.examples.kit import broken_off, checkpoint, ended, gone_on, locked, refusal

HEAD = "id,customer,amount,placed_at\n"
ALL = "select count(*), count(distinct id), min(id), max(id) from orders"


@pytest.fixture(autouse=True)
def tables(admin: psycopg.Connection) -> None:
    admin.execute(TABLES)


def line(n: int) -> str:
    return f'{n},"Müller, {n}",{n}.50,2026-01-31T12:00Z\n'


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    """A file of 100 orders."""
    path = tmp_path / "orders.csv"
    path.write_text(HEAD + "".join(map(line, range(1, 101))), encoding="utf-8")
    return path


def test_all_orders_of_a_file_are_imported(admin: psycopg.Connection, orders: Path) -> None:
    job = ended(q, import_orders.enqueue(str(orders), batch=7).id)
    assert job.state is State.COMPLETED
    assert job.result == {"offset": orders.stat().st_size, "line": 101, "imported": 100, "rejected": 0}
    assert admin.execute(ALL).fetchone() == (100, 100, 1, 100)
    seventh = "select customer, amount::text, placed_at = '2026-01-31T12:00Z' from orders where id = 7"
    assert admin.execute(seventh).fetchone() == ("Müller, 7", "7.50", True)
    assert admin.execute("select imported, rejected from order_import where job_id = %s", [job.id]).fetchone() == (
        100,
        0,
    )


BAD = {
    "seven,Ada,1,2026-01-31T12:00Z": "invalid literal for int() with base 10: 'seven'",
    "8,Ada,1": "3 values instead of 4",
    "": "0 values instead of 4",
    "9,Ada,a lot,2026-01-31T12:00Z": "no amount: 'a lot'",
    "9,Ada,1.005,2026-01-31T12:00Z": "no amount: '1.005'",
    "9,Ada,NaN,2026-01-31T12:00Z": "no amount: 'NaN'",
    "9,Ada,1,yesterday": "Invalid isoformat string: 'yesterday'",
    "9,Ada,1,2026-01-31T12:00": "placed_at without a time zone: '2026-01-31T12:00'",
    '9,"Ada,1,2026-01-31T12:00Z': "no CSV: unexpected end of data",
    "1,Ada,1,2026-01-31T12:00Z": 'duplicate key value violates unique constraint "orders_pkey" Key (id)=(1) already'
    " exists.",
    "99999999999999999999,Ada,1,2026-01-31T12:00Z": "bigint out of range",
    "9,A\0da,1,2026-01-31T12:00Z": "PostgreSQL text fields cannot contain NUL (0x00) bytes",
}


def test_a_bad_line_is_kept_with_its_number_and_the_reason_and_costs_no_other(
    admin: psycopg.Connection, tmp_path: Path
) -> None:
    path = tmp_path / "orders.csv"
    pairs = "".join(f"{bad}\n{line(1000 + n)}" for n, bad in enumerate(BAD))
    last = b"5,\xff,1,2026-01-31T12:00Z"  # without a line break
    path.write_bytes((HEAD + line(1) + pairs).encode() + last)
    job = ended(q, import_orders.enqueue(str(path), batch=5).id)

    assert job.state is State.COMPLETED, job.errors
    rejects = admin.execute("select line, reason, content from order_reject where job_id = %s order by 1", [job.id])
    expected = [(3 + 2 * n, reason, text.replace("\0", "\ufffd")) for n, (text, reason) in enumerate(BAD.items())]
    *found, undecodable = rejects.fetchall()
    assert found == expected
    assert undecodable[0] == 3 + 2 * len(BAD)
    assert "can't decode byte 0xff" in undecodable[1]
    assert admin.execute(ALL).fetchone() == (1 + len(BAD), 1 + len(BAD), 1, 999 + len(BAD))


def test_an_import_that_broke_off_misses_no_line_and_imports_none_twice(
    admin: psycopg.Connection, source: str, orders: Path
) -> None:
    with working(q, "import"):
        with locked(source, "insert into orders values (35, 'another', 0, now())"):
            id = import_orders.enqueue(str(orders), batch=10).id
            broken_off(q, id, admin)
        assert value(admin, "select count(*) from orders") == 29, "three batches, the first with the names of columns"
        cursor = checkpoint(admin, id)["cursor"]["load"]
        assert isinstance(cursor, dict)
        assert (cursor["line"], cursor["imported"]) == (30, 29)
        job = gone_on(q, id)
    assert (job.state, value(admin, "select imported from order_import")) == (State.COMPLETED, 100)
    assert admin.execute(ALL).fetchone() == (100, 100, 1, 100)
    assert value(admin, "select count(*) from order_reject") == 0


def test_a_file_that_was_changed_between_attempts_is_an_error_and_what_was_imported_stays(
    admin: psycopg.Connection, source: str, orders: Path
) -> None:
    with working(q, "import"):
        with locked(source, "insert into orders values (35, 'another', 0, now())"):
            id = import_orders.enqueue(str(orders), batch=10).id
            broken_off(q, id, admin)
        orders.write_bytes(orders.read_bytes().replace(b"50.50", b"51.50"))
        job = gone_on(q, id)
    assert job.state is State.DISCARDED
    message = f"{orders} was changed since the import began: 29 orders of it are imported"
    assert job.errors[-1]["message"] == message
    assert value(admin, "select count(*) from orders") == 29


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        ("", "its first line has to be id,customer,amount,placed_at, it is ''"),
        ("id;customer\n", "its first line has to be id,customer,amount,placed_at, it is 'id;customer'"),
    ],
)
def test_a_file_that_is_none_of_orders_is_one_error(
    admin: psycopg.Connection, tmp_path: Path, content: str | None, reason: str
) -> None:
    path = tmp_path / "orders.csv"
    if content is not None:
        path.write_text(content)
    assert reason in refusal(q, import_orders.enqueue(str(path)).id)
    assert value(admin, "select count(*) from orders") == 0
