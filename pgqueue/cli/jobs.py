"""`pgqueue jobs`: look at jobs. What is done to them is in `verbs`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime

import click

from pgqueue import PgQueue
from pgqueue.cli import verbs
from pgqueue.cli.filters import filtered, taken
from pgqueue.cli.options import DATABASE, JOB_ID, configured, json_option, opened
from pgqueue.cli.output import Column, ago, fields, local, paint_state, plain, print_json, say, span, style, table
from pgqueue.config import Loaded
from pgqueue.core.job import Job
from pgqueue.core.states import State
from pgqueue.selection import FilterOptions

PAGE = 1000
SCREEN = 25


@click.group()
def jobs() -> None:
    """List, show, cancel, stop, retry and delete jobs.

    \b
    pgqueue jobs list --state discarded --since 1d
    pgqueue jobs show 42
    pgqueue jobs retry 42 43
    pgqueue jobs retry --kind send_welcome --state discarded --yes
    """


@jobs.command("list")
@filtered
@click.option("--limit", type=click.IntRange(min=1), default=SCREEN, show_default=True, help="At most so many.")
@click.option("--before", type=JOB_ID, help="With ids below that one: the next page.")
@json_option
@configured(*DATABASE)
def list_(loaded: Loaded, *, limit: int, before: int | None, as_json: bool, **filters: object) -> None:
    """List jobs, newest first.

    \b
    pgqueue jobs list --state running
    pgqueue jobs list --kind send_welcome --since 2h
    pgqueue jobs list --json --limit 5000 | jq .id

    With --json every line is one job.
    """
    filter = taken(filters)
    with opened(loaded) as q:
        if as_json:
            for job in _pages(q, limit, before, filter):
                print_json(job)
            return
        found = list(_pages(q, limit, before, filter))
    if not found:
        say("no jobs fit" if filter else "there are no jobs")
        return
    table(_COLUMNS, map(_row, found))
    if len(found) == limit and sys.stdout.isatty():
        say(f"older ones: --before {found[-1].id}")


@jobs.command()
@click.argument("id", type=JOB_ID)
@json_option
@configured(*DATABASE)
def show(loaded: Loaded, id: int, *, as_json: bool) -> None:
    """Show one job's whole life, with attempts and errors.

    \b
    pgqueue jobs show 42
    """
    with opened(loaded) as q:
        job = q.job(id)
    if as_json:
        print_json(job)
        return
    click.echo(f"job {job.id}  {style(job.kind, bold=True)}  {style(job.state, fg=paint_state(job.state))}")
    fields(_life(job))
    for error in job.errors:
        _show_attempt(error)


for verb in verbs.COMMANDS:
    jobs.add_command(verb)


_COLUMNS = (
    Column(title="ID", right=True),
    Column(title="STATE", paint=paint_state),
    Column(title="KIND"),
    Column(title="QUEUE"),
    Column(title="ATTEMPT", right=True),
    Column(title="AGE", right=True),
    Column(title="TENANT", optional=True),
    Column(title="DETAIL", shrinks=True),
)


def _pages(q: PgQueue, limit: int, before: int | None, filter: FilterOptions) -> Iterator[Job]:
    while limit > 0:
        page = q.jobs(limit=min(limit, PAGE), before=before, **filter)
        yield from page
        if len(page) < min(limit, PAGE):
            return
        limit, before = limit - len(page), page[-1].id


def _row(job: Job) -> tuple[str, ...]:
    return (
        str(job.id), job.state, job.kind, job.queue, _attempt(job), ago(job.created_at), job.tenant or "", _detail(job)
    )  # fmt: skip


def _attempt(job: Job) -> str:
    return f"{job.attempt}/{job.max_attempts}" if job.max_attempts is not None else str(job.attempt)


def _detail(job: Job) -> str:
    """What one wants to know next about a job in its state."""
    args = _compact(job.args)
    last = _error(job.errors[-1]) if job.errors else ""
    match job.state:
        case State.SCHEDULED:
            return f"{ago(job.scheduled_at)}: {args}"
        case State.RETRYABLE:
            return f"{ago(job.scheduled_at)}: {last or args}"
        case State.RUNNING:
            asked = f"{job.request} requested, " if job.request else ""
            return f"{asked}{job.checkin or f'on {job.worker}'}: {args}"
        case State.DISCARDED | State.CANCELLED | State.STOPPED:
            return last or args
    return args


def _life(job: Job) -> Mapping[str, str]:
    return {
        "queue": job.queue,
        "priority": str(job.priority or ""),
        "attempt": f"{job.attempt} of {job.max_attempts}" if job.max_attempts is not None else str(job.attempt),
        "crashes": str(job.crashes or ""),
        "created": _when(job.created_at),
        "scheduled": "" if job.scheduled_at == job.created_at else _when(job.scheduled_at),
        "started": _when(job.started_at),
        "finished": _when(job.finalized_at),
        "duration": "" if job.duration is None else span(job.duration.total_seconds()),
        "worker": job.worker or "",
        "requested": job.request or "",
        "check-in": job.checkin or "",
        "time-out": "" if job.timeout is None else span(job.timeout.total_seconds()),
        "expires": "" if job.expires_at is None else local(job.expires_at),
        "unique key": job.unique_key or "",
        "parent": str(job.parent_id or ""),
        "tenant": job.tenant or "",
        "tags": ", ".join(job.tags),
        "args": _compact(job.args),
        "metadata": _compact(job.metadata) if job.metadata else "",
        "result": _compact(job.result) if job.state is State.COMPLETED else "",
    }


def _show_attempt(error: Mapping[str, object]) -> None:
    state, when = str(error.get("state") or ""), str(error.get("at") or "")[:19].replace("T", " ")
    click.echo(f"\nattempt {error.get('attempt')}  {style(state, fg=paint_state(state))}  {when} UTC")
    click.echo(f"  {plain(_error(error))}")
    for line in str(error.get("traceback") or "").splitlines():
        click.echo(f"    {plain(line)}")


def _error(error: Mapping[str, object]) -> str:
    said = error.get("message")
    return f"{error.get('type')}: {said}" if said else str(error.get("type") or "")


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _when(moment: datetime | None) -> str:
    if moment is None:
        return ""
    distance = ago(moment)
    return f"{local(moment)} ({distance if distance.startswith('in ') else f'{distance} ago'})"
