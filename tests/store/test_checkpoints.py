"""What an attempt has made durable is in the job's metadata when it ends, however it ends, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeAlias

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from pgqueue.core.states import State, Verb
from pgqueue.db.schema import migrate
from pgqueue.store import cluster, control, jobs
from pgqueue.store.statement import Statement
from tests.store.desk import Desk, Held, bring_to, outcome, verb_statement, wait_until_blocked
from tests.store.test_races import Meeting

Json: TypeAlias = Any
PARTS = ("done", "cursor", "data")
MINE = {"mine": {"done": {"load": 1}}}  # keys of the application's own
BARRIER = (
    "set_config('lock_timeout', '100ms', true)",
    "case when {lock} then set_config('lock_timeout', '1s', true) end",
)


@pytest.fixture
def held(desk: Desk) -> Held:
    """Two running jobs."""
    desk.enqueue(2, metadata=MINE)
    return desk.claim()


@pytest.fixture
def meeting(desk: Desk, desks: Callable[[], Desk]) -> Iterator[Meeting]:
    desk.sql("select 1 where %s > 0", desk.worker)
    with ThreadPoolExecutor(1) as pool:
        yield Meeting(desk, desks(), desks(), pool)


def rows(desk: Desk) -> list[tuple[object, ...]]:
    return list(desk.sql("select part, name, value, by_tx from pgqueue.checkpoint order by job_id, part, name"))


@contextmanager
def lease_lost(said: str = r"(this attempt has lost its lease|it was completed already)") -> Iterator[None]:
    with pytest.raises(psycopg.Error, match=rf"^job \d+: {said}") as caught:
        yield
    assert caught.value.sqlstate == "PQ001"


# The fold


def fold(desk: Desk, metadata: Json, *sources: Json, completed: bool = False) -> Json:
    """sources: what was flushed, the patch, what transactions wrote; None is SQL's null"""
    values = [None if source is None else Jsonb(source) for source in (*sources, None, None, None)[:3]]
    return desk.value("select pgqueue.fold(%s, %s, %s, %s, %s)", Jsonb(metadata), *values, completed)


def model(metadata: Json, kept: Json, patch: Json, rows: Json, completed: bool) -> Json:
    """The same in Python."""
    if not isinstance(metadata, dict):
        return metadata
    merged = metadata.get("pgqueue")
    for part in PARTS:
        news: dict[str, Json] = {}
        for source in (kept, patch, rows):
            found = source.get(part) if isinstance(source, dict) else None
            news |= found if isinstance(found, dict) else {}
        if news:
            merged = merged if isinstance(merged, dict) else {}
            before = merged.get(part)
            merged = merged | {part: (before if isinstance(before, dict) else {}) | news}
    if not isinstance(merged, dict):
        return metadata
    merged = {key: value for key, value in merged.items() if not (completed and key in ("done", "cursor"))}
    done, cursor, data = (merged.get(part) for part in PARTS)
    if isinstance(done, dict) and isinstance(cursor, dict):
        merged["cursor"] = {name: value for name, value in cursor.items() if name not in done}
    if isinstance(data, dict):
        merged["data"] = {key: value for key, value in data.items() if value is not None}
    merged = {key: value for key, value in merged.items() if not (key in PARTS and value == {})}
    rest = {key: value for key, value in metadata.items() if key != "pgqueue"}
    return rest | {"pgqueue": merged} if merged else rest


