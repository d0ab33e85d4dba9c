-- What people do to jobs and queues. Several ids at once; rows are locked in id order.
-- A claimed job's row is never touched: somebody's transaction may hold it. Its worker is asked instead.
-- `found` is how a job looked when the statement began, `own` how it looks since it is locked: the answer tells of the
-- second. Rows of the side tables that came in between are not seen; the claim number makes them void. A job that was
-- available leaves a void entry in `ready`, which a claim passes over; `void` counts them, lest anybody be told of it.
-- `taken`: a job that is claimed in this very instant may have made a part of its checkpoint durable by now.

-- name: cancel
-- Cancel or stop jobs: a waiting one is final at once, a claimed one is asked to. One row (id, answer) per id given.
-- A worker that claims in this very instant may begin, but whatever it reports finds the job closed.
with target as (select distinct value::bigint as id from jsonb_array_elements_text(%(ids)s::text::jsonb)),
held as (select u.id, u.claim from pgqueue.lease l, unnest(l.ids, l.claims) u (id, claim)),
found as materialized (
  select j.id, j.status, h.id is not null as claimed
  from target t join pgqueue.job j on j.id = t.id
  left join held h on h.id = j.id and h.claim = j.claim and j.status = 0),
own as materialized (
  select j.id, j.status from pgqueue.job j join found f on f.id = j.id
  where f.status = 0 and not f.claimed order by j.id for no key update of j),
taken as materialized (select * from pgqueue.take_checkpoints(array(select id from own))),
done as (
  update pgqueue.job j
  set status = case %(action)s::text when 'cancel' then 2 else 4 end, finalized_at = clock_timestamp(),
    metadata = case when t.job_id is null then j.metadata
      else pgqueue.fold(j.metadata, t.kept, null, t.rows, false) end
  from own left join taken t on t.job_id = own.id where j.id = own.id and own.status = 0
  returning j.id, j.queue, j.kind, j.unique_key, j.claim, j.attempt),
unscheduled as (delete from pgqueue.waiting w using done d where w.job_id = d.id returning w.job_id),
unsuspected as (delete from pgqueue.suspect s using done d where s.job_id = d.id returning s.job_id),
voided as (
  insert into pgqueue.void (queue, jobs) select queue, count(*) from done
  where id not in (select job_id from unscheduled union all select job_id from unsuspected) group by queue),
freed as (
  delete from pgqueue.unique_key u using done d
  where d.unique_key is not null and u.kind = d.kind and u.key = d.unique_key),
recorded as (
  insert into pgqueue.attempt (job_id, claim, attempt, finished_at, state, error)
  select id, claim, attempt + 1, clock_timestamp(),
    case %(action)s::text when 'cancel' then 'cancelled' else 'stopped' end,
    jsonb_build_object('type', initcap(%(action)s::text), 'message', %(reason)s::text)
  from done where %(reason)s::text is not null),
counted as (
  insert into pgqueue.tally (minute, queue, kind, state, jobs, seconds, longest)
  select date_trunc('minute', clock_timestamp()), queue, kind,
    case %(action)s::text when 'cancel' then 'cancelled' else 'stopped' end, count(*), 0, 0
  from done group by queue, kind),
asked as (
  insert into pgqueue.request (job_id, action, reason)
  select id, %(action)s::text, %(reason)s::text from found where claimed order by id
  on conflict (job_id) do update set action = excluded.action, reason = excluded.reason
  returning job_id),
affected as (select id from done union all select job_id from asked),
told as (
  select count(pg_notify(translate('pgqueue.control', '"', ''), news)) from (
    select id::text as news from affected where (select count(*) from affected) <= 100
    union all select 'many' where (select count(*) from affected) > 100) x)
select t.id, case
  when d.id is not null then case %(action)s::text when 'cancel' then 'cancelled' else 'stopped' end
  when f.claimed then 'requested'
  else coalesce('already ' || pgqueue.state_name(coalesce(o.status, f.status)), 'not found') end
from target t left join found f on f.id = t.id left join own o on o.id = t.id left join done d on d.id = t.id, told
order by t.id

-- name: retry
-- Make jobs available now: final ones (from their checkpoint; completed ones and `restart` from the start), scheduled
-- and retryable ones. Attempt and crashes of a final job begin anew; the claim number goes on.
with target as (select distinct value::bigint as id from jsonb_array_elements_text(%(ids)s::text::jsonb)),
found as materialized (
  select j.id, j.state, j.state in ('completed', 'cancelled', 'discarded', 'stopped') as final
  from target t join pgqueue.jobs j on j.id = t.id),
