"""The life of a job as statements: enqueue, claim, keep, complete, settle, give back. Pure: none of them does I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast
from uuid import UUID

from pgqueue.core.draft import Args, Draft, EnqueuedJob
from pgqueue.core.job import Claimed
from pgqueue.store.arrays import int4_array, int8_array, quoted_array, text_array, timestamp_array
from pgqueue.store.statement import Row, Statement, queries

LOWEST_MARK = -(2**63)


@dataclass(frozen=True, slots=True)
class Batch:
    """What a claim brought.

    marks   per priority, the highest place in the queue that was taken
    chunks  how many rows of `ready` that were; voids: how many ids in them were of no job that could be claimed
    clock_us  the database's time, in microseconds since 1970; None if nothing was claimed
    """

    jobs: Sequence[Claimed]
    marks: dict[int, int]
    chunks: int
    voids: int
    clock_us: int | None


@dataclass(frozen=True, slots=True)
class Fence:
    """What an attempt must show when it writes about its job on a connection that isn't the worker's own.

    install  which database it is: the same numbers mean other jobs in another
    """

    install: UUID
    job: int
    claim: int
    lease: int

    def params(self) -> dict[str, object]:
        """For a query."""
        return {"install": str(self.install), "job": self.job, "claim": self.claim, "lease": self.lease}


class Acks(NamedTuple):
    """Attempts that succeeded, by column and in the order of their ids.

    Times in microseconds since 1970, by the database's clock. Results are JSON text; None: nobody returned anything.
    """

    ids: Sequence[int]
    claims: Sequence[int]
    leases: Sequence[int]
    started_us: Sequence[int]
    finished_us: Sequence[int]
    results: Sequence[str | None] | None = None


def enqueue(draft: Draft, args: Args, *, schema: str) -> Statement[list[EnqueuedJob]]:
    """Insert jobs (one at least) with these arguments; answers in their order."""

    params: dict[str, object] = {
        "kind": draft.kind, "args": args.text, "queue": draft.queue,
        "priority": draft.priority, "max_attempts": draft.max_attempts, "timeout": draft.timeout,
    }  # fmt: skip
    query = "enqueue_one"
    if draft.has_options or args.rows > 1:
        query = "enqueue"
        params |= {
            "delay": draft.delay, "scheduled_at": draft.scheduled_at and draft.scheduled_at.isoformat(),
            "expires_at": draft.expires_at and draft.expires_at.isoformat(), "unique_key": draft.unique_key,
            "tags": quoted_array(draft.tags) if draft.tags else None, "metadata": draft.metadata,
            "tenant": draft.tenant, "parent_id": draft.parent_id,
        }  # fmt: skip

    def decode(rows: Sequence[Row]) -> list[EnqueuedJob]:
        ids, inserted = cast("tuple[list[int], int]", rows[0][:2])
        return [EnqueuedJob(id, n < inserted, draft.kind, draft.queue) for n, id in enumerate(ids)]

    return Statement(queries("jobs.sql", schema)[query], params, decode)


def claim(
    queue: str,
    *,
    worker: int,
    lease: int,
    kinds: Sequence[str],
    marks: dict[int, int],
    chunks: int,
    limit: int,
    schema: str,
) -> Statement[Batch]:
    """Lease up to `limit` available jobs of `queue` to `worker`, under the new lease number `lease`.

    Order: highest priority, then as enqueued. `marks` says per priority after which place to look, in the order in
    which the priorities are to be tried; `chunks` how many rows of `ready` to look at. Nothing comes back while the
    queue is paused or the worker's heartbeat is overdue.
    """
    params = {
        "queue": queue, "worker": worker, "lease": lease, "kinds": text_array(kinds), "priorities": text_array(marks),
        "marks": int8_array(list(marks.values())), "chunks": chunks, "n": limit,
    }  # fmt: skip
    return Statement(queries("jobs.sql", schema)["claim"], params, _decode_batch)


def unvoid(queue: str, voids: int, *, schema: str) -> Statement[None]:
    """Count `voids` entries of `queue` less that are there but void."""
    params = {"queue": queue, "jobs": voids}
    return Statement(queries("jobs.sql", schema)["unvoid"], params, lambda rows: None)


def claim_suspect(queue: str, *, worker: int, lease: int, kinds: Sequence[str], schema: str) -> Statement[Batch]:
    """Lease one job of `queue` whose worker died, alone."""
    params = {"queue": queue, "worker": worker, "lease": lease, "kinds": text_array(kinds)}
    return Statement(queries("jobs.sql", schema)["claim_suspect"], params, _decode_batch)


def survey(
    queue: str, *, kinds: Sequence[str], marks: dict[int, int], schema: str
) -> Statement[tuple[list[int], bool]]:
    """The priorities outside `marks` that have work in `queue`, and whether one within has work of these kinds."""
    params = {
        "queue": queue,
        "kinds": text_array(kinds),
        "priorities": text_array(marks),
        "marks": int8_array(list(marks.values())),
    }
    return Statement(queries("jobs.sql", schema)["survey"], params, _decode_survey)


def complete(acks: Acks, *, whole: Sequence[int], part: Sequence[int], schema: str) -> Statement[list[int]]:
    """Complete the attempts in `acks`; answers with the ids that were lost.

    whole, part  the leases they were claimed under: those that are done with by this, and those that are not
    """
    params = {
        "ids": int8_array(acks.ids),
        "claims": int4_array(acks.claims),
        "leases": int8_array(acks.leases),
        "started": timestamp_array(acks.started_us),
        "finished": timestamp_array(acks.finished_us),
        "results": None if acks.results is None else quoted_array(acks.results),
        "whole": int8_array(whole),
        "part": int8_array(part),
    }
    return Statement(queries("jobs.sql", schema)["complete"], params, lambda rows: [_int(row[0]) for row in rows])


def set_checkpoint(fence: Fence, part: str, name: str, value: str, *, schema: str) -> Statement[None]:
    """Make a part of an attempt's checkpoint durable with the caller's transaction, on any connection.

    part   "done", "cursor" or "data"; name: of the step or key; value: JSON text
    fails with SQLSTATE PQ001 if the attempt has lost its lease, PQ003 if the connection is to another installation
    """
    params = fence.params() | {"part": part, "name": name, "value": value}
    return Statement(queries("jobs.sql", schema)["set_checkpoint"], params, lambda rows: None)


def complete_tx(fence: Fence, result: str | None, elapsed: float, patch: str | None, *, schema: str) -> Statement[None]:
    """Complete the job with the caller's transaction, on any connection.

    result   JSON text
    elapsed  seconds since the attempt began
    patch    what the attempt adds to the checkpoint: of a completed job its data stays
    fails as `set_checkpoint` does
    """
    params = fence.params() | {"result": result, "elapsed": elapsed, "patch": patch}
    return Statement(queries("jobs.sql", schema)["complete_tx"], params, lambda rows: None)


def keep(document: str, *, schema: str) -> Statement[list[int]]:
    """Make what running attempts have done so far durable; answers with the ids that were kept.

    document  a JSON array of {"id", "claim", "lease", "patch"}, one per job: the patch as in an outcome's `checkpoint`
    """
    params = {"document": document}
    return Statement(queries("jobs.sql", schema)["keep"], params, lambda rows: [_int(row[0]) for row in rows])


def settle(outcomes: str, *, whole: Sequence[int], part: Sequence[int], schema: str) -> Statement[dict[int, bool]]:
    """Record the outcomes of a JSON array; answers id -> True (recorded) or False (its row is locked: try again).

    An outcome's `checkpoint`, if it has one, is merged into the job's: {"done": {}, "cursor": {}, "data": {}}, any part
    of it; data of null is deleted.
    """
    params = {"outcomes": outcomes, "whole": int8_array(whole), "part": int8_array(part)}
    return Statement(
        queries("jobs.sql", schema)["settle"], params, lambda rows: {_int(row[0]): bool(row[1]) for row in rows}
    )


def give_back(
    held: Sequence[tuple[int, int, int]], *, whole: Sequence[int], part: Sequence[int], schema: str
) -> Statement[int]:
    """Return claimed jobs that were not started, given as (id, claim, lease); answers with how many."""
    params = {
        "ids": int8_array([job for job, _, _ in held]),
        "claims": int4_array([claim for _, claim, _ in held]),
        "leases": int8_array([lease for _, _, lease in held]),
        "whole": int8_array(whole),
        "part": int8_array(part),
    }
    return Statement(queries("jobs.sql", schema)["give_back"], params, lambda rows: _int(rows[0][0]))


def forget(lease: int, *, worker: int, schema: str) -> Statement[bool]:
    """Make sure that a claim whose answer was lost can't take effect any more; True if it had not."""
    params = {"lease": lease, "worker": worker}
    return Statement(queries("jobs.sql", schema)["forget"], params, lambda rows: rows[0][0] is not None)


