"""`pgqueue enqueue`: inserts one job, checked as the application would check it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import click

from pgqueue import PgQueue
from pgqueue.cli.application import find_queue
from pgqueue.cli.options import DURATION, INSTANT, configured, json_option, opened, reached
from pgqueue.cli.output import print_json, say
from pgqueue.config import Loaded
from pgqueue.core.draft import EnqueuedJob
from pgqueue.core.job import Job
from pgqueue.core.states import State
from pgqueue.errors import ConfigError
from pgqueue.tasks.door import Options, nearest
from pgqueue.tasks.json_text import check_object_text


@click.command()
@click.argument("kind")
@click.argument("args", metavar="[JSON]", default="{}")
@click.option("--queue", metavar="NAME", help="Queue; else the task's, or `default`.")
@click.option("--priority", type=int, help="Higher runs first.")
@click.option("--delay", type=DURATION, help="Run it after that long: 30s, 2h, 1d.")
@click.option("--at", type=INSTANT, help="Run it at that time: 2026-01-31T12:00; local time unless it names a zone.")
@click.option("--max-attempts", type=int, help="How many attempts may fail.")
@click.option("--timeout", type=DURATION, help="What one attempt may take.")
@click.option("--expires-at", type=INSTANT, help="Discard it if it has not started by then.")
@click.option("--unique-key", metavar="TEXT", help="Insert nothing while a job of this kind and key is not final.")
@click.option("--tag", "tags", multiple=True, metavar="TEXT", help="A label; may be given many times.")
@click.option("--tenant", metavar="TEXT", help="The tenant it belongs to.")
@click.option("--metadata", metavar="JSON", help="Notes to keep with the job.")
@click.option("--unchecked", is_flag=True, help="Don't look at the application, even if one is configured.")
@click.option("--wait", type=DURATION, help="Wait that long for the job to end, and print its result.")
@json_option
@configured("app", "dsn", "schema", "pooled")
def enqueue(
    loaded: Loaded,
    kind: str,
    args: str,
    *,
    queue: str | None,
    priority: int | None,
    delay: timedelta | None,
    at: datetime | None,
    max_attempts: int | None,
    timeout: timedelta | None,
    expires_at: datetime | None,
    unique_key: str | None,
    tags: Sequence[str],
    tenant: str | None,
    metadata: str | None,
    unchecked: bool,
    wait: timedelta | None,
    as_json: bool,
) -> int | None:
    """Insert a job of KIND with the arguments in JSON, an object; prints its id.

    \b
    pgqueue enqueue send_welcome '{"user_id": 1}' --delay 10m
    pgqueue enqueue report - < arguments.json
    pgqueue enqueue report @arguments.json -A shop.tasks:q

    With -A (or PGQUEUE_APP) the kind has to be one of the application's tasks, its options hold, and the arguments are
    checked against its signature; without, the job is inserted as it is.
    """
    values = read_object("JSON", read_text(args))
    options: Options = {
        "queue": queue, "priority": priority, "delay": delay, "scheduled_at": at, "max_attempts": max_attempts,
        "timeout": timeout, "expires_at": expires_at, "unique_key": unique_key, "tags": tags or None, "tenant": tenant,
        "metadata": None if metadata is None else read_object("--metadata", read_text(metadata)),
    }  # fmt: skip
    if loaded.config.app is None or unchecked:
        with opened(loaded) as q:
            return _insert(q, q.enqueue(kind, values, **options), wait, as_json=as_json)
    q = find_queue(loaded)
    check_kind(q, kind, f"{loaded.config.app}", " (--unchecked inserts it all the same)")
    with reached(q):
        return _insert(q, q.enqueue(kind, values, **options), wait, as_json=as_json)


def check_kind(q: PgQueue, kind: str, app: str, remedy: str = "") -> None:
    """Raise ConfigError if the application has no task of that kind."""
    if kind not in q.tasks:
        raise ConfigError(f"{app} has no task {kind!r}{nearest(kind, q.tasks.kinds())}{remedy}")


def _insert(q: PgQueue, job: EnqueuedJob, wait: timedelta | None, *, as_json: bool) -> int | None:
    if not job.inserted:
        say(f"nothing inserted: job {job.id} has the same unique key and is not final")
    if wait is None:
        print_json(job) if as_json else click.echo(job.id)
        return None
    return _tell_end(q.wait(job.id, wait.total_seconds()), as_json=as_json)


def _tell_end(job: Job, *, as_json: bool) -> int:
    if as_json:
        print_json(job)
    elif job.state is State.COMPLETED:
        click.echo(json.dumps(job.result, ensure_ascii=False))
    else:
        last = f": {job.errors[-1].get('message')}" if job.errors else ""
        say(f"job {job.id} is {job.state}{last}; see `pgqueue jobs show {job.id}`")
    return 0 if job.state is State.COMPLETED else 1


def read_text(given: str) -> str:
    """JSON from the command line itself, from standard input (`-`) or from a file (`@path`)."""
    try:
        if given == "-":
            return sys.stdin.read()
        if given.startswith("@"):
            return Path(given[1:]).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{given}: not UTF-8 text") from error
    except OSError as error:
        raise ConfigError(f"can't read {given[1:]!r}: {error.strerror}") from error
    return given


def read_object(subject: str, text: str) -> dict[str, object]:
    """The object that JSON text says.

    raises  InvalidJob if it says none
    """
    value: dict[str, object] = json.loads(check_object_text(subject, text))
    return value
