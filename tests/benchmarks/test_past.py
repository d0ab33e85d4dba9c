"""The history that benchmarks insert looks like the one that workers leave, and README's questions find it."""

from __future__ import annotations

import psycopg

from benchmarks import past
from benchmarks.questions import questions
from pgqueue import PgQueue
from tests.engine.kit import done, working

ABSENT = """
select array(select key from jsonb_each(to_jsonb(j)) where value = 'null' order by key)
from pgqueue.job j where id = %s
"""
PLAIN = "select min(id) from pgqueue.job where status = 1 and attempt = 0 and tenant is null"
SUMS = "select sum(jobs)::bigint from pgqueue.job_stats where state = 'completed'"
COMPLETED = "select count(*) from pgqueue.jobs where state = 'completed'"


def test_a_finished_job_of_the_past_has_the_columns_of_one_that_was_run(fresh_db: str) -> None:
    past.make(fresh_db, jobs=1_000)
    q = PgQueue(fresh_db)

    @q.task
    def greet(name: str) -> None:
        pass

    run = greet.enqueue("Ada").id
    with working(q):
        done(q, run)
    q.close()
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        (old,) = conn.execute(PLAIN).fetchone() or (None,)
        assert conn.execute(ABSENT, [old]).fetchone() == conn.execute(ABSENT, [run]).fetchone()


def test_the_sums_of_the_past_are_those_of_its_jobs(fresh_db: str) -> None:
    past.make(fresh_db, jobs=1_000)
    with psycopg.connect(fresh_db, autocommit=True) as conn:
        assert conn.execute(SUMS).fetchone() == conn.execute(COMPLETED).fetchone()


def test_the_questions_are_the_ten_of_readme() -> None:
    assert [name.partition(".")[0] for name, _ in questions()] == [str(number) for number in range(1, 11)]
