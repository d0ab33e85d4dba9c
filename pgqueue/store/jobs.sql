-- The life of a job: enqueue, claim, keep, complete, settle, give back.
--
-- The fence, in every write-back: the row shows the claim number of this attempt, is still open (status 0), and the
-- lease that the attempt was claimed under still exists and is locked by this statement. A write that lost any of the
-- three changes nothing. Locks are taken leases first, then jobs in id order.
--
-- Rows of `checkpoint` belong to who has the job's row locked. Whatever ends an attempt takes them, by a snapshot newer
-- than the lock (see take_checkpoints), and folds them into the metadata.
--
-- `case when status = 0 then true end` says the same as `status = 0`, but the planner can't guess from it that hardly
-- any row is open. It would, and pair every job with every outcome: 18 s instead of 20 ms for 500 of 100,000 jobs, with
-- a plan that was cached while the table was small.

-- name: enqueue
-- Insert jobs that differ in their arguments only, in the caller's transaction.
select ids, inserted from pgqueue.insert_jobs(
  kind => %(kind)s::text, args => %(args)s::text::jsonb, queue => %(queue)s::text, priority => %(priority)s::smallint,
  max_attempts => %(max_attempts)s::smallint, timeout => %(timeout)s::real, delay => %(delay)s::double precision,
  scheduled_at => %(scheduled_at)s::text::timestamptz, expires_at => %(expires_at)s::text::timestamptz,
  unique_key => %(unique_key)s::text, tags => %(tags)s::text::text[], metadata => %(metadata)s::text::jsonb,
  tenant => %(tenant)s::text, parent_id => %(parent_id)s::bigint)

-- name: enqueue_one
-- The same for a single job that has no options but these. A transaction that enqueues by this reaches 0.95 of the
-- rate of one that inserts a bare row; by the function it is 0.88.
with job as (
  insert into pgqueue.job (kind, args, queue, priority, max_attempts, timeout)
  values (%(kind)s::text, %(args)s::text::jsonb, %(queue)s::text, %(priority)s::smallint, %(max_attempts)s::smallint,
    %(timeout)s::real)
  returning id, kind, args, queue, priority),
ready as (
  insert into pgqueue.ready (queue, priority, kind, ids, bytes)
  select queue, priority, kind, array[id], pg_column_size(args) from job)
select array[id], 1, pgqueue.wake(queue) from job

-- name: claim
-- Lease up to `n` jobs of one queue, of known kinds only: highest priority first, then as they were enqueued.
-- Deletes chunks of `ready` and writes one lease row; job rows are only read. Locks lazily, just what it takes.
-- The ids come from what DELETE and UPDATE return, never from the locked SELECT: a chunk that changed between the
-- snapshot and the lock would be handed out twice. Loses nothing with synchronous_commit off: a claim forgotten by a
-- crashed server took its lease with it, so the completion finds no lease. The trailing rows (kind null)
-- are the marks, one per priority, in the columns that fit: the mark as id, the number of chunks as claim, that of
-- their ids as attempt, the time as expires_at. (Columns of their own would cost every job; JSON is text for the same
-- reason. Plans without the split, the byte cap and the marks were tried for the job that an idle worker wakes up for:
-- 1.14 ms instead of 1.19.)
with setting as materialized (select set_config('synchronous_commit', 'off', true)),
head as materialized (
  select r.place, r.seq, r.length, r.bytes
  from (select from setting where exists (
      select from pgqueue.worker w where w.id = %(worker)s::integer and w.stopped_at is null
        and w.seen_at + w.lease > clock_timestamp())
    and not exists (select from pgqueue.queue q where q.name = %(queue)s::text and q.paused_at is not null)) allowed
  cross join unnest(%(priorities)s::smallint[], %(marks)s::bigint[]) p (priority, mark)
  cross join lateral (
    select ctid as place, seq, cardinality(ids) - taken as length, bytes from pgqueue.ready
    where queue = %(queue)s::text and priority = p.priority and seq > p.mark and kind = any(%(kinds)s::text[])
    order by seq limit %(chunks)s::integer for update skip locked) r
  limit %(chunks)s::integer),
within as materialized (  -- 16 MiB of JSON
  select place, length, sum(length) over w - length as before
  from (select *, sum(bytes) over (rows unbounded preceding) - bytes as bytes_before from head) h
  where bytes_before < 16777216
  window w as (rows unbounded preceding)),
