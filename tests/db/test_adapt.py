"""A statement on a caller's connection is part of the caller's transaction, whatever the kind of connection."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import psycopg
import pytest
from pytest_postgresql.executors.noop import NoopExecutor

from pgqueue.db.adapt import run, sqlstate
from pgqueue.errors import InvalidConnection, InvalidJob, LeaseLost, SchemaMismatch
from pgqueue.store.statement import Row, Statement
from tests.db.kinds import KINDS, Opened

INSERT_SQL = """
with made as (
  insert into app_t (n, note)
  select x.n, x.note from jsonb_to_recordset(%(jobs)s::text::jsonb) as x (n int, note text)
  returning n, note
)
select n, note, jsonb_build_object('n', n)::text, %(low)s::smallint, %(big)s::bigint, %(half)s::float8,
  %(yes)s::boolean, %(none)s::text, %(text)s::text, '100 %%'
from made
order by n
"""
TEXT = "it's 5 % :of $1 \\ back\nÄ€😀 %(jobs)s"
VALUES = (-32768, -(2**63), 0.5, True, None, TEXT, "100 %")


@pytest.fixture(scope="session")
def template(newest_template: NoopExecutor) -> NoopExecutor:
    """Overrides the one that runs every test on each server: what is tested is the connections."""
    return newest_template


@pytest.fixture
def watcher(dsn: str) -> Iterator[psycopg.Connection]:
    """Another session, which sees only what was committed; app_t is there."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("create table app_t (id bigint generated always as identity, n int, note text)")
        conn.execute(
            """create function refuse(state text, reason text) returns int language plpgsql as
            $$ begin raise exception '%', reason using errcode = state; end $$"""
        )
        yield conn


@pytest.fixture(params=KINDS)
async def opened(request: pytest.FixtureRequest, dsn: str, watcher: psycopg.Connection) -> AsyncIterator[Opened]:
    async with KINDS[request.param](dsn) as found:
        yield found


def insert(*numbers: int, sql: str = INSERT_SQL) -> Statement[list[tuple[object, ...]]]:
    low, big, half, yes, none, text, _ = VALUES
    jobs = json.dumps([{"n": n, "note": "ok"} for n in numbers])
    params: Mapping[str, object] = {
        "jobs": jobs, "low": low, "big": big, "half": half, "yes": yes, "none": none, "text": text
    }  # fmt: skip
    return Statement(sql, params, _tuples)


def _tuples(rows: Sequence[Row]) -> list[tuple[object, ...]]:
    return [tuple(row) for row in rows]


def count(watcher: psycopg.Connection) -> int:
    row = watcher.execute("select count(*) from app_t").fetchone()
    assert row is not None
    return int(row[0])


async def test_rows_come_back_in_column_order_whatever_the_connection_makes_of_rows(opened: Opened) -> None:
    assert await opened.run(insert(1, 2)) == [(n, "ok", f'{{"n": {n}}}', *VALUES) for n in (1, 2)]


async def test_a_statement_without_parameters_may_have_a_per_cent_sign(opened: Opened) -> None:
    assert await opened.run(Statement("select '100 %%', 7 %% 4", {}, _tuples)) == [("100 %", 3)]


async def test_what_was_run_is_invisible_outside_until_the_caller_commits(
    opened: Opened, watcher: psycopg.Connection
) -> None:
    await opened.run(insert(1, 2))
    assert count(watcher) == 0
    await opened.commit()
    assert count(watcher) == 2


async def test_what_was_run_is_gone_after_the_caller_rolls_back(opened: Opened, watcher: psycopg.Connection) -> None:
    await opened.run(insert(1))
    await opened.rollback()
    assert count(watcher) == 0


async def test_a_savepoint_rolled_back_takes_only_what_came_after_it(
    opened: Opened, watcher: psycopg.Connection
) -> None:
    await opened.run(insert(1))
    await opened.execute("savepoint here")
    await opened.run(insert(2, 3))
    await opened.execute("rollback to savepoint here")
    await opened.commit()
    assert count(watcher) == 1


async def test_it_joins_a_transaction_in_which_the_caller_has_already_written(
    opened: Opened, watcher: psycopg.Connection
) -> None:
    await opened.execute("insert into app_t (n) values (0)")
    await opened.run(insert(1))
    await opened.execute("insert into app_t (n) values (2)")
    assert count(watcher) == 0
    await opened.commit()
    assert count(watcher) == 3


async def test_the_wrong_colour_is_refused_and_the_transaction_goes_on(
    opened: Opened, watcher: psycopg.Connection
) -> None:
    await opened.execute("insert into app_t (n) values (0)")
    with pytest.raises(InvalidConnection, match=r"is a(n async|\ssync) connection: .*enqueue\(...\)"):
        await opened.wrong(insert(1))
    await opened.run(insert(2))
    await opened.commit()
    assert count(watcher) == 2


@pytest.mark.parametrize(
    ("state", "error"), [("PQ001", LeaseLost), ("PQ002", InvalidJob)], ids=["lease lost", "invalid job"]
)
async def test_the_servers_refusal_is_pgqueues_error_with_the_servers_words(
    opened: Opened, state: str, error: type[Exception]
) -> None:
    statement = Statement(
        "select refuse(%(state)s::text, %(reason)s::text)", {"state": state, "reason": "job 7: so"}, _tuples
    )
    with pytest.raises(error, match=r"^job 7: so$") as caught:
        await opened.run(statement)
    assert caught.value.__cause__ is not None
    assert sqlstate(caught.value) == state


@pytest.mark.parametrize(
    "sql", ["select * from pgqueue_gone.job", "select pgqueue_gone.f(1)", "select pgqueue.no_such_function(1)"]
)
async def test_a_missing_schema_says_to_migrate(opened: Opened, sql: str) -> None:
    with pytest.raises(SchemaMismatch, match="run `pgqueue migrate`"):
        await opened.run(Statement(sql, {}, _tuples))


async def test_another_error_of_the_server_stays_the_drivers_own(opened: Opened) -> None:
    with pytest.raises(Exception, match="division by zero") as caught:
        await opened.run(Statement("select 1 / 0", {}, _tuples))
    assert not type(caught.value).__module__.startswith("pgqueue")
    assert sqlstate(caught.value) == "22012"


async def test_an_aborted_transaction_is_refused_with_what_to_do(opened: Opened, watcher: psycopg.Connection) -> None:
    await opened.execute("savepoint here")
    with pytest.raises(Exception, match="division by zero"):
        await opened.run(Statement("select 1 / 0", {}, _tuples))
    with pytest.raises(InvalidConnection, match="aborted by an earlier error: roll it back"):
        await opened.run(insert(1))
    await opened.rollback()
    assert count(watcher) == 0


def test_a_statement_that_returns_no_rows_decodes_none(dsn: str, watcher: psycopg.Connection) -> None:
    statement: Statement[Any] = Statement("delete from app_t", {}, _tuples)
    assert run(watcher, statement) == []
