"""examples/prune.py: exactly the old rows go, and exactly as many are counted, whatever comes in between."""

from __future__ import annotations

import psycopg
import pytest

from examples.prune import prune, q
from pgqueue import State
from tests.engine.kit import PATIENCE, until, value, working
from tests.examples.kit import WAITS, broken_off, checkpoint, ended, gone_on, locked, refusal

LEFT = "select count(*) from event where created_at < now() - interval '30 days'"


@pytest.fixture(autouse=True)
def events(admin: psycopg.Connection) -> None:
    """95 old ones, oldest first by id, and 20 of today."""
    admin.execute("create table event (id int primary key, created_at timestamptz not null)")
    admin.execute("create index on event (created_at)")
    admin.execute("insert into event select n, now() - (400 - n) * interval '1 day' from generate_series(1, 95) n")
    admin.execute("insert into event select n, now() from generate_series(101, 120) n")


def test_exactly_the_old_rows_are_deleted_and_counted(admin: psycopg.Connection) -> None:
    job = ended(q, prune.enqueue("event", 30, batch=10, pause=0).id)
    assert (job.state, job.result) == (State.COMPLETED, 95)
    assert admin.execute("select count(*), min(id) from event").fetchone() == (20, 101)


@pytest.mark.parametrize("type", ["date", "timestamp"])
def test_so_they_are_where_many_have_the_same_time_and_it_has_no_zone(admin: psycopg.Connection, type: str) -> None:
    admin.execute(f"alter table event alter created_at type {type}")
    admin.execute("update event set created_at = '2001-02-03' where id between 20 and 60")
    admin.execute("update event set created_at = '-infinity' where id between 61 and 90")
    assert ended(q, prune.enqueue("event", 30, batch=10, pause=0).id).result == 95
    assert value(admin, "select count(*) from event") == 20


def test_a_dry_run_counts_and_deletes_nothing(admin: psycopg.Connection) -> None:
    assert ended(q, prune.enqueue("event", 30, dry_run=True).id).result == 95
    assert value(admin, "select count(*) from event") == 115


def test_a_job_that_broke_off_goes_on_with_its_date_and_its_count(admin: psycopg.Connection, source: str) -> None:
    with working(q, "prune"):
        with locked(source, "select from event where id = 25 for update"):
            id = prune.enqueue("event", 30, batch=10, pause=0).id
            broken_off(q, id, admin)
        assert value(admin, LEFT) == 75
        cursor = checkpoint(admin, id)["cursor"]["delete"]
        assert isinstance(cursor, dict)
        assert cursor["rows"] == 20
        cutoff = checkpoint(admin, id)["done"]["cutoff"]
        admin.execute("update event set created_at = %s::timestamptz + interval '1 us' where id = 101", [cutoff])
        job = gone_on(q, id)
    assert (job.state, job.result) == (State.COMPLETED, 95)
    assert value(admin, "select count(*) from event") == 20, "what is old by now wasn't when the job began"


def test_a_row_that_is_changed_while_its_batch_is_deleted_is_not_forgotten(
    admin: psycopg.Connection, source: str
) -> None:
    id = prune.enqueue("event", 30, batch=10, pause=0).id
    with locked(source, "update event set id = 1000 where id = 25") as conn, working(q, "prune"):
        until(admin, WAITS)
        conn.commit()
        assert q.wait(id, PATIENCE).result == 95
    assert value(admin, LEFT) == 0


def test_a_job_that_rests_stops_when_it_is_told_to(admin: psycopg.Connection) -> None:
    id = prune.enqueue("event", 30, batch=10, pause=3600).id
    with working(q, "prune"):
        until(admin, "select count(*) < 115 from event")
        assert q.stop(id) == "requested"
        assert q.wait(id, PATIENCE).state is State.STOPPED
    assert value(admin, LEFT) == 85


@pytest.mark.parametrize(
    ("ddl", "table", "column", "reason"),
    [
        ("", "evnt", "created_at", "public.evnt with a time or date in 'created_at': there is none"),
        ("", "event", "creatd_at", "public.event with a time or date in 'creatd_at': there is none"),
        ("", "event", "id", "public.event with a time or date in 'id': it is of type integer"),
        ("create table p (at date) partition by range (at)", "p", "at", "a plain table public.p"),
        ("", 'event"; drop table event; --', "at", "a plain table public.event"),
    ],
)
def test_what_can_not_be_pruned_is_one_error(
    admin: psycopg.Connection, ddl: str, table: str, column: str, reason: str
) -> None:
    if ddl:
        admin.execute(ddl)
    assert reason in refusal(q, prune.enqueue(table, 30, column=column).id)
    assert value(admin, "select count(*) from event") == 115


def test_numbers_that_make_no_sense_are_one_error(admin: psycopg.Connection) -> None:
    assert "days -1" in refusal(q, prune.enqueue("event", -1).id)
    assert "days 1e+300" in refusal(q, prune.enqueue("event", 1e300).id)
    assert value(admin, "select count(*) from event") == 115