emptied as (
  delete from pgqueue.ready where ctid = any (array(select place from within where before + length <= %(n)s::integer))
  returning seq, priority, claim, ids[taken + 1 :] as ids),
split as (
  update pgqueue.ready r set taken = r.taken + p.take
  from (select place, (%(n)s::integer - before)::smallint as take from within
    where before < %(n)s::integer and before + length > %(n)s::integer) p
  where r.ctid = p.place
  returning r.seq - 1 as seq, r.priority, r.claim, r.ids[r.taken - p.take + 1 : r.taken] as ids),
claimed as materialized (select * from emptied union all select * from split),
entry as materialized (select claim, unnest(ids) as id from claimed),
lease as (
  insert into pgqueue.lease (id, worker_id, ids, claims)
  select %(lease)s::bigint, %(worker)s::integer, array_agg(id), array_agg(claim) from entry having count(*) > 0)
select j.id, j.claim, j.kind, j.args::text, nullif(j.metadata, '{}')::text as metadata, j.attempt, j.max_attempts,
  j.crashes, j.timeout, j.expires_at, j.tenant, j.priority
from pgqueue.job j
where j.id = any (array(select id from entry)) and j.status = 0
  and (j.claim = 0 or (j.id, j.claim) in (select id, claim from entry))
union all
select max(seq), count(*)::integer, null, null, null, sum(cardinality(ids))::smallint, null, null, null,
  clock_timestamp(), null, priority
from claimed group by priority

-- name: unvoid
-- A claim passed over void entries: they are gone.
insert into pgqueue.void (queue, jobs) values (%(queue)s::text, -%(jobs)s::bigint) returning jobs

-- name: claim_suspect
-- Lease one job whose worker died, alone: if this worker dies too, it is known which job did it.
with setting as materialized (select set_config('synchronous_commit', 'off', true)),
claimed as (
  delete from pgqueue.suspect where job_id = (
    select s.job_id from pgqueue.suspect s, setting
    where s.queue = %(queue)s::text and s.kind = any(%(kinds)s::text[])
      and exists (select from pgqueue.worker w where w.id = %(worker)s::integer and w.stopped_at is null
        and w.seen_at + w.lease > clock_timestamp())
      and not exists (select from pgqueue.queue q where q.name = s.queue and q.paused_at is not null)
    order by s.job_id limit 1 for update of s skip locked)
  returning job_id, claim),
job as materialized (
  select j.* from pgqueue.job j join claimed c on c.job_id = j.id and c.claim = j.claim where j.status = 0),
lease as (
  insert into pgqueue.lease (id, worker_id, solo, ids, claims)
  select %(lease)s::bigint, %(worker)s::integer, true, array[id], array[claim] from job)
select id, claim, kind, args::text, nullif(metadata, '{}')::text, attempt, max_attempts, crashes, timeout, expires_at,
  tenant, priority
from job
union all
select null, 0, null, null, null, 0, null, null, null, clock_timestamp(), null, null from job

-- name: survey
-- What is there in a queue? Priorities outside the known ones that have work for us (found in the gaps between these,
-- so that the dead index entries of a known priority, which pile up while an old transaction runs, are not walked), and
-- whether a known one has. Locks nothing.
with recursive gap as (
  select lower, lead(lower, 1, 32768) over (order by lower) as upper
  from (select -32769 as lower union select unnest(%(priorities)s::smallint[])) edges (lower)),
found as (
  select g.upper, r.priority from gap g cross join lateral (
    select priority from pgqueue.ready where queue = %(queue)s::text and priority > g.lower and priority < g.upper
    order by priority limit 1) r
  union all
  select f.upper, r.priority from found f cross join lateral (
    select priority from pgqueue.ready where queue = %(queue)s::text and priority > f.priority and priority < f.upper
    order by priority limit 1) r)
select array(
    select f.priority from found f where exists (
      select from pgqueue.ready r
      where r.queue = %(queue)s::text and r.priority = f.priority and r.kind = any(%(kinds)s::text[]))
    order by f.priority desc),
  exists (
  select from unnest(%(priorities)s::smallint[], %(marks)s::bigint[]) p (priority, mark) cross join lateral (
    select from pgqueue.ready where queue = %(queue)s::text and priority = p.priority and seq > p.mark
      and kind = any(%(kinds)s::text[]) limit 1) r)

