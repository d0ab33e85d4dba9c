"""What the demo shows at its end: questions about the history, each as the SQL that answers it and the answer.

The queries use public relations only, and are printed as they are sent: they can be typed into psql.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

import click

from pgqueue.cli.output import Column, paint_state, span, style, table
from pgqueue.db.pool import Connection

NAMES = frozenset({"id", "job_id", "pid"})  # numbers that nobody reckons with


@dataclass(frozen=True, slots=True)
class Question:
    """A question in words, and in SQL. A `follow_up` makes sense only if the one before it had an answer."""

    words: str
    sql: str
    follow_up: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What the database said to a question."""

    question: Question
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


QUESTIONS = (
    Question(
        "What became of the jobs?",
        """select state, count(*) as jobs
from pgqueue.jobs
group by state order by jobs desc;""",
    ),
    Question(
        "Is there a job for every committed file, and nothing of those rolled back?",
        """select (select count(*) from app.file) as files,
       (select count(*) from pgqueue.jobs where kind = 'index_file') as their_jobs,
       (select count(*) from app.rolled_back) as rolled_back,
       (select count(*) from app.rolled_back join app.file using (path)) as rows_left,
       (select count(*) from app.rolled_back r
          join pgqueue.jobs j on j.args ->> 'path' = r.path) as jobs_left;""",
    ),
    Question(
        "Which kinds are the slowest?",
        """select kind, sum(jobs) as attempts,
       sum(total_duration) / sum(jobs) as mean, max(max_duration) as longest
from pgqueue.job_stats
group by kind order by mean desc;""",
    ),
    Question(
        "What failed, and why?",
        """select id, args ->> 'path' as file, attempt as attempts,
       errors -> -1 ->> 'message' as error
from pgqueue.jobs
where state = 'discarded' order by id limit 12;""",
    ),
    Question(
        "What happened to the first of them?",
        """select job_id, attempt, state, worker, duration, error_type
from pgqueue.job_attempts
where job_id = (select min(id) from pgqueue.jobs where state = 'discarded')
order by attempt;""",
        follow_up=True,
    ),
    Question(
        "Who did the work?",
        """select w.name as worker, w.pid, w.state, count(a.job_id) as attempts
from pgqueue.workers w left join pgqueue.job_attempts a on a.worker = w.name
group by w.id, w.name, w.pid, w.state order by w.id;""",
    ),
    Question(
        "And the work itself: the largest packages?",
        """select name as package, files, lines, words, classes, functions
from app.package
order by lines desc nulls last limit 5;""",
    ),
)


def ask(conn: Connection, questions: Sequence[Question] = QUESTIONS) -> list[Answer]:
    """Put the questions to the database."""
    return [_answer(conn, question) for question in questions]


def _answer(conn: Connection, question: Question) -> Answer:
    cursor = conn.execute(question.sql.encode())  # as bytes: a str would have to be a literal for the type checker
    rows = cursor.fetchall()
    return Answer(question, [each.name for each in cursor.description or ()], rows)


def tell(answers: Sequence[Answer]) -> None:
    """Print the questions and their answers."""
    said_something = True
    for answer in answers:
        if said_something or not answer.question.follow_up:
            _tell(answer)
        said_something = bool(answer.rows)


def pose(question: Question) -> None:
    """Print a question and its SQL."""
    click.echo()
    click.echo(style(question.words, bold=True))
    for line in question.sql.splitlines():
        click.echo(style(f"  {line}", fg="cyan"))
    click.echo()


def _tell(answer: Answer) -> None:
    pose(answer.question)
    if not answer.rows:
        click.echo("  nothing")
        return
    columns = [_column(name, [row[index] for row in answer.rows]) for index, name in enumerate(answer.columns)]
    cells = [["", *map(_text, row, answer.columns)] for row in answer.rows]
    table([Column(title=""), *columns], cells)  # the empty column indents


def _column(title: str, values: Sequence[object]) -> Column:
    paint = paint_state if title == "state" else lambda text: None
    number = all(value is None or isinstance(value, int | Decimal | timedelta) for value in values)
    return Column(title=title, right=number and title not in NAMES, shrinks=title == "error", paint=paint)


def _text(value: object, title: str) -> str:
    match value:
        case None:
            return "-"
        case timedelta():
            return span(value.total_seconds())
        case int() | Decimal() if title not in NAMES:
            return f"{value:,}"
    return str(value)
