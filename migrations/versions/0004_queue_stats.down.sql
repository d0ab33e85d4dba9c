-- Back to the view of 0001.
create or replace view pgqueue.queue_stats as
with live as (
  select queue, greatest(0, sum(cardinality(ids) - taken)
      - coalesce((select sum(v.jobs) from pgqueue.void v where v.queue = r.queue), 0)) as available,
    0 as running, 0 as scheduled, 0 as retryable, 0 as pending
  from pgqueue.ready r group by queue
  union all
  select queue, count(*), 0, 0, 0, 0 from pgqueue.suspect group by queue
  union all
  select j.queue, 0, count(*), 0, 0, 0
  from pgqueue.lease l, unnest(l.ids, l.claims) u (id, claim)
  join pgqueue.job j on j.id = u.id and j.claim = u.claim and j.status = 0 group by j.queue
  union all
  select j.queue, 0, 0, count(*) filter (where w.state = 'scheduled'), count(*) filter (where w.state = 'retryable'),
    count(*) filter (where w.state = 'pending')
  from pgqueue.waiting w join pgqueue.job j on j.id = w.job_id and j.claim = w.claim and j.status = 0 group by j.queue),
past as (
  select queue, sum(jobs) filter (where state = 'completed') as completed,
    sum(jobs) filter (where state = 'cancelled') as cancelled, sum(jobs) filter (where state = 'discarded') as discarded,
    sum(jobs) filter (where state = 'stopped') as stopped
  from pgqueue.tally group by queue)
select name as queue, q.paused_at is not null as paused,
  coalesce(sum(l.available), 0)::bigint as available, coalesce(sum(l.running), 0)::bigint as running,
  coalesce(sum(l.scheduled), 0)::bigint as scheduled, coalesce(sum(l.retryable), 0)::bigint as retryable,
  coalesce(sum(l.pending), 0)::bigint as pending, coalesce(max(p.completed), 0)::bigint as completed,
  coalesce(max(p.cancelled), 0)::bigint as cancelled, coalesce(max(p.discarded), 0)::bigint as discarded,
  coalesce(max(p.stopped), 0)::bigint as stopped,
  least(
    (select j.created_at  -- the first entry that isn't void
     from (select * from pgqueue.ready r where r.queue = name order by r.priority, r.seq) r
     cross join lateral (
       select j.created_at from unnest(r.ids[r.taken + 1 :]) with ordinality u (id, n)
       cross join lateral (select * from pgqueue.job where job.id = u.id offset 0) j
       where j.claim = r.claim and j.status = 0 order by u.n limit 1) j
     limit 1),
    (select min(j.created_at) from pgqueue.suspect s join pgqueue.job j on j.id = s.job_id and j.claim = s.claim
     where s.queue = name and j.status = 0)) as oldest_available_at
from (select queue as name from live union select queue from past union select q.name from pgqueue.queue q) names
left join live l on l.queue = name left join past p on p.queue = name left join pgqueue.queue q using (name)
group by name, q.paused_at;

comment on view pgqueue.job_stats is 'Outcomes per minute (per hour when older than two days), queue, kind and state.';
