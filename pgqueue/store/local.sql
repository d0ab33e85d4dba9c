-- Marks of jobs that run without a worker: rows of `checkpoint` under a negative number, which no job of the queue has.

-- name: install
-- Which installation this is.
select install_id from pgqueue.meta

-- name: mark
-- Make what a step has reached durable with the caller's transaction.
select pgqueue.set_local_checkpoint(%(install)s::text::uuid, %(job)s::bigint, %(patch)s::text::jsonb)

-- name: wait_for_marks
-- Whoever was killed may have sent a COMMIT that lasts: see `set_local_checkpoint`.
select pg_advisory_xact_lock(%(job)s::bigint)

-- name: has_all_marks
-- As wait_for_marks, without waiting.
select pg_try_advisory_xact_lock(%(job)s::bigint)

-- name: marks
-- All that was marked.
select part, name, value::text from pgqueue.checkpoint where job_id = %(job)s::bigint and job_id < 0 order by part, name

-- name: forget
-- It stands in the state file by now.
delete from pgqueue.checkpoint where job_id = %(job)s::bigint and job_id < 0 returning job_id
