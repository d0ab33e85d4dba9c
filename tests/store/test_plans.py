"""The plans that the figures rest on hold with 100,000 jobs, with and without statistics, custom and generic."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest
from pytest_postgresql.executors.noop import NoopExecutor

from pgqueue.core.states import LIVE, State, Verb
from pgqueue.db.placeholders import numbered
from pgqueue.store import cluster, control, jobs
from pgqueue.store.statement import Statement
from tests.conftest import _database
from tests.store.desk import KINDS, Ack, Desk, Held, columns, verb_statement

Plan: TypeAlias = dict[str, object]
HISTORY = 90_000
CUSTOM, GENERIC = "force_custom_plan", "force_generic_plan"


@pytest.fixture(scope="module")
def crowd(template: NoopExecutor) -> Iterator[Desk]:
    """A database with 100,000 jobs: nine tenths finished, the others in chunks, alone, and scheduled."""
    with _database(template, template.template_dbname) as dsn, Desk(dsn) as desk:
        desk.sql("alter system set autovacuum = off")
        desk.sql("select pg_reload_conf()")
        try:
            fill(desk)
            yield desk
        finally:
            desk.sql("alter system reset autovacuum")
            desk.sql("select pg_reload_conf()")


def fill(desk: Desk) -> None:
    desk.sql(
        """insert into pgqueue.job (queue, kind, status, finalized_at, args)
           select 'default', 'k', 1, now(), jsonb_build_object('text', repeat('x', 600)) from generate_series(1, %s)""",
        HISTORY,
    )
    for _ in range(6):
        desk.enqueue(1000)  # chunks
    desk.sql("select pgqueue.enqueue('k') from generate_series(1, 3000)")  # singles
    desk.enqueue(1000, delay=3600)
    desk.sql(
        "insert into pgqueue.waiting select id, now() + interval '1 day', 0, 'scheduled' from generate_series(1, 20000) id"  # noqa: E501
    )
    assert desk.worker


@pytest.fixture(params=["analyzed", "no statistics"])
def desk(crowd: Desk, request: pytest.FixtureRequest) -> Iterator[Desk]:
    """The crowd in a transaction that is rolled back."""
    crowd.sql("begin")
    tables = "pgqueue.job, pgqueue.ready, pgqueue.waiting, pgqueue.lease, pgqueue.unique_key, pgqueue.request"
    if request.param == "analyzed":
        crowd.sql(f"analyze {tables}")
    yield crowd
    crowd.sql("rollback")


def plan(desk: Desk, statement: Statement[object], mode: str) -> Plan:
    """How the server would run the prepared statement with these parameters; it isn't run."""
    text, values = numbered(statement.sql, statement.params)
    literals = ", ".join(str(desk.value("select quote_nullable((%s)::text)", value)) for value in values)
    desk.sql(f"set local plan_cache_mode = {mode}")
    desk.conn.execute(f"prepare q as {text}".encode())
    call = f"q({literals})" if values else "q"
    rows = desk.conn.execute(f"explain (format json) execute {call}".encode()).fetchall()
    desk.conn.execute("deallocate q")
    return root_of(rows[0][0])


def root_of(document: object) -> Plan:
    found = document if isinstance(document, list) else json.loads(str(document))
    root: Plan = found[0]["Plan"]
    return root


def nodes(root: Plan) -> Iterator[Plan]:
    yield root
    for child in root.get("Plans", []):  # type: ignore[attr-defined]
        yield from nodes(child)


def sequential(root: Plan) -> set[str]:
    """The tables that are read from end to end."""
    return {str(node["Relation Name"]) for node in nodes(root) if node["Node Type"] == "Seq Scan"}


def indexes(root: Plan) -> set[str]:
    return {str(node["Index Name"]) for node in nodes(root) if "Index Name" in node}


def claiming(desk: Desk, lease: int) -> Statement[jobs.Batch]:
    return jobs.claim(
        "default",
        worker=desk.worker,
        lease=lease,
        kinds=KINDS,
        marks={5: 0, 0: 0},
        chunks=500,
        limit=500,
        schema="pgqueue",
    )


@pytest.mark.parametrize("mode", [CUSTOM, GENERIC])
def test_claim_walks_the_queue_in_order_and_looks_jobs_up(desk: Desk, mode: str) -> None:
    found = plan(desk, claiming(desk, 1), mode)
    assert {"ready_order", "job_pkey"} <= indexes(found)
    assert sequential(found) & {"job", "ready", "lease"} == set()
    walk = next(node for node in nodes(found) if node.get("Index Name") == "ready_order")
    assert "seq" in str(walk["Index Cond"]), "the mark must bound the scan"


@pytest.mark.parametrize("mode", [CUSTOM, GENERIC])
def test_the_claim_sorts_nothing_before_it_locks(desk: Desk, mode: str) -> None:
    found = plan(desk, claiming(desk, 1), mode)
    lock = next(node for node in nodes(found) if node["Node Type"] == "LockRows")
    assert "Sort" not in {node["Node Type"] for node in nodes(lock)}, "it would lock the whole queue"


@pytest.mark.parametrize("mode", [CUSTOM, GENERIC])
def test_stage_looks_at_due_jobs_only(desk: Desk, mode: str) -> None:
    desk.sql("update pgqueue.waiting set due = clock_timestamp() - interval '1 s' where job_id % 500 = 0")
    found = plan(desk, cluster.stage(1000, schema="pgqueue"), mode)
    assert {"waiting_due", "job_pkey"} <= indexes(found)
    assert sequential(found) & {"job", "waiting"} == set()


