"""The floor: the smallest loop that claims, runs and durably completes jobs. `python -m benchmarks.floor DSN JOBS`.

What it has in common with a worker: durable completion of every job on its own row, history, leases with a fence,
prefetching, batches of 500. What it leaves out, and a worker pays for: dispatch by kind, argument types, per-job
times and claim numbers, time-outs, cancelling, counting, several queues, an event loop. Three threads: one claims, one
runs the jobs, one completes.

As a program it makes its tables and jobs, says "ready", waits for a line, prints seconds and processor seconds, and
waits for a line again.
"""

from __future__ import annotations

import json
import queue
import resource
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psycopg
from psycopg.adapt import Buffer, Loader
from psycopg.pq import Format
from psycopg.rows import TupleRow

from pgqueue.db.session import adapt
from pgqueue.store.arrays import int8_array

BATCH = 500
CHUNK = 100
LAG = 1000
DEPTH = 3  # batches claimed ahead
FULL_EVERY = 0.5
FULL_SHARE = 20

FILL = """
with job as (
  insert into pq.job (task, args)
  select 'app.tasks.send', jsonb_build_object('user_id', i, 'action', 'send_email', 'n', 1)
  from generate_series(1, %s) i returning id)
insert into pq.ready (queue_id, priority, ids)
select 1, 0, array_agg(id order by id) from (select id, (row_number() over (order by id) - 1) / 100 as chunk from job) j
group by chunk order by chunk
"""
CLAIM = """
with p as materialized (
  select r.* from unnest(%(queues)s::int4[], %(priorities)s::int2[], %(marks)s::int8[]) q (queue_id, priority, mark)
  cross join lateral (
    select ctid c, seq, cardinality(ids) - taken len from pq.ready
    where queue_id = q.queue_id and priority = q.priority and seq > q.mark
    order by seq limit %(chunks)s for update skip locked) r
  limit %(chunks)s),
s as (select c, len, (sum(len) over (rows unbounded preceding))::int4 - len before from p),
d as (
  delete from pq.ready where ctid = any (array(select c from s where before + len <= %(n)s))
  returning seq, queue_id, priority, gen, ids[taken + 1 :] ids),
u as (
  update pq.ready r set taken = taken + x.take
  from (select c, (%(n)s - before)::int2 take from s where before < %(n)s and before + len > %(n)s) x
  where r.ctid = x.c
  returning r.seq - 1, r.queue_id, r.priority, r.gen, r.ids[r.taken - x.take + 1 : r.taken] ids),
y as materialized (select * from d union all select * from u),
e as materialized (select gen, unnest(ids) id from y),
l as (insert into pq.lease (id, ids) select %(lease)s, array_agg(id) from e having count(*) > 0)
select j.id, j.task, j.args, nullif(j.metadata, '{}'), j.attempt, null::int8 seq, j.queue_id, j.priority from pq.job j
where j.id = any (array(select id from e)) and j.status = 0
  and (j.gen = 0 or exists (select 1 from e where e.id = j.id and e.gen = j.gen))
union all select null, null, null, null, null, max(seq), queue_id, priority from y group by queue_id, priority
"""
DONE = """
with f as (delete from pq.lease where id = any (%(whole)s) returning id, created_at),
h as (select id, created_at from pq.lease where id = any (%(part)s) for key share),
u as (
  update pq.job set status = 1, attempt = attempt + 1, started_at = (select min(created_at) from f),
    finished_at = now(), lease_id = %(lease)s
  where id = any (%(ids)s) and status = 0 and (select count(*) from f) + (select count(*) from h) = %(held)s
  returning 1)
select count(*) from u
"""

Claimed = tuple[int, list[TupleRow]]  # lease, jobs


