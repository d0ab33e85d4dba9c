"""The database does what tests/spec.py says, whatever happens in whichever order."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pgqueue.core.states import State, Verb
from pgqueue.store import control
from tests.spec import Spec
from tests.store.desk import Desk, Held, verb_statement

PRIORITIES = [5, 0]
HOUR = 3600.0
EXAMPLES = int(os.environ.get("PGQUEUE_SPEC_EXAMPLES", "40"))
DELAYS = st.sampled_from([HOUR, 2 * HOUR])
TABLES = ("job", "ready", "waiting", "lease", "suspect", "request", "unique_key", "attempt", "tally", "worker", "void")


class QueueMachine(RuleBasedStateMachine):
    """The database and the specification side by side. Time stands still unless `hour` moves both."""

    desk: Desk

    def __init__(self) -> None:
        super().__init__()
        self.spec = Spec()
        self.past: list[Held] = []  # every lease there ever was, living or not
        self.alive: dict[int, list[int]] = {}  # worker: its leases

    @initialize()
    def begin(self) -> None:
        for table in TABLES:
            self.desk.sql(f"delete from pgqueue.{table}")
        self.desk._worker = None
        self.workers = [self.desk.register(), self.desk.register()]
        self.alive = {worker: [] for worker in self.workers}

    def job(self, data: Any) -> int:
        return int(data.draw(st.sampled_from([*sorted(self.spec.jobs), 10**9])))

    def held(self, data: Any) -> Held:
        held: Held = data.draw(st.sampled_from(self.past[-4:]))
        return held

    def remember(self, worker: int, held: Held) -> None:
        self.past.append(held)
        self.alive[worker].append(held.lease)

    # what clients do

    @rule(count=st.integers(1, 5), priority=st.sampled_from(PRIORITIES), delay=st.sampled_from([None, HOUR]))
    def enqueue(self, count: int, priority: int, delay: float | None) -> None:
        for id in self.desk.enqueue(count, priority=priority, delay=delay):
            self.spec.enqueue(id, priority=priority, delay=delay or 0)

    @rule(key=st.sampled_from("uv"), priority=st.sampled_from(PRIORITIES))
    def enqueue_unique(self, key: str, priority: int) -> None:
        (answer,) = self.desk.insert({"unique_key": key, "priority": priority})
        known = self.spec.holder(key)
        assert (answer.inserted, answer.id) == (known is None, self.spec.enqueue(answer.id, priority=priority, key=key))

    @rule(data=st.data(), verb=st.sampled_from([Verb.CANCEL, Verb.STOP, Verb.RETRY, Verb.DELETE]))
    def ask(self, data: Any, verb: Verb) -> None:
        id = self.job(data)
        assert self.desk.run(verb_statement(verb, [id])) == {id: self.spec.apply(verb, id)}

    @rule(data=st.data(), delay=DELAYS)
    def reschedule(self, data: Any, delay: float) -> None:
        id = self.job(data)
        statement = control.reschedule([id], at=None, delay=timedelta(seconds=delay), schema="pgqueue")
        assert self.desk.run(statement) == {id: self.spec.apply(Verb.RESCHEDULE, id, delay=delay)}

    @rule(data=st.data(), priority=st.sampled_from(PRIORITIES))
    def set_priority(self, data: Any, priority: int) -> None:
        id = self.job(data)
        statement = control.set_priority([id], priority=priority, schema="pgqueue")
        assert self.desk.run(statement) == {id: self.spec.apply(Verb.SET_PRIORITY, id, priority=priority)}

    # what workers do

    @rule(which=st.integers(0, 1), limit=st.integers(1, 6))
    def claim(self, which: int, limit: int) -> None:
        worker = self.workers[which]
        held = self.desk.claim(limit, worker=worker, priorities=PRIORITIES)
        while len(held.jobs) < limit and held.batch.voids:  # void entries had taken places
            more = self.desk.claim(limit - len(held.jobs), worker=worker, priorities=PRIORITIES)
            self.merge(held, more)
        assert self.spec.claim(held.lease, limit, held.ids)
        if held.jobs:
            self.remember(worker, held)

    def merge(self, held: Held, more: Held) -> None:
        """Two leases as one, which the specification knows only."""
        held.jobs += more.jobs
        held.batch = more.batch
        self.desk.sql("delete from pgqueue.lease where id = any(%s)", [held.lease, more.lease])
        if held.jobs:
            self.desk.sql(
                "insert into pgqueue.lease (id, worker_id, ids, claims) values (%s, %s, %s, %s)",
                held.lease, held.lease >> 32, held.ids, [job.claim for job in held.jobs],
            )  # fmt: skip

    @rule(which=st.integers(0, 1))
    def claim_suspect(self, which: int) -> None:
        self.desk._worker = self.workers[which]
        held = self.desk.claim_suspect()
        assert held.ids == self.spec.claim_suspect(held.lease)
        if held.jobs:
            self.remember(self.workers[which], held)

    @precondition(lambda self: self.past)
    @rule(data=st.data(), count=st.integers(1, 6))
    def complete(self, data: Any, count: int) -> None:
        held = self.held(data)
        chosen = held.jobs[:count]
        accepted = {job.id for job in chosen if self.spec.settle(job.id, job.claim, held.lease, State.COMPLETED)}
        assert set(self.desk.complete(held, chosen, part=True)) == {job.id for job in chosen} - accepted

    @precondition(lambda self: self.past)
    @rule(
        data=st.data(),
        delay=DELAYS,
        state=st.sampled_from([State.RETRYABLE, State.SCHEDULED, State.AVAILABLE, State.DISCARDED, State.COMPLETED]),
    )
    def settle(self, data: Any, delay: float, state: State) -> None:
        held = self.held(data)
        job = data.draw(st.sampled_from(held.jobs))
        cost = int(state == State.RETRYABLE)
        if held.lease in self.spec.solo and state == State.AVAILABLE:
            return  # the engine says `solo` then: see test_rescue
        recorded = self.spec.settle(job.id, job.claim, held.lease, state, delay=delay, cost=cost)
        answer = self.desk.settle(held, str(state), [job], part=True, delay=delay, attempt_cost=cost)
        assert answer == ({job.id: True} if recorded else {})

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def give_back(self, data: Any) -> None:
        held = self.held(data)
        mine = [job for job in held.jobs if self.spec.owned(job.id, job.claim, held.lease)]
        assert self.desk.give_back(held) == self.spec.give_back(held.lease) == len(mine)

    @rule(which=st.integers(0, 1))
    def die(self, which: int) -> None:
        worker = self.workers[which]
        self.desk.silence(worker)
        leases = self.alive.pop(worker)
        rescued = 0
        for _ in range(1 + len(leases) // 20):
            rescued += self.desk.rescue()[0]
        assert rescued == self.spec.rescue(leases)
        self.workers[which] = self.desk.register()
        self.alive[self.workers[which]] = []

    @rule()
    def hour(self) -> None:
        self.desk.sql("update pgqueue.waiting set due = due - interval '1 hour' where due < 'infinity'")
        self.desk.stage()
        self.spec.advance(HOUR)

    @invariant()
    def the_same_can_be_seen(self) -> None:
        seen = self.desk.sql(
            """select v.id, v.state, j.claim, j.attempt, v.crashes, v.priority, v.request
               from pgqueue.jobs v join pgqueue.job j on j.id = v.id order by v.id"""
        )
        said = [
            (job.id, job.state, job.claim, job.attempt, job.crashes, job.priority, job.request)
            for job in sorted(self.spec.jobs.values(), key=lambda job: job.id)
        ]
        assert seen == said


def test_the_database_does_what_the_specification_says(desk: Desk) -> None:
    machine = type("Machine", (QueueMachine,), {"desk": desk})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