@pytest.mark.parametrize("mode", [CUSTOM, GENERIC])
@pytest.mark.parametrize("size", [1, 500])
def test_endings_look_jobs_up(desk: Desk, mode: str, size: int) -> None:
    first = HISTORY + 1
    acks = [Ack(id, 0, 1) for id in range(first, first + size)]
    document = json.dumps(
        [
            {"id": ack.id, "claim": 0, "lease": 1, "state": "completed", "finished_at": "2023-01-01T00:00Z"}
            for ack in acks
        ]
    )
    back = [(ack.id, 0, 1) for ack in acks]
    for statement in (
        jobs.complete(columns(acks), whole=[1], part=[], schema="pgqueue"),
        jobs.settle(document, whole=[1], part=[], schema="pgqueue"),
        jobs.give_back(back, whole=[1], part=[], schema="pgqueue"),
        jobs.keep(document, schema="pgqueue"),
    ):
        found = plan(desk, statement, mode)
        assert "job_pkey" in indexes(found)
        assert "job" not in sequential(found), statement.sql[:60]


@pytest.mark.parametrize("mode", [CUSTOM, GENERIC])
@pytest.mark.parametrize("state", sorted(LIVE))
def test_live_jobs_by_filter_are_looked_up_one_by_one(desk: Desk, mode: str, state: State) -> None:
    statement = control.match(control.Filter(state=state, queue="default"), limit=10, before=None, schema="pgqueue")
    found = plan(desk, statement, mode)
    assert "job_pkey" in indexes(found)
    assert "job" not in sequential(found)
    kinds = {str(node["Node Type"]) for node in nodes(found)}
    assert kinds & {"Hash Join", "Merge Join"} == set(), "only nested loops, whatever the statistics"


def test_rescue_looks_jobs_up(desk: Desk) -> None:
    held = desk.claim(500)
    assert held.jobs
    found = plan(desk, cluster.rescue(schema="pgqueue"), GENERIC)
    assert "job" not in sequential(found)


@pytest.mark.parametrize("mode", [CUSTOM, GENERIC])
def test_jobs_by_id_are_looked_up(desk: Desk, mode: str) -> None:
    assert "job" not in sequential(plan(desk, control.get([HISTORY, 5], schema="pgqueue"), mode))


@pytest.mark.parametrize("mode", [CUSTOM, GENERIC])
def test_verbs_look_jobs_up(desk: Desk, mode: str) -> None:
    for verb, ids in itertools.product(Verb, ([HISTORY + 1], list(range(HISTORY, HISTORY + 200)))):
        found = plan(desk, verb_statement(verb, ids), mode)
        assert "job" not in sequential(found), f"{verb} of {len(ids)}"


@pytest.mark.parametrize("state", ["running", "scheduled", "retryable", "pending", "available"])
def test_live_jobs_are_found_without_their_history(crowd: Desk, state: str) -> None:
    desk = crowd
    desk.sql("begin")
    for _ in range(3):
        desk.claim(100)
    desk.sql("delete from pgqueue.ready where cardinality(ids) = 1")
    desk.sql("delete from pgqueue.waiting where job_id % 50 <> 0")
    desk.sql("analyze")
    rows = desk.sql(f"explain (format json) select id, kind, args from pgqueue.live_jobs where state = '{state}'")
    desk.sql("rollback")
    root = root_of(rows[0][0])
    assert "job" not in sequential(root)
    if state == "running":
        assert "waiting" not in {node.get("Relation Name") for node in nodes(root)}, "the other branches fall away"


# A worker that started on an empty queue has its plans from then, until autovacuum's next ANALYZE. No test of time: what  # noqa: E501
# is asked for is 100 times less than what a bad plan takes.


@pytest.mark.parametrize("analyzed", [True, False])
@pytest.mark.parametrize(
    "ending", ["complete", "settle", "keep", "settle with checkpoints", "give back", "rescue", "delete"]
)
def test_a_plan_from_the_time_when_the_tables_were_small_does_no_harm(
    fresh_db: str, ending: str, analyzed: bool
) -> None:
    endings: dict[str, Callable[[Desk, Held], object]] = {
        "complete": lambda desk, held: desk.complete(held),
        "settle": lambda desk, held: desk.settle(held, "completed"),
        "keep": lambda desk, held: desk.keep(held, {"data": {"a": 1}}),
        "settle with checkpoints": lambda desk, held: (
            desk.keep(held, {"data": {"a": 1}}),
            desk.settle(held, "completed"),
        ),
        "give back": lambda desk, held: desk.give_back(held),
        "rescue": lambda desk, held: desk.die(),
        "delete": lambda desk, held: (desk.settle(held, "cancelled"), desk.apply(Verb.DELETE, *held.ids)),
    }
    with Desk(fresh_db) as desk:
        desk.sql("alter table pgqueue.job set (autovacuum_enabled = off)")
        desk.sql("set plan_cache_mode = force_generic_plan")
        if analyzed:
            desk.enqueue(60)
            desk.complete(desk.claim())
            desk.sql("analyze")
        desk.enqueue()
        endings[ending](desk, desk.claim())
        desk.apply(Verb.CANCEL, *range(1, 200))
        desk.sql("insert into pgqueue.job (queue, kind, status) select 'q', 'k', 1 from generate_series(1, 60000)")
        desk.enqueue(500)
        held = desk.claim()
        desk.sql("set statement_timeout = '3s'")
        endings[ending](desk, held)
