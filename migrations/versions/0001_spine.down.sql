-- Takes everything away again, the history with it.
drop view pgqueue.schedules, pgqueue.job_logs, pgqueue.workers, pgqueue.queue_stats, pgqueue.job_stats,
  pgqueue.job_attempts, pgqueue.live_jobs, pgqueue.jobs;
drop function pgqueue.enqueue, pgqueue.insert_jobs, pgqueue.reserve, pgqueue.wake, pgqueue.json_size, pgqueue.size_of,
  pgqueue.state_name;
drop table pgqueue.schedule, pgqueue.log, pgqueue.checkin, pgqueue.tally, pgqueue.unique_key, pgqueue.attempt,
  pgqueue.suspect, pgqueue.request, pgqueue.queue, pgqueue.worker, pgqueue.lease, pgqueue.waiting, pgqueue.void, pgqueue.ready,
  pgqueue.job, pgqueue.meta;
