-- The present of each queue is asked for every few seconds, beside 100,000 sums of the past: whoever doesn't ask for the
-- past doesn't wait for its sums. Columns and meaning are as before.

create or replace view pgqueue.queue_stats as
with counted as (
  select queue, 'available' as state, greatest(0, sum(cardinality(ids) - taken)
      - coalesce((select sum(v.jobs) from pgqueue.void v where v.queue = r.queue), 0)) as jobs
  from pgqueue.ready r group by queue
  union all
  select queue, 'available', count(*) from pgqueue.suspect group by queue
  union all
  select j.queue, 'running', count(*)
  from pgqueue.lease l, unnest(l.ids, l.claims) u (id, claim)
  join pgqueue.job j on j.id = u.id and j.claim = u.claim and j.status = 0 group by j.queue
  union all
  -- Ids by the array, each found in one walk through the index: a look-up per job takes twice as long.
  select j.queue, w.state, count(*)
  from (select state, claim, array_agg(job_id) as ids from pgqueue.waiting group by state, claim) w
  join pgqueue.job j on j.id = any (w.ids) and j.claim = w.claim and j.status = 0 group by j.queue, w.state
  union all
  (select distinct queue, null, 0 from pgqueue.tally)
  union all
  select name, null, 0 from pgqueue.queue),
live as (
  select queue, sum(jobs) filter (where state = 'available') as available,
    sum(jobs) filter (where state = 'running') as running, sum(jobs) filter (where state = 'scheduled') as scheduled,
    sum(jobs) filter (where state = 'retryable') as retryable, sum(jobs) filter (where state = 'pending') as pending
  from counted group by queue),
past as (  -- one row per queue, so that the planner leaves it out where none of its columns is asked for
  select queue, sum(jobs) filter (where state = 'completed') as completed,
    sum(jobs) filter (where state = 'cancelled') as cancelled, sum(jobs) filter (where state = 'discarded') as discarded,
    sum(jobs) filter (where state = 'stopped') as stopped
  from (select queue, state, sum(jobs) as jobs from pgqueue.tally group by queue, state) t group by queue)
select l.queue, q.paused_at is not null as paused,
  coalesce(l.available, 0)::bigint as available, coalesce(l.running, 0)::bigint as running,
  coalesce(l.scheduled, 0)::bigint as scheduled, coalesce(l.retryable, 0)::bigint as retryable,
  coalesce(l.pending, 0)::bigint as pending, coalesce(p.completed, 0)::bigint as completed,
  coalesce(p.cancelled, 0)::bigint as cancelled, coalesce(p.discarded, 0)::bigint as discarded,
  coalesce(p.stopped, 0)::bigint as stopped,
  least(
    (select j.created_at  -- the first entry that isn't void
     from (select * from pgqueue.ready r where r.queue = l.queue order by r.priority, r.seq) r
     cross join lateral (
       select j.created_at from unnest(r.ids[r.taken + 1 :]) with ordinality u (id, n)
       cross join lateral (select * from pgqueue.job where job.id = u.id offset 0) j
       where j.claim = r.claim and j.status = 0 order by u.n limit 1) j
     limit 1),
    (select min(j.created_at) from pgqueue.suspect s join pgqueue.job j on j.id = s.job_id and j.claim = s.claim
     where s.queue = l.queue and j.status = 0)) as oldest_available_at
from live l left join past p on p.queue = l.queue left join pgqueue.queue q on q.name = l.queue;

comment on view pgqueue.job_stats is 'Outcomes per minute (per hour when older than a day), queue, kind and state.';
