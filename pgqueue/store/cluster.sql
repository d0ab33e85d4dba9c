-- Workers among themselves: heartbeat, rescue, staging, sums. Why `case when status = 0 then true end`: see jobs.sql.

-- name: register
-- A new worker.
insert into pgqueue.worker (name, host, pid, version, lease, queues, kinds)
values (%(name)s::text, %(host)s::text, %(pid)s::integer, %(version)s::text, make_interval(secs => %(lease)s::float8),
  %(queues)s::text::jsonb, array(select jsonb_array_elements_text(%(kinds)s::text::jsonb)))
returning id, (select install_id from pgqueue.meta)

-- name: pulse
-- The heartbeat of one worker, and what there is to do: one statement for an idle worker's every need.
with beat as (
  update pgqueue.worker set seen_at = clock_timestamp(), running = %(running)s::integer
  where id = %(worker)s::integer and stopped_at is null returning id)
select
  (select count(*) from beat) = 1 as beating,
  (select min(case when w.id is not null and w.stopped_at is null
      then extract(epoch from w.seen_at + w.lease - clock_timestamp())::float8 else 0 end)
    from pgqueue.lease l left join pgqueue.worker w on w.id = l.worker_id
    where w.id is null or w.stopped_at is not null or w.seen_at < clock_timestamp() - interval '3 seconds')
    as orphans_in,
  (select extract(epoch from min(due) - clock_timestamp())::float8 from pgqueue.waiting where due < 'infinity')
    as due_in,
  array(select q.name from unnest(%(queues)s::text[]) q (name)
    where exists (select from pgqueue.ready r where r.queue = q.name and r.kind = any(%(kinds)s::text[]))) as busy,
  array(select distinct queue from pgqueue.suspect
    where queue = any(%(queues)s::text[]) and kind = any(%(kinds)s::text[])) as suspect,
  array(select name from pgqueue.queue where paused_at is not null and name = any(%(queues)s::text[])) as paused,
  (select coalesce(jsonb_object_agg(job_id, action), '{}') from pgqueue.request)::text as requests,
  array(select i.id from unnest(%(doubtful)s::bigint[]) i (id)
    where not exists (select from pgqueue.job j where j.id = i.id and j.status = 0)) as closed

-- name: rescue
-- Take the jobs of silent, stopped or vanished workers from them: at most 20 leases. Jobs whose rows somebody has
-- locked (a *_tx about to commit) stay for the next sweep; what the others have made durable goes with them. The first
-- time a job is only a suspect: whether it had started isn't known. If it was the only job that its worker held, the
-- worker died of it; three such crashes discard it. Beside others anyone may be at fault: that counts only after ten
-- deaths.
with setting as materialized (select set_config('lock_timeout', '100ms', true)),
dead as materialized (
  select l.id, l.worker_id, l.solo, l.ids, l.claims from pgqueue.lease l
  where (select true from setting) and not exists (
    select from pgqueue.worker w
    where w.id = l.worker_id and w.stopped_at is null and w.seen_at + w.lease > clock_timestamp())
  order by random() limit 20 for update of l skip locked),  -- not always the same, which may be locked for long
open as materialized (
  select d.id as lease, d.worker_id, j.id, j.claim, d.solo and (
      count(*) over (partition by d.worker_id) = 1
      or (select count(*) from pgqueue.attempt a where a.job_id = j.id and a.error ->> 'type' = 'WorkerLost') > 10)
    as crashed
  from dead d cross join lateral unnest(d.ids, d.claims) u (id, claim)
  join pgqueue.job j on j.id = u.id and j.claim = u.claim and case when j.status = 0 then true end),
own as materialized (
  select o.*, r.action, r.reason from pgqueue.job j join open o on o.id = j.id and o.claim = j.claim
  left join pgqueue.request r on r.job_id = j.id
  where case when j.status = 0 then true end order by j.id for no key update of j skip locked),
