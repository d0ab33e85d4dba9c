"""What the queue does, as a program one reads over a coffee: everything on a dict, with a clock that is moved by hand.

The executable specification: tests/store/test_spec.py lets it and the real database do the same things in random order
and compares all that can be seen. It says nothing about how: no chunks, no locks, no plans.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pgqueue.core.states import FINAL, REQUESTED, VERBS, State, Verb

CRASHES_ALLOWED = 3
DEATHS_FORGIVEN = 10  # of workers that held other jobs too


@dataclass
class Entry:
    """One job. `lease` is that of the worker that holds it; `place` orders the available ones."""

    id: int
    state: State
    queue: str = "default"
    priority: int = 0
    key: str | None = None
    due: float = 0
    place: int = 0
    claim: int = 0
    attempt: int = 0
    crashes: int = 0
    deaths: int = 0
    lease: int | None = None
    suspect: bool = False
    request: Verb | None = None


@dataclass
class Spec:
    """The whole queue. Answers are those of the statements of the same name."""

    jobs: dict[int, Entry] = field(default_factory=dict)
    solo: set[int] = field(default_factory=set)
    now: float = 0
    head: int = 0
    tail: int = 0

    def enqueue(self, id: int, *, priority: int = 0, delay: float = 0, key: str | None = None) -> int:
        """The id of the job, or of the live one that has its key."""
        holder = self.holder(key)
        if holder is not None:
            return holder
        state = State.SCHEDULED if delay > 0 else State.AVAILABLE
        self.jobs[id] = job = Entry(id, state, priority=priority, key=key, due=self.now + delay)
        self.line_up(job)
        return id

    def holder(self, key: str | None) -> int | None:
        live = (job.id for job in self.jobs.values() if job.key == key is not None and job.state not in FINAL)
        return next(live, None)

    def line_up(self, job: Entry) -> None:
        """To the end of its priority."""
        self.tail += 1
        job.place = self.tail

    def advance(self, seconds: float) -> None:
        """Time passes; what is due becomes available, in any order."""
        self.now += seconds
        self.tail += 1
        for job in self.jobs.values():
            if job.state in (State.SCHEDULED, State.RETRYABLE) and job.due <= self.now:
                job.state, job.place = State.AVAILABLE, self.tail

    def claim(self, lease: int, limit: int, ids: Iterable[int]) -> bool:
        """May a claim of `limit` jobs bring these? The highest priority first, then as they stand in line."""
        line = [job for job in self.jobs.values() if job.state == State.AVAILABLE and not job.suspect]
        taken = [job for job in line if job.id in set(ids)]
        for job in taken:
            job.state, job.lease = State.RUNNING, lease
        best = sorted((-job.priority, job.place) for job in line)[:limit]
        return sorted((-job.priority, job.place) for job in taken) == best and len(taken) == len(list(ids))

    def claim_suspect(self, lease: int) -> list[int]:
        suspects = sorted(job.id for job in self.jobs.values() if job.state == State.AVAILABLE and job.suspect)
        for job in (self.jobs[id] for id in suspects[:1]):
            job.state, job.lease, job.suspect = State.RUNNING, lease, False
            self.solo.add(lease)
        return suspects[:1]

    def owned(self, id: int, claim: int, lease: int) -> Entry | None:
        """The fence: the job, if this claim and lease are its present ones."""
        job = self.jobs.get(id)
        return job if job and (job.state, job.claim, job.lease) == (State.RUNNING, claim, lease) else None

    def settle(self, id: int, claim: int, lease: int, state: State, *, delay: float = 0, cost: int = 0) -> bool:
        """Record how the attempt ended; False: it wasn't the owner's word."""
        job = self.owned(id, claim, lease)
        if job is None:
            return False
        job.attempt += cost
        self.release(job, state if state == State.COMPLETED else self.wish(job) or state)
        job.due = self.now + delay
        return True

    def wish(self, job: Entry) -> State | None:
        return None if job.request is None else State.CANCELLED if job.request is Verb.CANCEL else State.STOPPED

    def release(self, job: Entry, state: State) -> None:
        job.state, job.lease = state, None
        if state in FINAL:
            job.request = None
        else:
            job.claim += 1
            self.line_up(job)

    def give_back(self, lease: int) -> int:
        """Those not started go to the head of their line."""
        held = [job for job in self.jobs.values() if job.lease == lease]
        self.head -= 1
        for job in held:
            self.release(job, State.AVAILABLE)
            job.suspect, job.place = lease in self.solo, self.head
        return len(held)

    def rescue(self, leases: Iterable[int]) -> int:
        """The worker of these leases has died."""
        dead = set(leases)
        held = [job for job in self.jobs.values() if job.lease in dead]
        for job in held:
            crashed = job.lease in self.solo and (len(held) == 1 or job.deaths > DEATHS_FORGIVEN)
            job.deaths += 1
            job.crashes += crashed
            gone = crashed and job.crashes >= CRASHES_ALLOWED
            self.release(job, self.wish(job) or (State.DISCARDED if gone else State.AVAILABLE))
            job.claim += job.state in FINAL
            job.suspect = job.state == State.AVAILABLE
        return len(held)

    def apply(self, verb: Verb, id: int, *, delay: float = 0, priority: int = 0) -> str:
        """What people do; the answers are the table's."""
        job = self.jobs.get(id)
        if job is None:
            return "not found"
        answer = VERBS[verb][job.state]
        if answer.startswith("already"):
            return answer
        if answer == REQUESTED:
            job.request = verb
        elif verb is Verb.DELETE:
            del self.jobs[id]
        elif verb in (Verb.CANCEL, Verb.STOP):
            job.state, job.suspect, job.request = State(answer), False, None
        elif verb is Verb.RETRY:
            if job.state in FINAL:
                if self.holder(job.key) is not None:
                    return "blocked by a live job with the same unique key"
                job.attempt = job.crashes = 0
            self.release(job, State.AVAILABLE)
        elif verb is Verb.RESCHEDULE:
            self.release(job, State(answer))
            job.due, job.suspect = self.now + delay, False
        else:
            self.release(job, job.state)
            job.priority = priority
        return answer
