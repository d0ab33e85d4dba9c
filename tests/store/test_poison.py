"""Values that no job may have: refused at the door of SQL, and no batch is spoilt by one that came in all the same."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import errors
from psycopg.types.json import Jsonb

from pgqueue.core.states import Verb
from pgqueue.db.failure import sqlstate
from pgqueue.store import jobs
from pgqueue.tasks.json_text import SIZE_LIMIT_BYTES, encode, encode_object
from tests.store.desk import Desk, outcome

NESTED_65 = '{"a":' + "[" * 64 + "1" + "]" * 64 + "}"
NESTED_64 = '{"a":' + "[" * 63 + "1" + "]" * 63 + "}"

BAD = {
    "kind => null": "kind",
    "kind => ''": "kind",
    "kind => '1k'": "kind",
    "kind => 'a b'": "kind",
    "kind => E'a\\nb'": "kind",
    "kind => E'a\\n'": "kind",
    "kind => repeat('k', 129)": "kind",
    "kind => repeat('k ', 100000)": "kind",
    "kind => 'k', queue => 'a b'": "queue",
    "kind => 'k', queue => null": "queue",
    "kind => 'k', queue => E'q\\nq'": "queue",
    "kind => 'k', args => null": "args",
    "kind => 'k', args => '[1]'": "args",
    "kind => 'k', args => '1'": "args",
    "kind => 'k', args => 'null'": "args",
    "kind => 'k', args => jsonb_build_object('a', repeat('x', 1048576))": "args",
    "kind => 'k', args => jsonb_build_object('a', repeat('x', 20000000))": "args",
    f"kind => 'k', args => '{NESTED_65}'": "args",
    "kind => 'k', priority => 32768": "priority",
    "kind => 'k', priority => -32769": "priority",
    "kind => 'k', priority => null": "priority",
    "kind => 'k', delay => '-1 second'": "delay",
    "kind => 'k', delay => '200 years'": "delay",
    "kind => 'k', delay => '100000000 days'": "delay",
    "kind => 'k', delay => '1 hour', scheduled_at => now()": "delay and scheduled_at",
    "kind => 'k', scheduled_at => 'infinity'": "scheduled_at",
    "kind => 'k', scheduled_at => '-infinity'": "scheduled_at",
    "kind => 'k', scheduled_at => '20000-01-01'": "scheduled_at",
    "kind => 'k', scheduled_at => '0044-03-15 BC'": "scheduled_at",
    "kind => 'k', expires_at => 'infinity'": "expires_at",
    "kind => 'k', expires_at => '-infinity'": "expires_at",
    "kind => 'k', expires_at => '12000-01-01'": "expires_at",
    "kind => 'k', max_attempts => 0": "max_attempts",
    "kind => 'k', max_attempts => 1001": "max_attempts",
    "kind => 'k', timeout => '0'": "timeout",
    "kind => 'k', timeout => '-1 s'": "timeout",
    "kind => 'k', timeout => '367 days'": "timeout",
    "kind => 'k', unique_key => ''": "unique_key",
    "kind => 'k', unique_key => repeat('u', 513)": "unique_key",
    "kind => 'k', tags => array_fill('t'::text, array[33])": "tags",
    "kind => 'k', tags => array[repeat('t', 129)]": "tags",
    "kind => 'k', tags => array['']": "tags",
    "kind => 'k', tags => array[null]::text[]": "tags",
    "kind => 'k', tags => array[array['a', 'b']]": "tags",
    "kind => 'k', metadata => null": "metadata",
    "kind => 'k', metadata => '1'": "metadata",
    "kind => 'k', metadata => '{\"pgqueue\": 1}'": "metadata",
    "kind => 'k', metadata => jsonb_build_object('a', repeat('x', 1048576))": "metadata",
    f"kind => 'k', metadata => '{NESTED_65}'": "metadata",
    "kind => 'k', tenant => repeat('t', 129)": "tenant",
    "kind => 'k', tenant => ''": "tenant",
}


@pytest.mark.parametrize("arguments", BAD, ids=lambda text: text[:70])
def test_the_door_of_sql_refuses_a_bad_value_in_one_line_that_names_it(desk: Desk, arguments: str) -> None:
    with pytest.raises(psycopg.Error) as refusal:
        desk.conn.execute(f"select pgqueue.enqueue({arguments})".encode())
    message = refusal.value.diag.message_primary or ""
    assert sqlstate(refusal.value) == "PQ002", message
    assert message.startswith(f"pgqueue.enqueue: {BAD[arguments]}")
    assert "\n" not in message
    assert len(message) < 400
    assert desk.value("select count(*) from pgqueue.job") == 0


GOOD = [
    "'k'",
    "repeat('k', 128)",
    "'Ab_c.d:e/f-1'",
    f"'k', '{NESTED_64}'",
    "'k', queue => 'q', priority => -32768",
    "'k', delay => '0'",
    "'k', delay => '100 years'",
    "'k', scheduled_at => '9999-12-01'",
    "'k', scheduled_at => '0001-02-01'",
    "'k', max_attempts => 1000, timeout => '366 days', unique_key => repeat('ä', 512)",
    "'k', timeout => '1 millisecond'",
    "'k', tags => array_fill(repeat('t', 128), array[32]), tenant => repeat('t', 128)",
    "'k', tags => '{}'",
    "'k', metadata => '{\"a\": {\"pgqueue\": 1}}'",
]


@pytest.mark.parametrize("arguments", GOOD, ids=lambda text: text[:70])
def test_the_door_of_sql_takes_what_is_just_within_the_limits(desk: Desk, arguments: str) -> None:
    (row,) = desk.conn.execute(f"select pgqueue.enqueue({arguments})".encode()).fetchall()
    assert desk.job(row[0]).id == row[0], "and it can be read back"


def near_limit(item: object) -> dict[str, object]:
    """As many items as fit into 1 MiB of compact JSON."""
    size = len(encode_object("item", {"": [item, item]})) - len(encode_object("item", {"": [item]}))
    return {"a": [item] * ((SIZE_LIMIT_BYTES - 16) // size)}


LARGEST = {
    "one text": {"a": "x" * (SIZE_LIMIT_BYTES - 8)},
    "digits": near_limit(1),
    "floats that PostgreSQL writes out": near_limit(1e300),
    "small floats": near_limit(1e-300),
    "rather small floats": near_limit(1e-7),
    "empty objects": near_limit({}),
    "pairs": near_limit({"a": 1, "b": 2}),
    "prose": near_limit("one, two: three"),
    "literals": near_limit(None),
}


@pytest.mark.parametrize("name", LARGEST)
def test_the_door_of_sql_takes_the_largest_args_that_pythons_door_takes(desk: Desk, name: str) -> None:
    text = encode_object("args", LARGEST[name])
    assert len(text) > SIZE_LIMIT_BYTES * 0.99
    desk.sql("select pgqueue.enqueue('k', %s::jsonb)", text)


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30)


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NUMBERS | TEXTS, min_size=3, max_size=50))
def test_whatever_the_values_the_door_of_sql_never_counts_more_than_pythons(desk: Desk, items: list[object]) -> None:
    text = encode({"a": items * (SIZE_LIMIT_BYTES // (len(encode(items)) - 1) + 1)})
    assert len(text) > SIZE_LIMIT_BYTES
    counted = desk.value("select pgqueue.json_size(%s::text::jsonb)", text.decode())
    assert int(str(counted)) <= len(text)


@pytest.mark.parametrize(
    ("draft", "state"),
    [
        ({"args": [{}, {"a": "\0"}, {}]}, "22P05"),
        ({"args": {"a": "\0"}}, "22P05"),
        ({"metadata": {"a": "\0"}}, "22P05"),
        ({"args": {"a": "\ud800"}}, "22P02"),
        ({"priority": 40000}, "22003"),
        ({"max_attempts": 10**6}, "22003"),
        ({"delay": 1e300}, "22008"),
        ({"kind": None}, "23502"),
    ],
)
def test_enqueue_refuses_what_postgresql_cannot_keep_and_inserts_none_of_the_batch(
    desk: Desk, draft: dict[str, object], state: str
) -> None:
    with pytest.raises(psycopg.Error) as refusal:
        desk.insert(draft)
    assert sqlstate(refusal.value) == state
    assert desk.value("select count(*) from pgqueue.job") == 0
    assert desk.leftovers() == {}


@pytest.mark.parametrize(
    "more", [{"result": "\0"}, {"error": {"message": "\0"}}, {"delay": 1e300, "state": "retryable"}]
)
def test_settle_refuses_a_poisoned_outcome_and_records_none_of_the_batch(desk: Desk, more: dict[str, object]) -> None:
    """The completer then halves the batch until the poison is alone."""
    desk.enqueue(3)
    held = desk.claim()
    rows = [outcome(job, held.lease, "completed") for job in held.jobs]
    rows[1] |= more
    before = desk.snapshot()
    with pytest.raises(errors.DataError) as refusal:
        desk.run(jobs.settle(json.dumps(rows), whole=[held.lease], part=[], schema="pgqueue"))
    assert (sqlstate(refusal.value) or "").startswith("22")
    assert desk.snapshot() == before
    good = json.dumps([rows[0], rows[2]])
    assert desk.run(jobs.settle(good, whole=[], part=[held.lease], schema="pgqueue")) == {
        rows[0]["id"]: True,
        rows[2]["id"]: True,
    }


@pytest.mark.parametrize("text", ['{"n": 1e400}', '{"n": ' + "9" * 5000 + "}", '{"a": "\\u00e9\\ud83d\\ude00"}'])
def test_args_that_python_cannot_decode_are_claimed_as_text_beside_good_ones(desk: Desk, text: str) -> None:
    good = desk.enqueue_one(args={"a": 1})
    desk.sql("select pgqueue.enqueue('k', %s::jsonb)", text)
    claimed = desk.claim()
    assert len(claimed.jobs) == 2
    assert claimed.jobs[0].id == good
    assert claimed.jobs[0].args == '{"a": 1}'
    assert len(claimed.jobs[1].args) >= len('{"n": 1}')
    assert desk.complete(claimed) == []


def test_a_huge_job_is_shown_by_the_view_and_deleted_like_any_other(desk: Desk) -> None:
    id = int(str(desk.value("select pgqueue.enqueue('k', jsonb_build_object('n', 1e400))")))
    assert desk.state(id) == "available"
    assert desk.ask(Verb.DELETE, id) == "deleted"


def test_sql_and_python_insert_the_same_job(desk: Desk) -> None:
    desk.sql(
        """select pgqueue.enqueue('k', '{"a": 1}', queue => 'q', priority => 3, delay => '1 hour', max_attempts => 7,
             timeout => '90 s', expires_at => '2099-01-01Z', unique_key => 'u1', tags => '{t}', metadata => '{"m": 1}',
             tenant => 'te', parent_id => 5)"""
    )
    desk.insert(
        {
            "args": {"a": 1}, "queue": "q", "priority": 3, "delay": 3600, "max_attempts": 7, "timeout": 90,
            "expires_at": datetime(2099, 1, 1, tzinfo=UTC), "unique_key": "u2", "tags": ["t"], "metadata": {"m": 1},
            "tenant": "te", "parent_id": 5,
        }
    )  # fmt: skip
    rows = desk.sql(
        """select queue, kind, priority, args, metadata, max_attempts, timeout, expires_at, tags, tenant, parent_id,
             round(extract(epoch from scheduled_at - created_at)) from pgqueue.job order by id"""
    )
    assert rows[0] == rows[1]
    assert math.isclose(float(str(rows[0][-1])), 3600)


def test_an_enqueue_in_sql_with_a_live_key_returns_the_live_job(desk: Desk) -> None:
    first, second = (desk.value("select pgqueue.enqueue('k', unique_key => 'u')") for _ in range(2))
    assert first == second
    assert desk.conn.execute("select pgqueue.enqueue('k', args => %s)", [Jsonb({"a": 1})]).fetchall()
