-- Back to marks that name no installation. Those of local runs go: what is left would take them for a worker's.
delete from pgqueue.checkpoint where job_id < 0;
drop function pgqueue.complete_tx, pgqueue.set_checkpoint, pgqueue.set_local_checkpoint, pgqueue.hold_attempt,
  pgqueue.check_install;

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

create or replace view pgqueue.job_attempts as
select a.job_id, a.attempt, a.state, k.name as worker, a.started_at, a.finished_at,
  a.finished_at - a.started_at as duration, a.error ->> 'type' as error_type, a.error ->> 'message' as error,
  a.error ->> 'traceback' as traceback, j.kind, j.queue, j.tenant
from pgqueue.attempt a join pgqueue.job j on j.id = a.job_id left join pgqueue.worker k on k.id = a.worker_id
union all
select j.id, j.attempt + 1, 'completed', k.name, j.started_at, j.finalized_at, j.finalized_at - j.started_at,
  null, null, null, j.kind, j.queue, j.tenant
from pgqueue.job j left join pgqueue.worker k on k.id = j.worker_id where j.status = 1;