own as materialized (
  select j.id, j.status, j.kind, j.unique_key, f.final from pgqueue.job j join found f on f.id = j.id
  where f.final or f.state in ('scheduled', 'retryable') order by j.id for no key update of j),
able as materialized (select * from own where (status > 0) = final),
stale as (  -- see reserve in the migration
  delete from pgqueue.unique_key u using able a where u.kind = a.kind and u.key = a.unique_key
    and not exists (select from pgqueue.job j where j.id = u.job_id and j.status = 0) returning u.key),
key as (  -- after the job's row, as `complete` frees it after that
  insert into pgqueue.unique_key (kind, key, job_id)
  select kind, unique_key, id from able
  where final and unique_key is not null and (select count(*) from stale) >= 0 order by kind, unique_key
  on conflict do nothing returning job_id),
taken as materialized (select * from pgqueue.take_checkpoints(array(select id from able))),
done as (
  update pgqueue.job j
  set status = 0, claim = j.claim + 1, finalized_at = null, started_at = null, result = null, scheduled_at = null,
    attempt = case when a.final then 0 else j.attempt end, crashes = case when a.final then 0 else j.crashes end,
    metadata = case when %(restart)s::boolean or a.status = 1 
        then case jsonb_typeof(j.metadata) when 'object' then j.metadata - 'pgqueue' else '{}' end  -- damaged by hand
      when t.job_id is null then j.metadata else pgqueue.fold(j.metadata, t.kept, null, t.rows, false) end
  from able a left join taken t on t.job_id = a.id
  where j.id = a.id and (not a.final or a.unique_key is null or a.id in (select job_id from key))
  returning j.id, j.queue, j.priority, j.kind, j.claim, pgqueue.size_of(j.args, j.metadata) as bytes),
unscheduled as (delete from pgqueue.waiting w using done d where w.job_id = d.id),
unasked as (delete from pgqueue.request r using done d where r.job_id = d.id),
again as (
  insert into pgqueue.ready (queue, priority, kind, claim, ids, bytes)
  select queue, priority, kind, claim, array[id], bytes from done order by id),
woken as (select count(pgqueue.wake(queue)) from (select distinct queue from done) q)
select t.id, case
  when d.id is not null then 'available'
  when a.id is not null then 'blocked by a live job with the same unique key'
  when o.id is not null then 'already ' || coalesce(pgqueue.state_name(o.status), 'available')
  when f.final or f.state in ('scheduled', 'retryable') then 'not found'
  else coalesce('already ' || f.state, 'not found') end
from target t left join found f on f.id = t.id left join own o on o.id = t.id left join able a on a.id = t.id
left join done d on d.id = t.id, woken
order by t.id

-- name: reschedule
-- Let jobs that wait (scheduled, retryable, available) run at another time. Answers as above.
with target as (select distinct value::bigint as id from jsonb_array_elements_text(%(ids)s::text::jsonb)),
due as materialized (
  select coalesce(%(at)s::text::timestamptz, clock_timestamp() + make_interval(secs => %(delay)s::float8)) as at),
found as materialized (select j.id, j.state from target t join pgqueue.jobs j on j.id = t.id),
own as materialized (
  select j.id, j.status, f.state from pgqueue.job j join found f on f.id = j.id
  where f.state in ('scheduled', 'retryable', 'available') order by j.id for no key update of j),
taken as materialized (select * from pgqueue.take_checkpoints(array(select id from own))),
done as (
  update pgqueue.job j
  set claim = j.claim + 1, scheduled_at = due.at,
    metadata = case when t.job_id is null then j.metadata
      else pgqueue.fold(j.metadata, t.kept, null, t.rows, false) end
  from due, own left join taken t on t.job_id = own.id
  where j.id = own.id and own.status = 0
  returning j.id, j.queue, j.claim, own.state, due.at),
unsuspected as (delete from pgqueue.suspect s using done d where s.job_id = d.id returning s.job_id),
voided as (
  insert into pgqueue.void (queue, jobs) select queue, count(*) from done
  where state = 'available' and id not in (select job_id from unsuspected) group by queue),
later as (
  insert into pgqueue.waiting (job_id, due, claim, state)
  select id, at, claim, case state when 'retryable' then 'retryable' else 'scheduled' end from done order by id
  on conflict (job_id) do update set due = excluded.due, claim = excluded.claim, state = excluded.state)
