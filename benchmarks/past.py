"""A week of finished jobs, for the claims that need a long history: `bench.shared("past", make)`.

They are inserted by SQL, not run: five million rows in the shape and order in which a worker leaves them. What is left
out is the first version of each row, which a vacuum has removed from a real history as well; rows lie in half-filled
pages here as there. A job in fifty failed once before it completed, one in 250 was discarded, one in 500 cancelled.
Sums are per minute, and per hour when older than a day, as `tidy` leaves them. Then vacuum analyze.
"""

from __future__ import annotations

import psycopg

DAYS = 7
WORKERS, KINDS, QUEUES, TENANTS = 8, 20, 4, 500
PART = 250_000
FAILURE = """
jsonb_build_object('type', 'ConnectionError', 'message', 'connection refused', 'traceback', repeat('line ', 100))
"""

SIGNED_OFF = """
insert into pgqueue.worker (pid, lease, name, host, version, queues, kinds, started_at, seen_at, stopped_at)
select 1000 + n, interval '15 s', 'past-' || n, 'past', '0', '{}', '{}', now() - interval '7 days', now(), now()
from generate_series(1, %s) n
"""
JOBS = f"""
insert into pgqueue.job (id, created_at, started_at, finalized_at, worker_id, claim, attempt, status, max_attempts,
  queue, kind, tenant, args)
select id, at, at + interval '20 ms', at + interval '20 ms' + (id %% 100) * interval '1 ms',
  1 + id %% {WORKERS}, (id %% 50 = 0)::integer, (id %% 50 = 0 or id %% 250 = 1)::integer,
  case when id %% 250 = 1 then 3 when id %% 500 = 2 then 2 else 1 end, 20,
  'queue-' || id %% {QUEUES}, 'kind-' || id %% {KINDS},
  case when id %% 2 = 0 then 'tenant-' || id / 2 %% {TENANTS} end,
  jsonb_build_object('user_id', id, 'action', 'send_email', 'n', 1)
from generate_series(%(first)s::bigint, %(last)s::bigint) id,
  lateral (select now() - interval '{DAYS} days' * (1 - id::float8 / %(jobs)s)) t (at)
order by id
"""
ATTEMPTS = f"""
insert into pgqueue.attempt (job_id, claim, attempt, worker_id, started_at, finished_at, state, error)
select id, 0, 1, worker_id, created_at + interval '2 ms', created_at + interval '9 ms',
  case status when 1 then 'retryable' when 2 then 'cancelled' else 'discarded' end, {FAILURE}
from pgqueue.job where id %% 50 = 0 or id %% 250 = 1 or id %% 500 = 2 order by id
"""
SUMS = """
insert into pgqueue.tally (minute, queue, kind, state, jobs, seconds, longest)
select case when finalized_at < now() - interval '1 day' then date_trunc('hour', finalized_at, 'UTC')
    else date_trunc('minute', finalized_at) end as bucket,
  queue, kind, pgqueue.state_name(status) as state, count(*), sum(extract(epoch from finalized_at - started_at)),
  max(extract(epoch from finalized_at - started_at))
from pgqueue.job group by bucket, queue, kind, state order by bucket
"""


def make(dsn: str, jobs: int) -> None:
    """Fill an empty database with that many finished jobs."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(SIGNED_OFF, [WORKERS])
        for first in range(1, jobs + 1, PART):
            conn.execute(JOBS.encode(), {"first": first, "last": min(jobs, first + PART - 1), "jobs": jobs})
        conn.execute("select setval('pgqueue.job_id_seq', (select max(id) from pgqueue.job))")
        conn.execute(ATTEMPTS.replace("%%", "%").encode())
        conn.execute(SUMS)
        conn.execute("vacuum analyze")
        conn.execute("checkpoint")