taken as materialized (select * from pgqueue.take_checkpoints(array(select id from own))),
done as (
  update pgqueue.job j
  set claim = j.claim + 1, crashes = j.crashes + o.crashed::integer, worker_id = o.worker_id,
    status = case when o.action = 'cancel' then 2 when o.action = 'stop' then 4
      when o.crashed and j.crashes >= 2 then 3 else 0 end,
    finalized_at = case when o.action is not null or o.crashed and j.crashes >= 2 then clock_timestamp() end,
    metadata = case when t.job_id is null then j.metadata
      else pgqueue.fold(j.metadata, t.kept, null, t.rows, false) end
  from own o left join taken t on t.job_id = o.id where j.id = o.id
  returning j.id, j.claim, o.claim as old_claim, j.queue, j.kind, j.status, j.attempt, j.crashes, j.unique_key,
    o.worker_id, o.crashed, o.action, o.reason),
suspected as (
  insert into pgqueue.suspect (job_id, claim, queue, kind) select id, claim, queue, kind from done where status = 0
  on conflict (job_id) do update set claim = excluded.claim),  -- a void one may be left from a race
recorded as (
  insert into pgqueue.attempt (job_id, claim, attempt, worker_id, finished_at, state, error)
  select d.id, d.old_claim, d.attempt + 1, d.worker_id, clock_timestamp(),
    coalesce(pgqueue.state_name(d.status), 'available'),
    case when d.reason is not null then jsonb_build_object('type', initcap(d.action), 'message', d.reason)
      else jsonb_build_object('type', 'WorkerLost', 'message', format(
        'worker %%s stopped sending heartbeats while it held this job%%s', coalesce(w.name, d.worker_id::text),
        case when d.crashed then format(' (crash %%s of 3)', d.crashes) end)) end
  from done d left join pgqueue.worker w on w.id = d.worker_id),
freed as (
  delete from pgqueue.unique_key u using done d
  where d.status > 0 and d.unique_key is not null and u.kind = d.kind and u.key = d.unique_key),
answered as (  -- as in `settle`
  delete from pgqueue.request where job_id = any (array(
    select r.job_id from pgqueue.request r join done d on d.id = r.job_id where d.status > 0
    for update of r skip locked))),
counted as (
  insert into pgqueue.tally (minute, queue, kind, state, jobs, seconds, longest)
  select date_trunc('minute', clock_timestamp()), queue, kind,
    pgqueue.state_name(status), count(*), 0, 0
  from done where status > 0 group by queue, kind, status),
remaining as (
  select o.lease, array_agg(o.id order by o.id) as ids, array_agg(o.claim order by o.id) as claims
  from open o where not exists (select from own where own.id = o.id) group by o.lease),
ended as (
  delete from pgqueue.lease l using dead d
  where l.id = d.id and not exists (select from remaining r where r.lease = l.id)),
shrunk as (update pgqueue.lease l set ids = r.ids, claims = r.claims from remaining r where l.id = r.lease),
woken as (select count(pgqueue.wake(queue)) from (select distinct queue from done where status = 0) q)
select (select count(*) from done), (select count(*) from remaining) from woken

-- name: stage
-- Make due jobs available, at most `n`. Answers with the number that were due. By ctid: a row that changed between the
-- snapshot and the lock has another one and is left for the next time, because its job is still seen as it was.
with setting as materialized (select set_config('lock_timeout', '100ms', true)),
due as materialized (
  delete from pgqueue.waiting where ctid = any (array(
    select ctid from pgqueue.waiting where due <= clock_timestamp() and (select true from setting)
    order by due limit %(n)s::integer for update skip locked))
  returning job_id, claim),
job as (
  select j.id, j.queue, j.priority, j.kind, j.claim, pgqueue.size_of(j.args, j.metadata) as bytes
  from due d join pgqueue.job j on j.id = d.job_id and j.claim = d.claim and case when j.status = 0 then true end),
chunk as (
  select queue, priority, kind, claim, array_agg(id order by id) as ids, sum(bytes) as bytes
  from (
    select *, (row_number() over (partition by queue, priority, kind, claim order by id) - 1) / 100 as number
    from job) j
  group by queue, priority, kind, claim, number, case when bytes > 20000 then id end),