-- name: set_checkpoint
-- Make a part of a running attempt's checkpoint durable with the caller's transaction.
select pgqueue.set_checkpoint(%(install)s::text::uuid, %(job)s::bigint, %(claim)s::integer, %(lease)s::bigint,
  %(part)s::text, %(name)s::text, %(value)s::text::jsonb)

-- name: complete_tx
-- Complete the job of a running attempt with the caller's transaction.
select pgqueue.complete_tx(%(install)s::text::uuid, %(job)s::bigint, %(claim)s::integer, %(lease)s::bigint,
  %(result)s::text::jsonb, make_interval(secs => %(elapsed)s::float8), %(patch)s::text::jsonb)

-- name: keep
-- Make what running attempts have done so far durable. Never over what a transaction of the caller's wrote; one that is
-- open has its job locked, and that job is passed over. Answers with the ids that were kept.
with setting as materialized (select set_config('lock_timeout', '100ms', true)),
entry as materialized (
  select e.id, e.claim, e.lease, e.patch
  from jsonb_to_recordset(%(document)s::text::jsonb) as e (id bigint, claim integer, lease bigint, patch jsonb)),
held as materialized (
  select id from pgqueue.lease where id = any (array(select lease from entry)) and (select true from setting)
  order by id for key share),
own as materialized (
  select j.id, e.patch
  from pgqueue.job j join entry e on e.id = j.id and e.claim = j.claim join held h on h.id = e.lease
  where case when j.status = 0 then true end order by j.id for no key update of j skip locked),
news as materialized (
  select o.id, p.part, n.name, n.value
  from own o cross join (values ('done'), ('cursor'), ('data')) p (part)
  cross join jsonb_each(case jsonb_typeof(o.patch -> p.part) when 'object' then o.patch -> p.part end) n (name, value)
  where not (p.part = 'cursor' and coalesce(o.patch -> 'done', '{}') ? n.name)),
written as (
  insert into pgqueue.checkpoint as c (job_id, part, name, value) select id, part, name, value from news
  on conflict (job_id, part, name) do update set value = excluded.value
  where not c.by_tx and c.value <> excluded.value),
passed as (
  delete from pgqueue.checkpoint c using news n
  where n.part = 'done' and c.job_id = n.id and c.part = 'cursor' and c.name = n.name and not c.by_tx)
select id from own

-- name: complete
-- Record successful attempts: one update per job, HOT unless a result takes more room than its page has left. Answers
-- with the ids that were lost. A lease in `whole` is done with and goes; of one in `part` some jobs are still running.
-- Not for a job with a checkpoint, nor for large results: those are settled, at three times the cost.
with setting as materialized (select set_config('lock_timeout', '100ms', true)),
whole as (
  delete from pgqueue.lease where id = any(%(whole)s::bigint[]) and (select true from setting) returning id, worker_id),
part as materialized (
  select id, worker_id from pgqueue.lease where id = any(%(part)s::bigint[]) and (select true from setting) order by id
  for key share),
held as materialized (select * from whole union all select * from part),
done as (
  update pgqueue.job j
  set status = 1, started_at = a.started_at, finalized_at = a.finished_at, worker_id = h.worker_id,
    result = a.result::jsonb
  from unnest(%(ids)s::bigint[], %(claims)s::integer[], %(leases)s::bigint[], %(started)s::timestamptz[],
    %(finished)s::timestamptz[], %(results)s::text[])
    a (id, claim, lease, started_at, finished_at, result)
  join held h on h.id = a.lease
  where j.id = a.id and j.claim = a.claim and case when j.status = 0 then true end
    and j.id = any(%(ids)s::bigint[])  -- nothing new, but with it the rows are found 0.8 us a job sooner
  returning j.id, j.queue, j.kind, j.unique_key, a.finished_at - a.started_at as duration),
freed as (
  delete from pgqueue.unique_key u using done d
  where d.unique_key is not null and u.kind = d.kind and u.key = d.unique_key),
counted as (
  insert into pgqueue.tally (minute, queue, kind, state, jobs, seconds, longest)
  select date_trunc('minute', clock_timestamp()), queue, kind, 'completed', count(*), extract(epoch from sum(duration)),
    extract(epoch from max(duration))
  from done group by queue, kind)
select id from unnest(%(ids)s::bigint[]) i (id)
where (select count(*) from done) <> cardinality(%(ids)s::bigint[])
except all select id from done