class Client:
    """One connection of the floor. `durable` False: the loss of its commits would lose no job."""

    def __init__(self, dsn: str, *, base: int, durable: bool) -> None:
        self._conn = psycopg.connect(dsn, autocommit=True, prepare_threshold=0)
        adapt(self._conn)
        self._conn.adapters.register_loader("jsonb", _Json)
        if not durable:
            self._conn.execute("set synchronous_commit = off")
        self._cursor = self._conn.cursor(binary=True)
        self._lease = base << 32
        self._mark = 0
        self._average = CHUNK
        self._full_at = 0.0
        self._full_cost = 0.0

    def claim(self) -> Claimed:
        """Up to 500 jobs."""
        started = time.perf_counter()
        full = started - self._full_at > max(FULL_EVERY, self._full_cost * FULL_SHARE)
        self._lease += 1
        chunks = max(1, min(BATCH, -(-BATCH // self._average)))
        mark = 0 if full else max(0, self._mark - LAG)
        params = {
            "queues": [1], "priorities": [0], "marks": [mark], "chunks": chunks, "n": BATCH, "lease": self._lease,
        }  # fmt: skip
        self._cursor.execute(CLAIM, params)
        rows = self._cursor.fetchall()
        if full:
            self._full_at = time.perf_counter()
            self._full_cost = self._full_at - started
        while rows and rows[-1][0] is None:  # the marks follow the jobs
            self._mark = max(self._mark, rows.pop()[5])
        if rows:
            self._average = max(1, min(CHUNK, len(rows) // chunks if len(rows) < BATCH else self._average))
        return self._lease, rows

    def look_everywhere(self) -> None:
        """Let the next claim start at the very head of the queue."""
        self._full_at = 0.0

    def done(self, lease: int, ids: Sequence[int]) -> int:
        """Complete all jobs of a lease; returns how many that were."""
        params = {
            "whole": int8_array([lease]), "part": int8_array([]), "held": 1, "ids": int8_array(ids), "lease": lease,
        }  # fmt: skip
        self._cursor.execute(DONE, params)
        row = self._cursor.fetchone()
        assert row is not None
        return int(row[0])


class _Json(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> object:
        return msgspec.json.decode(memoryview(data)[1:])


def handle(args: object) -> None:
    """The job."""


def drain(claimer: Client, completer: Client) -> int:
    """Work until there is nothing left; returns how many jobs were completed."""
    claimed: queue.SimpleQueue[Claimed] = queue.SimpleQueue()
    finished: queue.SimpleQueue[tuple[int, list[int]] | None] = queue.SimpleQueue()
    room = threading.Semaphore(DEPTH)
    totals: list[int] = []
    threads = [
        threading.Thread(target=_claim_all, args=(claimer, claimed, room)),
        threading.Thread(target=_complete_all, args=(completer, finished, totals)),
    ]
    for thread in threads:
        thread.start()
    while True:
        lease, rows = claimed.get()
        room.release()
        if not rows:
            break
        for row in rows:
            handle(row[2])
        finished.put((lease, [row[0] for row in rows]))
    finished.put(None)
    for thread in threads:
        thread.join()
    return sum(totals)


def _claim_all(client: Client, claimed: queue.SimpleQueue[Claimed], room: threading.Semaphore) -> None:
    empty = False
    while True:
        room.acquire()
        lease, rows = client.claim()
        if not rows and not empty:  # once more, from the head
            empty = True
            client.look_everywhere()
            room.release()
            continue
        empty = False
        claimed.put((lease, rows))
        if not rows:
            return


def _complete_all(client: Client, finished: queue.SimpleQueue[tuple[int, list[int]] | None], totals: list[int]) -> None:
    while (batch := finished.get()) is not None:
        totals.append(client.done(*batch))


def prepare(dsn: str, jobs: int) -> None:
    """Make the tables and the jobs."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("checkpoint")
        conn.execute(Path(__file__).with_name("floor.sql").read_bytes())
        conn.execute(FILL, [jobs])
        conn.execute("analyze")


def main(dsn: str, jobs: int) -> None:
    prepare(dsn, jobs)
    claimer, completer = Client(dsn, base=1, durable=False), Client(dsn, base=1001, durable=True)
    print("ready", flush=True)
    sys.stdin.readline()
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    done = drain(claimer, completer)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    if done != jobs:
        raise SystemExit(f"the floor completed {done} of {jobs} jobs")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"seconds": seconds, "cpu": cpu}), flush=True)
    sys.stdin.readline()  # the server's processes are still there to be asked what they have used


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
