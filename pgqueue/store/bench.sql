-- What `pgqueue bench` writes beside its jobs, asks about them, and how all of it is removed.
-- A run has a queue of its own, whose name says the first id it may use. The row of that queue is the note that the run
-- exists: made first, removed last. A row in `worker` shows whether it is alive.

-- name: begin
-- Note a new run, with its queue paused. Answers with its queue and the worker that stands for it.
with name as (
  select format('%%s%%s.%%s', %(prefix)s::text, coalesce(max(id), 0) + 1, %(mark)s::text) as name from pgqueue.job),
noted as (insert into pgqueue.queue (name, paused_at) select name, clock_timestamp() from name)
insert into pgqueue.worker (name, host, pid, version, lease, queues, kinds)
select 'pgqueue bench', %(host)s::text, %(pid)s::integer, %(version)s::text, interval '30 seconds',
  jsonb_build_object(name, 0), '{}' from name
returning (select name from name), id

-- name: beat
-- A run is alive.
update pgqueue.worker set seen_at = clock_timestamp() where id = %(worker)s::integer returning id

-- name: runs
-- The processes of every run that is noted, and whether they have been heard of lately.
select q.name, w.host, w.pid, w.seen_at + w.lease > clock_timestamp()
from pgqueue.queue q left join pgqueue.worker w on w.queues ? q.name and w.stopped_at is null
where starts_with(q.name, %(prefix)s::text) and substr(q.name, length(%(prefix)s::text) + 1) ~ '^[0-9]{1,18}[.][0-9a-f]{12}$'
order by q.name, w.id

-- name: working
-- How many workers serve a queue; the run itself does not.
select count(*) from pgqueue.worker
where queues ? %(queue)s::text and kinds <> '{}' and stopped_at is null and seen_at + lease > clock_timestamp()

-- name: completed
-- How many jobs of a run have been completed. By the minutes since it began: of those there is an index.
select coalesce(sum(jobs), 0)::bigint from pgqueue.tally
where queue = %(queue)s::text and state = 'completed'
  and minute >= (select date_trunc('minute', started_at) from pgqueue.worker where id = %(worker)s::integer)

-- name: results
-- What the completed ones of a range of jobs returned.
select id, result::text from pgqueue.job
where id between %(first)s::bigint and %(last)s::bigint and queue = %(queue)s::text and status = 1
  and result is not null

-- name: first_start
-- When the first of a range of jobs was started; seconds before now.
select extract(epoch from clock_timestamp() - min(started_at))::float8 from pgqueue.job
where id between %(first)s::bigint and %(last)s::bigint and queue = %(queue)s::text

-- name: conditions
-- What a figure depends on.
select current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit'),
  current_setting('full_page_writes')

-- name: seize
-- Take a run's jobs from everybody: what is in neither `ready` nor a lease can be neither claimed nor rescued.
with gone as (delete from pgqueue.ready where queue = %(queue)s::text),
released as (
  delete from pgqueue.lease l using pgqueue.worker w where w.id = l.worker_id and w.queues ? %(queue)s::text)
select coalesce(max(id), 0) from pgqueue.job

-- name: remove
-- Remove the jobs of a run among a range of ids, with their history. By that range in every table: each has an index
-- on it. (By the jobs' ids alone the planner may read all of somebody's history.)
with gone as (
  delete from pgqueue.job
  where id between %(first)s::bigint and %(last)s::bigint and queue = %(queue)s::text returning id),
attempts as (
  delete from pgqueue.attempt a using gone g
  where a.job_id = g.id and a.job_id between %(first)s::bigint and %(last)s::bigint),
waiting as (
  delete from pgqueue.waiting w using gone g
  where w.job_id = g.id and w.job_id between %(first)s::bigint and %(last)s::bigint),
requests as (
  delete from pgqueue.request r using gone g
  where r.job_id = g.id and r.job_id between %(first)s::bigint and %(last)s::bigint),
checkins as (
  delete from pgqueue.checkin c using gone g
  where c.job_id = g.id and c.job_id between %(first)s::bigint and %(last)s::bigint),
checkpoints as (
  delete from pgqueue.checkpoint c using gone g
  where c.job_id = g.id and c.job_id between %(first)s::bigint and %(last)s::bigint),
logs as (
  delete from pgqueue.log l using gone g
  where l.job_id = g.id and l.job_id between %(first)s::bigint and %(last)s::bigint)
select count(*) from gone

-- name: forget
-- Remove what remains of a run when its jobs are gone.
with suspects as (delete from pgqueue.suspect where queue = %(queue)s::text),
voids as (delete from pgqueue.void where queue = %(queue)s::text),
sums as (delete from pgqueue.tally where queue = %(queue)s::text),
workers as (delete from pgqueue.worker where queues ? %(queue)s::text)
delete from pgqueue.queue where name = %(queue)s::text returning true
