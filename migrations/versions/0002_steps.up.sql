-- Steps: what a running attempt has made durable already.
--
-- A row of `job` is large, and is to be written once per attempt: 100 kB of results on it would be written again with
-- every cursor. So what an attempt makes durable while it runs stands in rows of its own, under the lock of the job's
-- row, and whatever ends the attempt folds them into the job's metadata. Only running jobs have any.

-- `by_tx`: written in a transaction of the caller's. What the worker flushes (not by_tx) never replaces that.
create table pgqueue.checkpoint (
  job_id bigint not null,
  by_tx boolean not null default false,
  part text collate "C" not null check (part in ('done', 'cursor', 'data')),
  name text collate "C" not null,
  value jsonb not null,
  primary key (job_id, part, name)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
comment on table pgqueue.checkpoint is 'Private. What a running attempt has made durable already; folded into the '
  'job''s metadata when the attempt ends.';

-- Merges per key, in the order of the arguments: what the metadata has, what was flushed meanwhile, what the attempt
-- says at its end, what transactions wrote. Damaged input (the key is the user's to spoil) must stop nobody: what is no
-- object counts as empty if something new comes for it, and else stays as it is.
create function pgqueue.fold(metadata jsonb, kept jsonb, patch jsonb, rows jsonb, completed boolean) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog as $$
declare
  merged jsonb := metadata -> 'pgqueue';
  part text;
  source jsonb;
  news jsonb;
begin
  if jsonb_typeof(metadata) is distinct from 'object' then
    return metadata;
  end if;
  foreach part in array array['done', 'cursor', 'data'] loop
    news := '{}';
    foreach source in array array[kept, patch, rows] loop
      if jsonb_typeof(source -> part) = 'object' then
        news := news || (source -> part);
      end if;
    end loop;
    if news <> '{}' then
      if jsonb_typeof(merged) is distinct from 'object' then
        merged := '{}';
      end if;
      if jsonb_typeof(merged -> part) = 'object' then
        news := (merged -> part) || news;
      end if;
      merged := merged || jsonb_build_object(part, news);
    end if;
  end loop;
  if jsonb_typeof(merged) is distinct from 'object' then
    return metadata;
  end if;

  if completed then
    merged := merged - '{done,cursor}'::text[];
  elsif jsonb_typeof(merged -> 'done') = 'object' and jsonb_typeof(merged -> 'cursor') = 'object' then
    merged := jsonb_set(merged, '{cursor}',
      (merged -> 'cursor') - array(select jsonb_object_keys(merged -> 'done')));
  end if;
  if jsonb_typeof(merged -> 'data') = 'object' then
    merged := jsonb_set(merged, '{data}', (merged -> 'data')
      - array(select d.key from jsonb_each(merged -> 'data') d where d.value = 'null'));
  end if;
  foreach part in array array['done', 'cursor', 'data'] loop
    if merged -> part = '{}' then
      merged := merged - part;
    end if;
  end loop;
  return case when merged = '{}' then metadata - 'pgqueue'
    else metadata || jsonb_build_object('pgqueue', merged) end;
end $$;
comment on function pgqueue.fold is 'Private. The metadata of a job with what an attempt did merged into it.';

-- Called when the jobs' rows are locked. It must be a volatile function: its DELETE has a snapshot of its own. A *_tx
-- locks the job's row and doesn't change it, so a statement that got the lock just after the commit doesn't see with
-- its own snapshot what was committed, and would leave it behind.
-- No seq scan: a plan from the time when the table was empty would be used for ever.
create function pgqueue.take_checkpoints(jobs bigint[], out job_id bigint, out kept jsonb, out rows jsonb)
returns setof record language plpgsql rows 10 set search_path = pg_catalog set enable_seqscan = off as $$
#variable_conflict use_column
begin
  perform from pgqueue.checkpoint c where c.job_id = any (jobs) limit 1;
  if not found then  -- nearly always
    return;
  end if;
  return query
    with gone as (
      delete from pgqueue.checkpoint c where c.job_id = any (jobs)
      returning c.job_id as job, c.part, c.name, c.value, c.by_tx),
    parts as (
      select g.job, g.part, jsonb_object_agg(g.name, g.value) filter (where not g.by_tx) as kept,
        jsonb_object_agg(g.name, g.value) filter (where g.by_tx) as rows
      from gone g group by g.job, g.part)
    select p.job, jsonb_object_agg(p.part, p.kept) filter (where p.kept is not null),
      jsonb_object_agg(p.part, p.rows) filter (where p.rows is not null)
    from parts p group by p.job;
end $$;
comment on function pgqueue.take_checkpoints is
  'Private. Remove the checkpoint rows of jobs whose rows are locked, and answer with them in the shape of a patch.';

-- The fence of every *_tx (see jobs.sql), and its lock: the job's row only, never the lease, so that a transaction that
-- stays open blocks nobody else. Who comes after a rescue finds the claim number raised; an error of the server's, so
-- that the transaction can't commit.
create function pgqueue.hold_attempt(job bigint, claim integer, lease bigint) returns integer
language plpgsql set search_path = pg_catalog as $$
#variable_conflict use_variable
declare
  worker integer;
begin
  select l.worker_id into worker from pgqueue.lease l
  where l.id = lease
    and exists (select from unnest(l.ids, l.claims) u (id, claim) where u.id = job and u.claim = hold_attempt.claim);
  if found then
    perform from pgqueue.job j where j.id = job and j.claim = hold_attempt.claim and j.status = 0 for no key update;
  end if;
  if not found then
    raise exception using errcode = 'PQ001', message = format(
      'job %s: this attempt has lost its lease; another worker may be running the job', job);
  end if;
  return worker;
end $$;
comment on function pgqueue.hold_attempt is
  'Private. Lock the job of a running attempt and answer with its worker; an error if the attempt has lost its lease.';

create function pgqueue.set_checkpoint(
  job bigint, claim integer, lease bigint, part text, name text, value jsonb
) returns void language plpgsql set search_path = pg_catalog as $$
#variable_conflict use_variable
begin
  perform pgqueue.hold_attempt(job, claim, lease);
  insert into pgqueue.checkpoint (job_id, by_tx, part, name, value) values (job, true, part, name, value)
  on conflict on constraint checkpoint_pkey do update set value = excluded.value, by_tx = true;
end $$;
comment on function pgqueue.set_checkpoint is
  'Private. Make a step, a cursor or data of a running attempt durable with the caller''s transaction.';

-- As `complete` and `settle` do, for one job. The lease isn't touched: it goes when the worker is done with all of it.
create function pgqueue.complete_tx(
  job bigint, claim integer, lease bigint, result jsonb, started_at timestamptz, patch jsonb default null
) returns void language plpgsql set search_path = pg_catalog as $$
#variable_conflict use_variable
declare
  worker constant integer := pgqueue.hold_attempt(job, claim, lease);
  instant constant timestamptz := clock_timestamp();
  taken record;
  done record;
begin
  select t.kept, t.rows into taken from pgqueue.take_checkpoints(array[job]) t;
  update pgqueue.job j
  set status = 1, started_at = coalesce(complete_tx.started_at, j.started_at), finalized_at = instant,
    worker_id = worker, result = complete_tx.result,
    metadata = pgqueue.fold(j.metadata, taken.kept, patch, taken.rows, true)
  where j.id = job
  returning j.queue, j.kind, j.unique_key into done;
  delete from pgqueue.unique_key u where u.kind = done.kind and u.key = done.unique_key;
  delete from pgqueue.request where job_id = any (array(
    select r.job_id from pgqueue.request r where r.job_id = job for update skip locked));
  insert into pgqueue.tally (minute, queue, kind, state, jobs, seconds, longest)
  select date_trunc('minute', instant), done.queue, done.kind, 'completed', 1, t.seconds, t.seconds
  from (select coalesce(extract(epoch from instant - complete_tx.started_at), 0)::float8 as seconds) t;
end $$;
comment on function pgqueue.complete_tx is
  'Private. Complete the job of a running attempt with the caller''s transaction.';

-- What people read: metadata with what the running attempt has made durable. The rows are read in the view itself, for
-- a reader of it has no right to the table, and only of jobs that can have any.
create or replace view pgqueue.jobs as
select
  j.id, j.kind, j.queue,
  case
    when j.status > 0 then pgqueue.state_name(j.status)
    when h.id is not null then 'running'
    when w.job_id is not null then w.state
    else 'available'
  end as state,
  j.args,
  case
    when j.status = 0 and exists (select from pgqueue.checkpoint c where c.job_id = j.id) then (
      select pgqueue.fold(j.metadata, jsonb_object_agg(p.part, p.kept) filter (where p.kept is not null), null,
        jsonb_object_agg(p.part, p.rows) filter (where p.rows is not null), false)
      from (
        select c.part, jsonb_object_agg(c.name, c.value) filter (where not c.by_tx) as kept,
          jsonb_object_agg(c.name, c.value) filter (where c.by_tx) as rows
        from pgqueue.checkpoint c where c.job_id = j.id group by c.part) p)
    else j.metadata
  end as metadata,
  j.result,
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
select j.id, j.kind, j.queue, live.state, j.args,
  case
    when live.state = 'running' and exists (select from pgqueue.checkpoint c where c.job_id = j.id) then (
      select pgqueue.fold(j.metadata, jsonb_object_agg(p.part, p.kept) filter (where p.kept is not null), null,
        jsonb_object_agg(p.part, p.rows) filter (where p.rows is not null), false)
      from (
        select c.part, jsonb_object_agg(c.name, c.value) filter (where not c.by_tx) as kept,
          jsonb_object_agg(c.name, c.value) filter (where c.by_tx) as rows
        from pgqueue.checkpoint c where c.job_id = j.id group by c.part) p)
    else j.metadata
  end as metadata,
  j.priority,
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
