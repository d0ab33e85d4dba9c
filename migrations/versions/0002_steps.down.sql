-- Takes the table away; what the jobs that are running have in it goes into their metadata first.
update pgqueue.job j set metadata = pgqueue.fold(j.metadata, t.kept, null, t.rows, false)
from pgqueue.take_checkpoints(array(select job_id from pgqueue.checkpoint)) t
where j.id = t.job_id and j.status = 0;

create or replace view pgqueue.jobs as
select
  j.id, j.kind, j.queue,
  case
    when j.status > 0 then pgqueue.state_name(j.status)
    when h.id is not null then 'running'
    when w.job_id is not null then w.state
    else 'available'
  end as state,
  j.args, j.metadata, j.result,
  (select jsonb_agg(a.error || jsonb_build_object('attempt', a.attempt, 'state', a.state, 'at', a.finished_at)
     order by a.claim) from pgqueue.attempt a where a.job_id = j.id) as errors,
  j.attempt + (j.status = 1 or j.status = 0 and h.id is not null)::integer as attempt,
  j.max_attempts, j.crashes, j.priority, j.created_at,
  coalesce(case when j.status = 0 and w.state <> 'pending' then w.due end, j.scheduled_at, j.created_at)
    as scheduled_at,
  case when j.status = 0 and h.id is not null then h.claimed_at else j.started_at end as started_at,
  j.finalized_at,
  case when j.status > 0 then j.finalized_at - j.started_at end as duration,
  (select k.name from pgqueue.worker k
     where k.id = case when j.status = 0 and h.id is not null then h.worker_id else j.worker_id end) as worker,
  j.timeout * interval '1 second' as timeout, j.expires_at, j.unique_key, j.parent_id, j.tenant, j.tags,
  (select c.message from pgqueue.checkin c where c.job_id = j.id) as checkin,
  (select r.action from pgqueue.request r where r.job_id = j.id and j.status = 0) as request
from pgqueue.job j
left join (
  select u.id, u.claim, l.worker_id, l.claimed_at from pgqueue.lease l, unnest(l.ids, l.claims) u (id, claim)) h
  on h.id = j.id and h.claim = j.claim and j.status = 0
left join pgqueue.waiting w on w.job_id = j.id and w.claim = j.claim and j.status = 0;

create or replace view pgqueue.live_jobs as
with available as not materialized (
  select u.id, r.claim from pgqueue.ready r, unnest(r.ids[r.taken + 1 :]) u (id)
  union all select job_id, claim from pgqueue.suspect)
select j.id, j.kind, j.queue, live.state, j.args, j.metadata, j.priority,
  j.attempt + (live.state = 'running')::integer as attempt, j.max_attempts, j.created_at,
  coalesce(live.due, j.scheduled_at, j.created_at) as scheduled_at, live.claimed_at as started_at,
  (select k.name from pgqueue.worker k where k.id = live.worker_id) as worker,
  j.expires_at, j.unique_key, j.parent_id, j.tenant, j.tags,
  (select r.action from pgqueue.request r where r.job_id = j.id) as request
from (
  select 'available' as state, a.id, a.claim, null::timestamptz as due, null::timestamptz as claimed_at,
    null::integer as worker_id from available a
  union all
  select 'running', u.id, u.claim, null, l.claimed_at, l.worker_id
  from pgqueue.lease l, unnest(l.ids, l.claims) u (id, claim)
  union all
  select w.state, w.job_id, w.claim, case when w.state <> 'pending' then w.due end, null, null from pgqueue.waiting w
) live
join pgqueue.job j on j.id = live.id and j.claim = live.claim and j.status = 0;

drop function pgqueue.complete_tx, pgqueue.set_checkpoint, pgqueue.hold_attempt, pgqueue.take_checkpoints, pgqueue.fold;
drop table pgqueue.checkpoint;