again as (
  insert into pgqueue.ready (queue, priority, kind, claim, ids, bytes)
  select queue, priority, kind, claim, ids, bytes from chunk order by ids[1]),
woken as (select count(pgqueue.wake(queue)) from (select distinct queue from chunk) q)
select (select count(*) from due) from woken

-- name: sign_off
-- A worker stops in order.
update pgqueue.worker set stopped_at = clock_timestamp(), running = 0 where id = %(worker)s::integer returning id

-- name: revive
-- A worker that was away and comes back: its row, if it was pruned meanwhile.
insert into pgqueue.worker (id, name, host, pid, version, lease, queues, kinds) overriding system value
values (%(worker)s::integer, %(name)s::text, %(host)s::text, %(pid)s::integer, %(version)s::text,
  make_interval(secs => %(lease)s::float8), %(queues)s::text::jsonb,
  array(select jsonb_array_elements_text(%(kinds)s::text::jsonb)))
on conflict (id) do update set seen_at = clock_timestamp(), stopped_at = null
returning id

-- name: tidy
-- Fold old sums, forget workers gone for a day, leases that were tombstones, and requests and checkpoints that nothing
-- can answer or fold any more.
-- Correct without a leader: who doesn't get the lock leaves it to who has it.
with turn as materialized (select pg_try_advisory_xact_lock(hashtext('pgqueue.tidy')) as mine),
old as (
  delete from pgqueue.tally where (select mine from turn) and (
    minute < date_trunc('minute', clock_timestamp()) - interval '2 minutes'
      and minute in (
        select minute from pgqueue.tally group by minute having count(*) > count(distinct (queue, kind, state)))
    or minute < clock_timestamp() - interval '1 day' and minute <> date_trunc('hour', minute, 'UTC'))
  returning *),
folded as (
  insert into pgqueue.tally (minute, queue, kind, state, jobs, seconds, longest)
  select case when minute < clock_timestamp() - interval '1 day' then date_trunc('hour', minute, 'UTC') else minute end
    as bucket, queue, kind, state, sum(jobs), sum(seconds), max(longest) from old group by bucket, queue, kind, state),
gone as (
  delete from pgqueue.worker w where (select mine from turn)
    and coalesce(w.stopped_at, w.seen_at) < clock_timestamp() - interval '1 day'
    and not exists (select from pgqueue.lease l where l.worker_id = w.id)),
tombstones as (
  delete from pgqueue.lease
  where (select mine from turn) and ids = '{}' and claimed_at < clock_timestamp() - interval '10 minutes'),
recounted as materialized (  -- a cancel that met a claim has counted one too many; of long queues the sums will do
  select v.queue, (
    select count(*) from pgqueue.ready r cross join unnest(r.ids[r.taken + 1 :]) u (id)
    where r.queue = v.queue
      and not exists (select from pgqueue.job j where j.id = u.id and j.claim = r.claim and j.status = 0)) as jobs
  from (select distinct queue from pgqueue.void where (select mine from turn)) v
  where (select count(*) from (select from pgqueue.ready r where r.queue = v.queue limit 1001) r) <= 1000
  limit 20),
miscounted as (delete from pgqueue.void where queue in (select queue from recounted)),
voids as (insert into pgqueue.void (queue, jobs) select queue, jobs from recounted where jobs > 0),
stale as (
  delete from pgqueue.request where job_id = any (array(
    select r.job_id from pgqueue.request r where (select mine from turn)
      and not exists (select from pgqueue.job j where j.id = r.job_id and j.status = 0)
    for update skip locked))),
outlived as (  -- a complete_tx under REPEATABLE READ doesn't see what was committed after its snapshot
  delete from pgqueue.checkpoint c where (select mine from turn) and c.job_id > 0  -- others are of local runs
    and not exists (select from pgqueue.job j where j.id = c.job_id and j.status = 0))
select (select count(*) from old)