@pytest.mark.parametrize(
    ("metadata", "sources", "expected"),
    [
        ({}, [], {}),
        (MINE, [{}], MINE),
        (MINE, [None, {"done": {"a": 1}}], MINE | {"pgqueue": {"done": {"a": 1}}}),
        ({"pgqueue": {"done": {"a": 1}}}, [None, {"done": {"b": 2}}], {"pgqueue": {"done": {"a": 1, "b": 2}}}),
        ({"pgqueue": {"cursor": {"a": 1}}}, [None, {"done": {"a": None}}], {"pgqueue": {"done": {"a": None}}}),
        ({"pgqueue": {"data": {"a": 1, "b": 2}}}, [None, {"data": {"a": None}}], {"pgqueue": {"data": {"b": 2}}}),
        ({"pgqueue": {"data": {"a": 1}}}, [None, {"data": {"a": None}}], {}),
        ({"pgqueue": {"data": {"a": {"b": None}}}}, [], {"pgqueue": {"data": {"a": {"b": None}}}}),
        ({}, [{"cursor": {"a": 1}}, {"cursor": {"a": 2}}], {"pgqueue": {"cursor": {"a": 2}}}),
        ({}, [{"data": {"a": 1}}, {"data": {"a": 2}}, {"data": {"a": 3}}], {"pgqueue": {"data": {"a": 3}}}),
        ({"pgqueue": {"other": 1}}, [None, {"data": {"a": 2}}], {"pgqueue": {"other": 1, "data": {"a": 2}}}),
        ({"pgqueue": 5}, [], {"pgqueue": 5}),
        ({"pgqueue": 5}, [None, {"data": {"a": 2}}], {"pgqueue": {"data": {"a": 2}}}),
        ({"pgqueue": {"done": [1]}}, [None, {"data": {"a": 2}}], {"pgqueue": {"done": [1], "data": {"a": 2}}}),
        ({"pgqueue": {"done": [1]}}, [None, {"done": {"a": 2}}], {"pgqueue": {"done": {"a": 2}}}),
        ({"pgqueue": {"done": "x", "cursor": {"a": 1}}}, [], {"pgqueue": {"done": "x", "cursor": {"a": 1}}}),
        ([1], [None, {"done": {"a": 2}}], [1]),
        ({}, [[], 7, {"done": 3, "cursor": None}], {}),
    ],
)
def test_the_fold_by_example(desk: Desk, metadata: Json, sources: list[Json], expected: Json) -> None:
    assert fold(desk, metadata, *sources) == expected


@pytest.mark.parametrize("damage", [{}, {"done": 5}, {"cursor": [1]}, {"done": "x", "cursor": None}])
def test_success_removes_steps_and_cursors_and_keeps_data(desk: Desk, damage: Json) -> None:
    before = MINE | {"pgqueue": {"done": {"a": 1}, "cursor": {"b": 2}, "data": {"c": 3}} | damage}
    after = fold(desk, before, None, {"done": {"x": 1}, "data": {"d": 4}}, {"cursor": {"y": 1}}, completed=True)
    assert after == MINE | {"pgqueue": {"data": {"c": 3, "d": 4}}}
    assert fold(desk, {"pgqueue": {"done": {"a": 1}}}, completed=True) == {}


NAMES = st.sampled_from(["a", "b", "", "done", "pgqueue", 'é"\\'])
VALUES = st.sampled_from([None, 1, "x", [], {}, {"a": None}, [None]])
ENTRIES = st.dictionaries(NAMES, VALUES, max_size=3) | VALUES
CHECKPOINTS = st.dictionaries(st.sampled_from([*PARTS, "other"]), ENTRIES, max_size=4) | VALUES
METADATA = st.dictionaries(st.sampled_from(["mine", "pgqueue"]), CHECKPOINTS, max_size=2) | VALUES


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(metadata=METADATA, kept=CHECKPOINTS, patch=CHECKPOINTS, rows=CHECKPOINTS, completed=st.booleans())
def test_the_fold_does_as_its_model(
    desk: Desk, metadata: Json, kept: Json, patch: Json, rows: Json, completed: bool
) -> None:
    expected = model(metadata, kept, patch, rows, completed)
    if metadata is not None:
        assert fold(desk, metadata, kept, patch, rows, completed=completed) == expected


# Every end of an attempt


def checkpoint(desk: Desk, held: Held) -> None:
    """A part by each way there is during an attempt."""
    desk.set_checkpoint(held, "done", "load", 7)
    assert desk.keep(held, {"cursor": {"copy": [1]}, "data": {"old": 1}}) == held.ids