-- name: settle
-- Record every other outcome, from one JSON document: large results, failures, snoozes, interruptions, crashes; with
-- what the attempt adds to the job's checkpoint.
-- Rows that somebody has locked are passed over, and their lease is kept. Answers with (id, recorded): true, or
-- false for those passed over; an id that is missing was lost.
with setting as materialized (select set_config('lock_timeout', '100ms', true)),
held as materialized (
  select id, worker_id from pgqueue.lease
  where id = any(%(whole)s::bigint[] || %(part)s::bigint[]) and (select true from setting) order by id
  for update),
outcome as materialized (
  select o.id, o.claim, o.lease, h.worker_id, o.attempt_cost, o.crash_cost, o.solo, o.result, o.delay, o.started_at,
    o.finished_at, o.checkpoint,
    case when r.job_id is null or o.state = 'completed' then o.state
      when r.action = 'cancel' then 'cancelled' else 'stopped' end as state,
    case when r.job_id is null or o.state = 'completed' then o.error
      when o.error is null or o.error ->> 'type' in ('Cancel', 'Stop') then jsonb_build_object(
        'type', initcap(r.action),
        'message', coalesce(r.reason, o.error ->> 'message', 'asked for while it was running'))
      else o.error end as error
  from jsonb_to_recordset(%(outcomes)s::text::jsonb) as o (
    id bigint, claim integer, lease bigint, state text, delay double precision, attempt_cost smallint,
    crash_cost smallint, solo boolean, error jsonb, result jsonb, checkpoint jsonb, started_at timestamptz,
    finished_at timestamptz)
  join held h on h.id = o.lease left join pgqueue.request r on r.job_id = o.id),
open as materialized (
  select o.id, o.lease from outcome o join pgqueue.job j on j.id = o.id and j.claim = o.claim
  where case when j.status = 0 then true end),
own as materialized (
  select o.* from pgqueue.job j join outcome o on o.id = j.id and o.claim = j.claim
  where case when j.status = 0 then true end order by j.id for no key update of j skip locked),
locked as (select id, lease from open where id not in (select id from own)),  -- `not exists` is quadratic here
ended as (
  delete from pgqueue.lease
  where id = any(%(whole)s::bigint[]) and not exists (select from locked where locked.lease = lease.id)),
taken as materialized (select * from pgqueue.take_checkpoints(array(select id from own))),
done as (
  update pgqueue.job j
  set status = case o.state when 'completed' then 1 when 'cancelled' then 2 when 'discarded' then 3
      when 'stopped' then 4 else 0 end,
    claim = j.claim + (o.state in ('retryable', 'scheduled', 'available'))::integer,
    attempt = j.attempt + o.attempt_cost, crashes = j.crashes + o.crash_cost,
    started_at = coalesce(o.started_at, j.started_at), worker_id = o.worker_id, result = o.result,
    finalized_at = case when o.state not in ('retryable', 'scheduled', 'available') then o.finished_at end,
    metadata = case when o.checkpoint is null and t.job_id is null and not j.metadata ? 'pgqueue' then j.metadata
      else pgqueue.fold(j.metadata, t.kept, o.checkpoint, t.rows, o.state = 'completed') end
  from own o left join taken t on t.job_id = o.id
  where j.id = o.id and j.claim = o.claim and case when j.status = 0 then true end
  returning j.id, j.claim, j.queue, j.kind, j.priority, j.unique_key, j.attempt, j.status, o.claim as old_claim,
    o.state, o.delay, o.solo, o.error, o.attempt_cost, o.worker_id, o.started_at, o.finished_at,
    pgqueue.size_of(j.args, j.metadata) as bytes),
later as (
  insert into pgqueue.waiting (job_id, due, claim, state)
  select id, clock_timestamp() + make_interval(secs => delay), claim, state
  from done where state in ('retryable', 'scheduled')
  on conflict (job_id) do update set due = excluded.due, claim = excluded.claim, state = excluded.state),
again as (
  insert into pgqueue.ready (queue, priority, kind, claim, ids, bytes)
  select queue, priority, kind, claim, array[id], bytes from done where state = 'available' and solo is not true
  order by id),
suspected as (
  insert into pgqueue.suspect (job_id, claim, queue, kind)
  select id, claim, queue, kind from done where state = 'available' and solo
  on conflict (job_id) do update set claim = excluded.claim),  -- here and above, a void one may be left from a race