select t.id, case
  when d.id is not null then case d.state when 'retryable' then 'retryable' else 'scheduled' end
  when o.id is not null then 'already ' || pgqueue.state_name(o.status)
  when f.state in ('scheduled', 'retryable', 'available') then 'not found'
  else coalesce('already ' || f.state, 'not found') end
from target t left join found f on f.id = t.id left join own o on o.id = t.id left join done d on d.id = t.id
order by t.id

-- name: set_priority
-- Give jobs that wait another priority. Available ones go to the end of that priority. Answers with their state.
with target as (select distinct value::bigint as id from jsonb_array_elements_text(%(ids)s::text::jsonb)),
found as materialized (select j.id, j.state from target t join pgqueue.jobs j on j.id = t.id),
own as materialized (
  select j.id, j.status, f.state from pgqueue.job j join found f on f.id = j.id
  where f.state in ('pending', 'scheduled', 'retryable', 'available') order by j.id for no key update of j),
taken as materialized (select * from pgqueue.take_checkpoints(array(select id from own))),
done as (
  update pgqueue.job j
  set claim = j.claim + 1, priority = %(priority)s::integer,
    metadata = case when t.job_id is null then j.metadata
      else pgqueue.fold(j.metadata, t.kept, null, t.rows, false) end
  from own left join taken t on t.job_id = own.id
  where j.id = own.id and own.status = 0
  returning j.id, j.claim, j.queue, j.priority, j.kind, own.state, pgqueue.size_of(j.args, j.metadata) as bytes),
waiting as (  -- inserted again if it has been staged meanwhile: what was staged is void
  insert into pgqueue.waiting (job_id, due, claim, state)
  select w.job_id, w.due, d.claim, w.state from done d join pgqueue.waiting w on w.job_id = d.id order by w.job_id
  on conflict (job_id) do update set claim = excluded.claim),
suspected as (update pgqueue.suspect s set claim = d.claim from done d where s.job_id = d.id returning s.job_id),
voided as (
  insert into pgqueue.void (queue, jobs) select queue, count(*) from done
  where state = 'available' and id not in (select job_id from suspected) group by queue),
again as (
  insert into pgqueue.ready (queue, priority, kind, claim, ids, bytes)
  select queue, priority, kind, claim, array[id], bytes from done
  where state = 'available' and id not in (select job_id from suspected) order by id),
woken as (select count(pgqueue.wake(queue)) from (select distinct queue from done where state = 'available') q)
select t.id, case
  when d.id is not null then d.state
  when o.id is not null then 'already ' || pgqueue.state_name(o.status)
  when f.state in ('pending', 'scheduled', 'retryable', 'available') then 'not found'
  else coalesce('already ' || f.state, 'not found') end
from target t left join found f on f.id = t.id left join own o on o.id = t.id left join done d on d.id = t.id, woken
order by t.id

-- name: delete
-- Remove jobs and all that is known of them, except running ones. Answers 'deleted', 'already running' or 'not found'.
with target as (select distinct value::bigint as id from jsonb_array_elements_text(%(ids)s::text::jsonb)),
found as materialized (
  select v.id, v.state, j.status, j.claim
  from target t join pgqueue.jobs v on v.id = t.id join pgqueue.job j on j.id = t.id),
own as materialized (  -- one that has changed meanwhile stays: what came with the change would stay behind
  select j.id, j.status, (j.status, j.claim) = (f.status, f.claim) as same
  from pgqueue.job j join found f on f.id = j.id
  where f.state <> 'running' order by j.id for update of j),
done as (
  delete from pgqueue.job j using own where j.id = own.id and own.same returning j.id, j.queue, j.kind, j.unique_key),
unscheduled as (delete from pgqueue.waiting w using done d where w.job_id = d.id),
unsuspected as (delete from pgqueue.suspect s using done d where s.job_id = d.id returning s.job_id),
voided as (
  insert into pgqueue.void (queue, jobs) select d.queue, count(*) from done d join found f on f.id = d.id
  where f.state = 'available' and d.id not in (select job_id from unsuspected) group by d.queue),
unasked as (delete from pgqueue.request r using done d where r.job_id = d.id),
attempts as (delete from pgqueue.attempt a using done d where a.job_id = d.id),
checkins as (delete from pgqueue.checkin c using done d where c.job_id = d.id),
checkpoints as (select count(*) from pgqueue.take_checkpoints(array(select id from own where same))),
logs as (delete from pgqueue.log l using done d where l.job_id = d.id),
freed as (
  delete from pgqueue.unique_key u using done d
  where u.kind = d.kind and u.key = d.unique_key and u.job_id = d.id)