@pytest.mark.parametrize(
    "state", ["completed", "retryable", "scheduled", "available", "cancelled", "stopped", "discarded"]
)
@pytest.mark.parametrize("solo", [False, True])
def test_every_outcome_merges_what_there_is(desk: Desk, held: Held, state: str, solo: bool) -> None:
    checkpoint(desk, held)
    desk.settle(held, state, delay=60, solo=solo, checkpoint={"data": {"total": 3, "old": None}})
    steps = {} if state == "completed" else {"done": {"load": 7}, "cursor": {"copy": [1]}}
    expected = MINE | {"pgqueue": {**steps, "data": {"total": 3}}}
    assert desk.metadata(held.ids[0]) == desk.metadata(held.ids[0], of="job") == expected
    assert rows(desk) == []


@pytest.mark.parametrize("end", ["settle", "rescue"])
@pytest.mark.parametrize(("verb", "state"), [(Verb.CANCEL, "cancelled"), (Verb.STOP, "stopped")])
def test_a_job_whose_wish_is_fulfilled_keeps_its_checkpoint(
    desk: Desk, held: Held, end: str, verb: Verb, state: str
) -> None:
    checkpoint(desk, held)
    desk.apply(verb, *held.ids)
    if end == "settle":
        desk.fail(held)
    else:
        desk.die()
    assert desk.state(held.ids[0]) == state
    assert desk.metadata(held.ids[0]) == MINE | {
        "pgqueue": {"done": {"load": 7}, "cursor": {"copy": [1]}, "data": {"old": 1}}
    }
    assert desk.leftovers() == {}


def test_rescue_merges_what_there_is_and_the_next_attempt_gets_it(desk: Desk, held: Held) -> None:
    checkpoint(desk, held)
    assert desk.die() == (2, 0)
    assert rows(desk) == []
    (again,) = desk.claim_suspect().jobs
    assert json.loads(again.metadata or "") == MINE | {
        "pgqueue": {"done": {"load": 7}, "cursor": {"copy": [1]}, "data": {"old": 1}}
    }


def test_a_job_discarded_for_its_crashes_keeps_its_checkpoint(desk: Desk) -> None:
    id = desk.enqueue_one()
    desk.claim()
    desk.die()
    for crash in (1, 2, 3):
        desk.set_checkpoint(desk.claim_suspect(), "done", str(crash), crash)
        desk.die()
    assert desk.state(id) == "discarded"
    assert desk.metadata(id) == {"pgqueue": {"done": {"1": 1, "2": 2, "3": 3}}}
    assert desk.leftovers() == {}


def test_of_one_name_the_transaction_counts_then_the_end_of_the_attempt_then_what_was_flushed(
    desk: Desk, held: Held
) -> None:
    names = ["a", "b", "c", "d"]
    desk.fail(held, checkpoint={"data": dict.fromkeys(names, "old")}, delay=0)
    desk.make_due()
    again = desk.claim()
    desk.keep(again, {"data": dict.fromkeys(names[:3], "flushed")})
    desk.set_checkpoint(again, "data", "a", "transaction")
    desk.fail(again, checkpoint={"data": dict.fromkeys(names[:2], "end")})
    assert desk.metadata(held.ids[0]) == MINE | {
        "pgqueue": {"data": {"a": "transaction", "b": "end", "c": "flushed", "d": "old"}}
    }


def test_a_checkpoint_of_earlier_attempts_goes_with_success(desk: Desk, held: Held) -> None:
    desk.fail(held, checkpoint={"done": {"a": 1}, "data": {"b": 2}}, delay=0)
    desk.make_due()
    desk.settle(desk.claim(), "completed", result=5)
    assert desk.metadata(held.ids[0]) == MINE | {"pgqueue": {"data": {"b": 2}}}


def test_outcomes_with_and_without_a_checkpoint_go_together(desk: Desk) -> None:
    ids = desk.enqueue(3)
    held = desk.claim()
    document = [
        outcome(job, held.lease, "completed", checkpoint=patch)
        for job, patch in zip(held.jobs, [None, {"data": {"a": 1}}, "damaged"], strict=True)
    ]
    answer = desk.run(jobs.settle(json.dumps(document), whole=[held.lease], part=[], schema="pgqueue"))
    assert answer == dict.fromkeys(ids, True)
    assert [desk.metadata(id) for id in ids] == [{}, {"pgqueue": {"data": {"a": 1}}}, {}]