def held(lease: int, *, schema: str) -> Statement[Batch]:
    """The jobs of a lease, as the claim would have told; none if there is no such lease."""
    return Statement(queries("jobs.sql", schema)["held"], {"lease": lease}, _decode_batch)


def _decode_survey(rows: Sequence[Row]) -> tuple[list[int], bool]:
    priorities, more = rows[0]
    return priorities, more  # type: ignore[return-value]


def _decode_batch(rows: Sequence[Row]) -> Batch:
    end = len(rows)
    marks: dict[int, int] = {}
    chunks = entries = 0
    clock_us = None
    while end and rows[end - 1][2] is None:  # no kind: see the query
        end -= 1
        mark, count, _, _, _, length, _, _, _, clock, _, priority = rows[end]
        clock_us = int(clock.timestamp() * 1_000_000)  # type: ignore[attr-defined]
        chunks += _int(count)
        entries += _int(length)
        if priority is not None:
            marks[_int(priority)] = _int(mark)
    found: list[Claimed] = list(map(_as_claimed, rows[:end]))
    found.sort()  # by id, which is first and differs: they come as they lie on the disk
    if len(marks) > 1:
        found.sort(key=lambda job: -job.priority)
    return Batch(found, marks, chunks, max(0, entries - end), clock_us)


_as_claimed = partial(tuple.__new__, Claimed)  # the columns are its fields; `Claimed(*row)` takes six times as long


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value
