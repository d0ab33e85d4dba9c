-- Marks say which database they are meant for: a task may have connections to several that have this schema, where the
-- same numbers mean other jobs. And a job that runs without a worker may leave its marks too, under a negative number.

drop function pgqueue.complete_tx, pgqueue.set_checkpoint, pgqueue.hold_attempt;

create function pgqueue.check_install(install uuid, job bigint) returns void
language plpgsql set search_path = pg_catalog as $$
begin
  if install is distinct from (select m.install_id from pgqueue.meta m) then
    raise exception using errcode = 'PQ003', message = format(
      'job %s: this connection is to another database (%s) than the job''s: its marks belong into its own',
      job, current_database());
  end if;
end $$;
comment on function pgqueue.check_install is 'Private. An error if this is not the installation that is meant.';

-- The fence of every *_tx (see jobs.sql), and its lock: the job's row only, never the lease, so that a transaction that
-- stays open blocks nobody else. Who comes after a rescue finds the claim number raised; an error of the server's, so
-- that the transaction can't commit.
create function pgqueue.hold_attempt(
  install uuid, job bigint, claim integer, lease bigint, out worker integer, out claimed_at timestamptz
) language plpgsql set search_path = pg_catalog as $$
#variable_conflict use_variable
begin
  perform pgqueue.check_install(install, job);
  select l.worker_id, l.claimed_at into worker, claimed_at from pgqueue.lease l
  where l.id = lease
    and exists (select from unnest(l.ids, l.claims) u (id, claim) where u.id = job and u.claim = hold_attempt.claim);
  if found then
    perform from pgqueue.job j where j.id = job and j.claim = hold_attempt.claim and j.status = 0 for no key update;
  end if;
  if not found then
    raise exception using errcode = 'PQ001', message = format(
      case when exists (
          select from pgqueue.job j where j.id = job and j.claim = hold_attempt.claim and j.status = 1)
        then 'job %s: it was completed already: nothing can be added to it'
        else 'job %s: this attempt has lost its lease; another worker may be running the job' end, job);
  end if;
end $$;
comment on function pgqueue.hold_attempt is
  'Private. Lock the job of a running attempt and answer with its worker; an error if the attempt has lost its lease.';

create function pgqueue.set_checkpoint(
  install uuid, job bigint, claim integer, lease bigint, part text, name text, value jsonb
) returns void language plpgsql set search_path = pg_catalog as $$
#variable_conflict use_variable
begin
  perform pgqueue.hold_attempt(install, job, claim, lease);
  insert into pgqueue.checkpoint (job_id, by_tx, part, name, value) values (job, true, part, name, value)
  on conflict on constraint checkpoint_pkey do update set value = excluded.value, by_tx = true;
end $$;
comment on function pgqueue.set_checkpoint is
  'Private. Make a step, a cursor or data of a running attempt durable with the caller''s transaction.';

-- As `complete` and `settle` do, for one job. The lease isn't touched: it goes when the worker is done with all of it.
create function pgqueue.complete_tx(
  install uuid, job bigint, claim integer, lease bigint, result jsonb, elapsed interval, patch jsonb default null
) returns void language plpgsql set search_path = pg_catalog as $$
#variable_conflict use_variable
declare
  held constant record := pgqueue.hold_attempt(install, job, claim, lease);
  instant constant timestamptz := clock_timestamp();
  started constant timestamptz := greatest(held.claimed_at, instant - elapsed);
  taken record;
  done record;
begin
  select t.kept, t.rows into taken from pgqueue.take_checkpoints(array[job]) t;
  update pgqueue.job j
  set status = 1, started_at = started, finalized_at = instant,
    worker_id = held.worker, result = complete_tx.result,
    metadata = pgqueue.fold(j.metadata, taken.kept, patch, taken.rows, true)
  where j.id = job
  returning j.queue, j.kind, j.unique_key into done;
  delete from pgqueue.unique_key u where u.kind = done.kind and u.key = done.unique_key;
  delete from pgqueue.request where job_id = any (array(
    select r.job_id from pgqueue.request r where r.job_id = job for update skip locked));
  insert into pgqueue.tally (minute, queue, kind, state, jobs, seconds, longest)
  select date_trunc('minute', instant), done.queue, done.kind, 'completed', 1, t.seconds, t.seconds
  from (select extract(epoch from instant - started)::float8 as seconds) t;
end $$;
comment on function pgqueue.complete_tx is
  'Private. Complete the job of a running attempt with the caller''s transaction.';

create function pgqueue.set_local_checkpoint(install uuid, job bigint, patch jsonb) returns void
language plpgsql set search_path = pg_catalog as $$
#variable_conflict use_variable
begin
  perform pgqueue.check_install(install, job);
  perform pg_advisory_xact_lock_shared(job);  -- whoever resumes the job waits until this is committed, or never will be
  insert into pgqueue.checkpoint (job_id, by_tx, part, name, value)
  select job, true, p.part, n.name, n.value
  from jsonb_each(patch) p (part, value), jsonb_each(p.value) n (name, value)
  where job < 0
  on conflict on constraint checkpoint_pkey do update set value = excluded.value;
end $$;
comment on function pgqueue.set_local_checkpoint is
  'Private. As set_checkpoint, for a job that runs without a worker; it has a negative number and no row.';

-- Without joins, so that the planner can take the two halves apart and walk an index: what failed last is found in 1 ms
-- instead of 20 per million jobs.
create or replace view pgqueue.job_attempts as
select a.job_id, a.attempt::integer as attempt, a.state,
  (select k.name from pgqueue.worker k where k.id = a.worker_id) as worker,
  a.started_at, a.finished_at, a.finished_at - a.started_at as duration, a.error ->> 'type' as error_type,
  a.error ->> 'message' as error, a.error ->> 'traceback' as traceback,
  (select j.kind from pgqueue.job j where j.id = a.job_id) as kind,
  (select j.queue from pgqueue.job j where j.id = a.job_id) as queue,
  (select j.tenant from pgqueue.job j where j.id = a.job_id) as tenant
from pgqueue.attempt a
union all
select j.id, j.attempt + 1, 'completed', (select k.name from pgqueue.worker k where k.id = j.worker_id), j.started_at,
  j.finalized_at, j.finalized_at - j.started_at, null, null, null, j.kind, j.queue, j.tenant
from pgqueue.job j where j.status = 1;