@pytest.mark.parametrize("damage", [5, None, [], {}, {"done": 5, "cursor": [], "data": "x"}])
@pytest.mark.parametrize("end", ["completed", "retryable", "rescue"])
def test_damaged_metadata_stops_nobody(desk: Desk, held: Held, damage: Json, end: str) -> None:
    desk.sql("update pgqueue.job set metadata = metadata || jsonb_build_object('pgqueue', %s::jsonb)", Jsonb(damage))
    desk.set_checkpoint(held, "data", "a", 1)
    if end == "rescue":
        assert desk.die() == (2, 0)
    else:
        assert desk.settle(held, end, delay=60) == dict.fromkeys(held.ids, True)
    found: Json = desk.metadata(held.ids[0])
    assert found["mine"] == MINE["mine"]
    assert found["pgqueue"]["data"] == {"a": 1}


def test_a_lost_outcome_takes_no_row_of_the_attempt_that_is_running(desk: Desk, held: Held) -> None:
    desk.die()
    running = desk.claim_suspect()
    desk.set_checkpoint(running, "done", "a", 1)
    before = desk.snapshot()
    assert desk.settle(held, "completed", checkpoint={"data": {"b": 1}}) == {}
    assert desk.snapshot() == before


# set_checkpoint and complete_tx: the fence

TX: dict[str, Callable[[Desk, Held], object]] = {
    "set_checkpoint": lambda desk, held: desk.set_checkpoint(held, "done", "a", 1),
    "complete_tx": lambda desk, held: desk.complete_tx(held, {"a": 1}),
}


def with_claim(held: Held, claim: int) -> Held:
    return Held(held.lease, [job._replace(claim=claim) for job in held.jobs], held.batch)


def foreign(desk: Desk, held: Held) -> Held:
    desk.enqueue_one()
    return Held(desk.claim().lease, held.jobs, held.batch)