recorded as (
  insert into pgqueue.attempt (job_id, claim, attempt, worker_id, started_at, finished_at, state, error)
  select id, old_claim, attempt + 1 - attempt_cost, worker_id, started_at, finished_at, state, error
  from done where error is not null),
freed as (
  delete from pgqueue.unique_key u using done d
  where d.status > 0 and d.unique_key is not null and u.kind = d.kind and u.key = d.unique_key),
answered as (  -- one that a caller is just repeating is locked; `tidy` takes it later
  delete from pgqueue.request where job_id = any (array(
    select r.job_id from pgqueue.request r join done d on d.id = r.job_id where d.status > 0
    for update of r skip locked))),
counted as (
  insert into pgqueue.tally (minute, queue, kind, state, jobs, seconds, longest)
  select date_trunc('minute', clock_timestamp()), queue, kind, state, count(*), sum(seconds), max(seconds)
  from (select *, coalesce(extract(epoch from finished_at - started_at), 0)::float8 as seconds from done) d
  where status > 0 or state = 'retryable' group by queue, kind, state),
woken as (
  select count(pgqueue.wake(queue)) from (select distinct queue from done where state = 'available') q)
select id, true from done, woken union all select id, false from locked

-- name: give_back
-- Return claimed jobs that were never started: available again, at the head of their queue, at no cost. Their claim
-- number rises, because the lease may live on. Answers with the number of jobs.
with setting as materialized (select set_config('lock_timeout', '100ms', true)),
whole as (
  delete from pgqueue.lease where id = any(%(whole)s::bigint[]) and (select true from setting) returning id, solo),
part as materialized (
  select id, solo from pgqueue.lease where id = any(%(part)s::bigint[]) and (select true from setting) order by id
  for key share),
held as materialized (select * from whole union all select * from part),
own as materialized (
  select j.id, h.solo from pgqueue.job j
  join unnest(%(ids)s::bigint[], %(claims)s::integer[], %(leases)s::bigint[]) a (id, claim, lease)
    on a.id = j.id and a.claim = j.claim
  join held h on h.id = a.lease
  where case when j.status = 0 then true end order by j.id for no key update of j),
done as (
  update pgqueue.job j set claim = j.claim + 1 from own where j.id = own.id
  returning j.id, j.queue, j.priority, j.kind, j.claim, own.solo,
    pgqueue.size_of(j.args, j.metadata) as bytes),
again as (
  insert into pgqueue.ready (seq, queue, priority, kind, claim, ids, bytes)
  select coalesce((select min(r.seq) - 1 from pgqueue.ready r where r.queue = d.queue and r.priority = d.priority),
      nextval('pgqueue.ready_seq_seq')),
    d.queue, d.priority, d.kind, d.claim, array_agg(d.id order by d.id), sum(d.bytes)
  from done d where not solo group by d.queue, d.priority, d.kind, d.claim, case when d.bytes > 20000 then d.id end),
suspected as (
  insert into pgqueue.suspect (job_id, claim, queue, kind) select id, claim, queue, kind from done where solo
  on conflict (job_id) do update set claim = excluded.claim),
woken as (select count(pgqueue.wake(queue)) from (select distinct queue from done) q)
select (select count(*) from done) from woken

-- name: forget
-- A claim's answer was lost: make sure its lease can't come to life. Answers true if the claim had not committed;
-- if it had, the lease exists and `held` brings its jobs.
with tombstone as (
  insert into pgqueue.lease (id, worker_id, ids, claims) values (%(lease)s::bigint, %(worker)s::integer, '{}', '{}')
  on conflict do nothing returning true)
select (select true from tombstone)

-- name: held
-- The jobs of one lease, in the shape of a claim; of marks there is just the clock.
with held as materialized (
  select u.id, u.claim from pgqueue.lease l, unnest(l.ids, l.claims) u (id, claim) where l.id = %(lease)s::bigint)
select j.id, j.claim, j.kind, j.args::text, nullif(j.metadata, '{}')::text, j.attempt, j.max_attempts, j.crashes,
  j.timeout, j.expires_at, j.tenant, j.priority
from pgqueue.job j join held h on h.id = j.id and h.claim = j.claim where case when j.status = 0 then true end
union all
select null, 0, null, null, null, 0, null, null, null, clock_timestamp(), null, null