select t.id, case
  when d.id is not null then 'deleted'
  when o.id is not null then 'already ' || coalesce(pgqueue.state_name(o.status), 'available')
  when f.state = 'running' then 'already running'
  else 'not found' end
from target t left join found f on f.id = t.id left join own o on o.id = t.id left join done d on d.id = t.id,
  checkpoints
order by t.id

-- name: pause
-- Let workers take nothing from a queue. Answers true if it was not paused before.
with told as (select pg_notify(translate('pgqueue.control', '"', ''), 'pause'))
insert into pgqueue.queue as q (name, paused_at) select %(queue)s::text, clock_timestamp() from told
on conflict (name) do update set paused_at = excluded.paused_at where q.paused_at is null
returning true

-- name: resume
-- Let workers take from a queue again. Answers true if it was paused.
with done as (
  update pgqueue.queue set paused_at = null where name = %(queue)s::text and paused_at is not null returning name),
woken as (select count(pgqueue.wake(name)), count(pg_notify(translate('pgqueue.control', '"', ''), 'resume')) from done)
select true from done, woken

-- name: get
-- Jobs by id, newest first.
select (to_jsonb(j)
  || jsonb_build_object('duration', extract(epoch from duration), 'timeout', extract(epoch from timeout))
  || case jsonb_typeof(metadata) when 'object' then '{}' else '{"metadata": {}}'::jsonb end)::text  -- damaged by hand
from pgqueue.jobs j
where id = any(array(select value::bigint from jsonb_array_elements_text(%(ids)s::text::jsonb))) order by id desc

-- name: match
-- Ids of jobs by filter, newest first, at most `limit`, before the id `before`.
select id from pgqueue.jobs
where (%(before)s::bigint is null or id < %(before)s::bigint)
  and (%(state)s::text is null or state = %(state)s::text)
  and (%(kind)s::text is null or kind = %(kind)s::text)
  and (%(queue)s::text is null or queue = %(queue)s::text)
  and (%(tenant)s::text is null or tenant = %(tenant)s::text)
  and (%(tag)s::text is null or %(tag)s::text = any(tags))
  and (%(since)s::text is null or created_at >= %(since)s::text::timestamptz)
  and (%(until)s::text is null or created_at < %(until)s::text::timestamptz)
order by id desc limit %(limit)s::integer

-- name: match_live
-- The same for one live state, found from the small side tables. `offset 0` keeps the planner from joining otherwise
-- than by the index of `job`: with a plan that was cached while the tables were small, 6,000 jobs took over 10 s.
with live as materialized (
  select u.id, r.claim from pgqueue.ready r, unnest(r.ids[r.taken + 1 :]) u (id) where %(state)s::text = 'available'
  union all select job_id, claim from pgqueue.suspect where %(state)s::text = 'available'
  union all select u.id, u.claim from pgqueue.lease l, unnest(l.ids, l.claims) u (id, claim)
    where %(state)s::text = 'running'
  union all select job_id, claim from pgqueue.waiting where state = %(state)s::text)
select l.id
from (select id, claim from live where %(before)s::bigint is null or id < %(before)s::bigint order by id desc) l
cross join lateral (select * from pgqueue.job where job.id = l.id offset 0) j
where j.claim = l.claim and j.status = 0
  and (%(kind)s::text is null or kind = %(kind)s::text)
  and (%(queue)s::text is null or queue = %(queue)s::text)
  and (%(tenant)s::text is null or tenant = %(tenant)s::text)
  and (%(tag)s::text is null or %(tag)s::text = any(tags))
  and (%(since)s::text is null or created_at >= %(since)s::text::timestamptz)
  and (%(until)s::text is null or created_at < %(until)s::text::timestamptz)
order by l.id desc limit %(limit)s::integer

-- name: queues
-- All queues with their counts.
select row_to_json(q)::text from pgqueue.queue_stats q order by queue

-- name: workers
-- All workers of the last day.
select (to_jsonb(w) || jsonb_build_object('lease', extract(epoch from lease)))::text from pgqueue.workers w order by id

-- name: stats
-- Jobs per state over all queues.
select row_to_json(s)::text from (
  select coalesce(sum(available), 0) as available, coalesce(sum(running), 0) as running,
    coalesce(sum(scheduled), 0) as scheduled, coalesce(sum(retryable), 0) as retryable,
    coalesce(sum(pending), 0) as pending, coalesce(sum(completed), 0) as completed,
    coalesce(sum(cancelled), 0) as cancelled, coalesce(sum(discarded), 0) as discarded,
    coalesce(sum(stopped), 0) as stopped from pgqueue.queue_stats) s