# What makes an attempt lose its lease; answers with what it has in its hands.
LOSSES: dict[str, Callable[[Desk, Held], Held]] = {
    "rescue": lambda desk, held: (desk.die(), held)[1],
    "cancel": lambda desk, held: (desk.settle(held, "cancelled", part=True), held)[1],
    "failure": lambda desk, held: (desk.fail(held, part=True), held)[1],
    "give back": lambda desk, held: (desk.give_back(held, part=True), held)[1],
    "completion": lambda desk, held: (desk.complete(held), held)[1],
    "deletion": lambda desk, held: (desk.settle(held, "stopped", part=True), desk.apply(Verb.DELETE, *held.ids), held)[
        2
    ],
    "another claim": lambda desk, held: with_claim(held, held.jobs[0].claim + 1),
    "a foreign lease": foreign,
    "no lease": lambda desk, held: Held(1, held.jobs, held.batch),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("call", TX)
def test_who_has_lost_the_lease_is_told_and_can_not_commit(
    desk: Desk, desks: Callable[[], Desk], held: Held, call: str, loss: str
) -> None:
    stale = LOSSES[loss](desk, held)
    before = desk.snapshot()
    user = desks()
    user.sql("begin")
    user.enqueue()
    with lease_lost():
        TX[call](user, stale)
    user.sql("commit")
    assert desk.snapshot() == before


@pytest.mark.parametrize("call", TX)
def test_who_was_told_in_a_savepoint_may_go_on_without_it(
    desk: Desk, desks: Callable[[], Desk], held: Held, call: str
) -> None:
    desk.die()
    before = desk.snapshot()
    user = desks()
    user.sql("begin")
    user.sql("savepoint s")
    with lease_lost():
        TX[call](user, held)
    user.sql("rollback to s")
    user.sql("commit")
    assert desk.snapshot() == before


@pytest.mark.parametrize("undo", ["rollback", "savepoint"])
@pytest.mark.parametrize("call", TX)
def test_what_is_rolled_back_leaves_no_trace(
    desk: Desk, desks: Callable[[], Desk], held: Held, call: str, undo: str
) -> None:
    before = desk.snapshot()
    user = desks()
    user.sql("begin")
    if undo == "savepoint":
        user.sql("savepoint s")
    TX[call](user, held)
    user.sql("rollback" if undo == "rollback" else "rollback to s")
    assert desk.settle(held, "completed", held.jobs[1:], part=True) == {held.ids[1]: True}
    if undo == "savepoint":
        user.sql("commit")
    assert desk.state(held.ids[0]) == "running"
    assert set(desk.snapshot()) >= {row for row in before if f"({held.ids[0]}," in str(row)}
    assert desk.settle(held, "completed", held.jobs[:1]) == {held.ids[0]: True}
    assert desk.metadata(held.ids[0]) == MINE
    assert desk.leftovers() == {}


def test_a_key_may_be_set_again(desk: Desk, held: Held) -> None:
    for value in (1, None, {"a": [2]}):
        desk.set_checkpoint(held, "cursor", "c", value)
        assert rows(desk) == [("cursor", "c", value, True)]
    with pytest.raises(psycopg.errors.CheckViolation):
        desk.set_checkpoint(held, "else", "c", 1)


@pytest.mark.parametrize("call", TX)
def test_a_zombie_that_comes_while_its_job_is_being_rescued_has_lost_it(
    meeting: Meeting, held: Held, call: str
) -> None:
    desk = meeting.watcher
    desk.silence()
    assert meeting.first.rescue() == (2, 0)
    with ThreadPoolExecutor(1) as pool:
        zombie = pool.submit(TX[call], meeting.second, held)
        wait_until_blocked(desk, meeting.second.pid)
        meeting.end()
        with lease_lost():
            zombie.result()
    assert rows(desk) == []
    assert desk.metadata(held.ids[0]) == MINE


def test_rescue_leaves_the_job_of_an_open_transaction_and_takes_it_later_with_its_checkpoint(
    desk: Desk, desks: Callable[[], Desk], held: Held
) -> None:
    user = desks()
    user.sql("begin")
    user.set_checkpoint(held, "done", "a", 1)
    desk.silence()
    assert desk.rescue() == (1, 1)
    assert desk.sql("select ids from pgqueue.lease") == [(held.ids[:1],)]
    user.sql("commit")
    assert desk.rescue() == (1, 0)
    assert desk.metadata(held.ids[0]) == MINE | {"pgqueue": {"done": {"a": 1}}}
    with lease_lost():
        user.set_checkpoint(held, "done", "b", 1)
    assert rows(desk) == []


def test_rescue_leaves_a_job_that_is_being_completed(desk: Desk, desks: Callable[[], Desk], held: Held) -> None:
    user = desks()
    user.sql("begin")
    user.complete_tx(held)
    desk.silence()
    assert desk.rescue() == (1, 1)
    user.sql("commit")
    assert desk.rescue() == (0, 0)
    assert desk.state(held.ids[0]) == "completed"
    assert desk.value("select count(*) from pgqueue.lease") == 0


@pytest.mark.parametrize("end", ["settle", "rescue"])
def test_what_is_committed_between_the_snapshot_of_an_end_and_its_lock_is_not_lost(
    meeting: Meeting, held: Held, end: str
) -> None:
    """A *_tx locks the row and doesn't change it: who gets the lock after it isn't told that there is something new."""
    desk = meeting.watcher
    statement: Statement[Any] = cluster.rescue(schema="pgqueue")
    if end == "settle":
        document = json.dumps([outcome(job, held.lease, "retryable", delay=60) for job in held.jobs])
        statement = jobs.settle(document, whole=[held.lease], part=[], schema="pgqueue")
    else:
        desk.silence()
    running = meeting.stopped(statement, *BARRIER)
    meeting.first.set_checkpoint(held, "done", "a", 1)
    meeting.end()
    assert running.result() == (dict.fromkeys(held.ids, True) if end == "settle" else (2, 0))
    assert desk.metadata(held.ids[0]) == MINE | {"pgqueue": {"done": {"a": 1}}}
    assert rows(desk) == []


@pytest.mark.parametrize("verb", Verb)
def test_a_verb_that_meets_a_claim_keeps_what_the_attempt_has_committed(meeting: Meeting, verb: Verb) -> None:
    desk = meeting.watcher
    id = bring_to(desk, State.SCHEDULED if verb is Verb.RETRY else State.AVAILABLE)
    if verb is Verb.RETRY:
        meeting.first.make_due()
        meeting.first.sql("update pgqueue.waiting set due = 'now'")
        meeting.first.stage()
    meeting.first.set_checkpoint(meeting.first.claim(worker=desk.worker), "done", "a", 1)
    answer = meeting.begin(verb_statement(verb, [id]))
    meeting.end()
    answer.result()
    assert rows(desk) == []
    if verb is not Verb.DELETE:
        assert desk.metadata(id) == {"pgqueue": {"done": {"a": 1}}}


# complete_tx


def test_complete_tx_does_all_that_a_completion_does(desk: Desk, desks: Callable[[], Desk]) -> None:
    id = desk.enqueue_one(unique_key="u", metadata=MINE)
    held = desk.claim()
    checkpoint(desk, held)
    claimed_at = desk.value("select claimed_at from pgqueue.lease where id = %s", held.lease)
    assert desk.ask(Verb.CANCEL, id) == "requested"
    user = desks()
    user.sql("begin")
    user.complete_tx(held, {"sum": 3}, patch={"data": {"total": 3}})
    assert (desk.state(id), desk.tallied()) == ("running", {})
    user.sql("commit")

    job = desk.job(id)
    assert (job.state, job.result, job.attempt, job.request) == ("completed", {"sum": 3}, 1, None)
    assert job.started_at == claimed_at, "it can't have taken a second"
    assert job.worker == "w"
    assert job.finalized_at is not None
    assert desk.metadata(id) == MINE | {"pgqueue": {"data": {"old": 1, "total": 3}}}
    assert desk.tallied() == {"completed": 1}
    assert desk.leftovers() == {"lease": 1}
    assert desk.complete(held) == [id], "it tells the worker nothing new"
    assert desk.leftovers() == {}
    assert desk.enqueue_one(unique_key="u") != id


def test_complete_tx_takes_just_a_job_and_leaves_the_others_of_its_lease(desk: Desk, held: Held) -> None:
    desk.set_checkpoint(held, "done", "a", 1, job=1)
    desk.complete_tx(held, job=0)
    desk.fail(held, chosen=held.jobs[1:])
    assert [desk.state(id) for id in held.ids] == ["completed", "retryable"]
    assert [desk.metadata(id) for id in held.ids] == [MINE, MINE | {"pgqueue": {"done": {"a": 1}}}]


def test_complete_tx_works_once(desk: Desk, held: Held) -> None:
    desk.complete_tx(held)
    before = desk.snapshot()
    for call in TX.values():
        with lease_lost():
            call(desk, held)
    assert desk.snapshot() == before


def test_complete_tx_counts_from_the_start_of_the_attempt(desk: Desk, held: Held) -> None:
    desk.sql("update pgqueue.lease set claimed_at = claimed_at - interval '1 hour'")
    desk.complete_tx(held)
    found = desk.job(held.ids[0])
    assert (found.state, found.result, found.duration) == ("completed", None, timedelta(seconds=1))
    assert desk.sql("select seconds, longest from pgqueue.tally") == [(1, 1)]


@pytest.mark.parametrize("call", TX)
def test_a_mark_on_another_database_says_so_whatever_numbers_it_has(desk: Desk, held: Held, call: str) -> None:
    assert desk.install.version == 4
    desk.sql("update pgqueue.meta set install_id = gen_random_uuid()")
    before = desk.snapshot()
    with pytest.raises(psycopg.Error, match=r"this connection is to another database \(\w+\) than the job's") as told:
        TX[call](desk, held)
    assert told.value.sqlstate == "PQ003"
    assert desk.snapshot() == before


def test_complete_tx_passes_over_a_wish_that_somebody_is_just_repeating(
    desk: Desk, desks: Callable[[], Desk], held: Held
) -> None:
    cancel = control.cancel(held.ids[:1], action=Verb.CANCEL, reason=None, schema="pgqueue")
    desk.run(cancel)
    other = desks()
    other.sql("begin")
    other.run(cancel)
    desk.sql("set lock_timeout = '2s'")
    desk.complete_tx(held)
    other.sql("commit")
    desk.run(cluster.tidy(schema="pgqueue"))
    assert desk.state(held.ids[0]) == "completed"
    assert desk.value("select count(*) from pgqueue.request") == 0


def test_tidy_removes_rows_of_jobs_that_are_final_and_no_others(desk: Desk, held: Held) -> None:
    desk.keep(held, {"data": {"a": 1}})
    desk.sql("update pgqueue.job set status = 1 where id = %s", held.ids[0])
    desk.run(cluster.tidy(schema="pgqueue"))
    assert desk.sql("select job_id from pgqueue.checkpoint") == [(held.ids[1],)]


# keep


def test_keep_replaces_what_it_wrote_itself(desk: Desk, held: Held) -> None:
    desk.keep(held, {"cursor": {"a": 1, "b": 1}, "data": {"x": 1}})
    desk.keep(held, {"cursor": {"a": 2}, "data": {"x": None}})
    assert rows(desk) == [("cursor", "a", 2, False), ("cursor", "b", 1, False), ("data", "x", None, False)] * 2


def test_keep_never_replaces_what_a_transaction_wrote(desk: Desk, held: Held) -> None:
    desk.set_checkpoint(held, "cursor", "a", "tx")
    desk.keep(held, {"cursor": {"a": 1}, "data": {"x": 1}})
    desk.set_checkpoint(held, "data", "x", "tx")
    desk.keep(held, {"cursor": {"a": 2}, "data": {"x": 2}})
    assert rows(desk)[:2] == [("cursor", "a", "tx", True), ("data", "x", "tx", True)]


def test_keep_drops_the_cursors_of_finished_steps(desk: Desk, held: Held) -> None:
    desk.keep(held, {"cursor": {"a": 1, "b": 1}})
    desk.keep(held, {"done": {"a": 9}, "cursor": {"a": 2}})
    assert rows(desk) == [("cursor", "b", 1, False), ("done", "a", 9, False)] * 2


def test_keep_passes_over_locked_and_lost_jobs(desk: Desk, desks: Callable[[], Desk]) -> None:
    desk.enqueue(4)
    held = desk.claim()
    user = desks()
    user.sql("begin")
    user.set_checkpoint(held, "done", "a", 1)
    desk.complete(held, held.jobs[1:2], part=True)
    stale = Held(held.lease, [*held.jobs[:3], held.jobs[3]._replace(claim=9)], held.batch)
    desk.sql("set lock_timeout = '2s'")
    assert desk.keep(stale, {"data": {"x": 1}}) == [held.ids[2]]
    user.sql("commit")
    assert desk.sql("select job_id from pgqueue.checkpoint where not by_tx") == [(held.ids[2],)]
    desk.die()
    assert desk.keep(held, {"data": {"x": 1}}) == []
    assert rows(desk) == []


def test_keep_that_waited_behind_a_transaction_does_not_replace_what_that_wrote(meeting: Meeting, held: Held) -> None:
    entry = {"id": held.ids[0], "claim": held.jobs[0].claim, "lease": held.lease, "patch": {"cursor": {"a": 1}}}
    running = meeting.stopped(jobs.keep(json.dumps([entry]), schema="pgqueue"), *BARRIER)
    meeting.first.set_checkpoint(held, "cursor", "a", "tx")
    meeting.end()
    assert running.result() == held.ids[:1]
    assert rows(meeting.watcher) == [("cursor", "a", "tx", True)]


@pytest.mark.parametrize("patch", [None, 5, [], {}, {"done": 5, "cursor": [], "else": {"a": 1}}, {"done": None}])
def test_keep_makes_nothing_of_an_odd_patch(desk: Desk, held: Held, patch: Json) -> None:
    assert desk.keep(held, patch) == held.ids
    assert rows(desk) == []


# What people see and do


@pytest.mark.parametrize("view", ["jobs", "live_jobs"])
def test_the_views_show_the_merge_while_the_job_runs(
    desk: Desk, desks: Callable[[], Desk], held: Held, view: str
) -> None:
    desk.keep(held, {"cursor": {"load": 1, "copy": 2}})
    user = desks()
    user.sql("begin")
    user.set_checkpoint(held, "done", "load", 7)
    seen = MINE | {"pgqueue": {"cursor": {"load": 1, "copy": 2}}}
    assert desk.metadata(held.ids[0], of=view) == seen
    user.sql("commit")
    assert desk.metadata(held.ids[0], of=view) == MINE | {"pgqueue": {"cursor": {"copy": 2}, "done": {"load": 7}}}
    assert desk.metadata(held.ids[1], of=view) == seen
    assert desk.metadata(held.ids[1], of="job") == MINE


def test_who_may_read_the_view_only_sees_the_merge_too(fresh_db: str) -> None:
    with Desk(fresh_db) as desk:
        id = desk.enqueue_one()
        desk.set_checkpoint(desk.claim(), "done", "a", 1)
        role = f"reader_{desk.pid}"
        desk.sql(f"create role {role}")
        try:
            desk.sql(f"grant usage on schema pgqueue to {role}")
            desk.sql(f"grant select on pgqueue.jobs, pgqueue.live_jobs to {role}")
            desk.sql(f"set role {role}")
            for view in ("jobs", "live_jobs"):
                assert desk.metadata(id, of=view) == {"pgqueue": {"done": {"a": 1}}}
        finally:
            desk.sql("reset role")
            desk.sql(f"drop owned by {role}")
            desk.sql(f"drop role {role}")


@pytest.mark.parametrize("restart", [False, True])
def test_a_retry_goes_on_from_the_checkpoint_unless_it_is_to_start_anew(desk: Desk, held: Held, restart: bool) -> None:
    checkpoint(desk, held)
    desk.settle(held, "discarded")
    desk.run(control.retry(held.ids, restart=restart, schema="pgqueue"))
    assert ("pgqueue" in str(desk.claim().jobs[0].metadata)) is not restart
    assert rows(desk) == []


def test_a_deleted_job_leaves_no_rows(desk: Desk, held: Held) -> None:
    checkpoint(desk, held)
    assert desk.apply(Verb.DELETE, *held.ids) == dict.fromkeys(held.ids, "already running")
    assert rows(desk) != []
    desk.settle(held, "completed")
    assert desk.apply(Verb.DELETE, *held.ids) == dict.fromkeys(held.ids, "deleted")
    assert desk.leftovers() == {}


def test_a_downgrade_loses_no_checkpoint(fresh_db: str) -> None:
    with Desk(fresh_db) as desk:
        id = desk.enqueue_one(metadata=MINE)
        checkpoint(desk, desk.claim())
        seen = desk.metadata(id)
        migrate(fresh_db, target="0001")
        assert desk.metadata(id) == seen
        migrate(fresh_db)
        assert desk.metadata(id) == seen


@pytest.mark.parametrize("damaged", ["[]", "5", '"x"', "null", "true"])
def test_a_job_whose_metadata_is_no_object_can_be_looked_at_and_retried(desk: Desk, held: Held, damaged: str) -> None:
    desk.settle(held, "discarded")
    desk.sql(f"update pgqueue.job set metadata = '{damaged}' where id = {held.ids[0]}")
    assert [desk.job(id).metadata for id in held.ids] == [{}, MINE]
    assert desk.run(control.retry(held.ids, restart=True, schema="pgqueue")) == dict.fromkeys(held.ids, "available")
    assert desk.claim().ids == held.ids
