"""`pgqueue jobs cancel|stop|retry|delete|reschedule|priority`: what is done to jobs, by id or by filter.

Status 0: something was done, or no job fits the filters. Status 1: a job does not exist, or nothing could be done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import click

from pgqueue import PgQueue
from pgqueue.cli.filters import filtered, in_words, taken
from pgqueue.cli.options import DATABASE, DURATION, INSTANT, JOB_ID, Decorator, configured, json_option, opened
from pgqueue.cli.output import is_terminal, print_json, say
from pgqueue.config import Loaded
from pgqueue.errors import ConfigError
from pgqueue.selection import FilterOptions, Selection

COUNTED = 1000
_WITHOUT_EFFECT = ("already ", "not found", "blocked ")

_ids: Decorator = click.argument("ids", nargs=-1, type=JOB_ID, metavar="[ID]...")
_yes: Decorator = click.option("--yes", is_flag=True, help="Don't ask before doing it to all that fit the filters.")
_reason: Decorator = click.option("--reason", metavar="TEXT", help="Kept with the job.")


@click.command()
@_ids
@filtered
@_reason
@_yes
@json_option
@configured(*DATABASE)
def cancel(loaded: Loaded, ids: Sequence[int], *, reason: str | None, **given: object) -> int:
    """End jobs: those that wait now, those that run are asked to.

    \b
    pgqueue jobs cancel 42 43 --reason "wrong address"
    pgqueue jobs cancel --queue import --state available
    """
    return _do(
        "cancel", loaded, ids, given, lambda q, id: q.cancel(id, reason=reason), lambda s: s.cancel(reason=reason)
    )


@click.command()
@_ids
@filtered
@_reason
@_yes
@json_option
@configured(*DATABASE)
def stop(loaded: Loaded, ids: Sequence[int], *, reason: str | None, **given: object) -> int:
    """Park jobs, to be resumed by `retry` where they were.

    \b
    pgqueue jobs stop 42
    pgqueue jobs stop --kind import_orders --state running
    """
    return _do("stop", loaded, ids, given, lambda q, id: q.stop(id, reason=reason), lambda s: s.stop(reason=reason))


@click.command()
@_ids
@filtered
@click.option("--restart", is_flag=True, help="From the start, not from where it stopped.")
@_yes
@json_option
@configured(*DATABASE)
def retry(loaded: Loaded, ids: Sequence[int], *, restart: bool, **given: object) -> int:
    """Let jobs run now: once more, or without waiting.

    \b
    pgqueue jobs retry 42
    pgqueue jobs retry --kind send_welcome --state discarded --since 1d
    """
    return _do(
        "retry", loaded, ids, given, lambda q, id: q.retry(id, restart=restart), lambda s: s.retry(restart=restart)
    )


@click.command()
@_ids
@filtered
@_yes
@json_option
@configured(*DATABASE)
def delete(loaded: Loaded, ids: Sequence[int], **given: object) -> int:
    """Remove jobs that don't run, with their history.

    \b
    pgqueue jobs delete 42
    pgqueue jobs delete --state discarded --until 30d
    """
    return _do("delete", loaded, ids, given, lambda q, id: q.delete(id), lambda s: s.delete())


@click.command()
@_ids
@filtered
@click.option("--delay", type=DURATION, help="That long from now: 30s, 2h, 1d.")
@click.option("--at", type=INSTANT, help="At that time: 2026-01-31T12:00; local time unless it names a zone.")
@_yes
@json_option
@configured(*DATABASE)
def reschedule(
    loaded: Loaded, ids: Sequence[int], *, delay: timedelta | None, at: datetime | None, **given: object
) -> int:
    """Let jobs that wait run at another time.

    \b
    pgqueue jobs reschedule 42 --delay 2h
    pgqueue jobs reschedule --kind report --state scheduled --at 2026-01-31T06:00
    """
    if (delay is None) is (at is None):
        raise click.UsageError("say when: either --delay or --at")
    return _do(
        "reschedule", loaded, ids, given,
        lambda q, id: q.reschedule(id, delay=delay, at=at), lambda s: s.reschedule(delay=delay, at=at),
    )  # fmt: skip


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("id", type=JOB_ID)
@click.argument("priority", type=int)
@json_option
@configured(*DATABASE)
def priority(loaded: Loaded, id: int, priority: int, *, as_json: bool) -> int:
    """Give a job that waits another priority; higher runs first.

    \b
    pgqueue jobs priority 42 100
    """
    with opened(loaded) as q:
        return _tell({id: q.set_priority(id, priority)}, as_json=as_json)


COMMANDS = (cancel, stop, retry, delete, reschedule, priority)


def _do(
    name: str,
    loaded: Loaded,
    ids: Sequence[int],
    given: dict[str, object],
    one: Callable[[PgQueue, int], str],
    all: Callable[[Selection], Mapping[str, int]],
) -> int:
    """Do it to the jobs named by id, or to those that fit the filters."""
    filter, as_json, yes = taken(given), bool(given["as_json"]), bool(given["yes"])
    if bool(ids) is bool(filter):
        raise click.UsageError("name jobs by id, or with filters such as --kind and --state; not both")
    with opened(loaded) as q:
        if ids:
            return _tell({id: one(q, id) for id in ids}, as_json=as_json)
        if not yes and not _confirmed(name, q, filter):
            return 1
        return _tell_counts(all(q.where(**filter)), as_json=as_json)


def _confirmed(name: str, q: PgQueue, filter: FilterOptions) -> bool:
    """Ask whoever sits at the terminal; a script has to say --yes."""
    if not is_terminal():
        raise ConfigError(f"this would {name} all jobs with {in_words(filter)}: add --yes if that is what you want")
    found = len(q.jobs(limit=COUNTED, **filter))
    if not found:
        return True
    how_many = f"{found} jobs or more" if found == COUNTED else "1 job" if found == 1 else f"{found} jobs"
    return click.confirm(f"{name} {how_many} with {in_words(filter)}?", err=True)


def _tell(answers: Mapping[int, str], *, as_json: bool) -> int:
    for id, answer in answers.items():
        print_json({"id": id, "answer": answer}) if as_json else click.echo(f"{id}  {answer}")
    unknown = any(answer == "not found" for answer in answers.values())
    return 1 if unknown or not _effective(answers.values()) else 0


def _tell_counts(counts: Mapping[str, int], *, as_json: bool) -> int:
    if as_json:
        print_json({"answers": dict(counts)})
    elif not counts:
        say("no jobs fit")
    for answer, count in () if as_json else sorted(counts.items()):
        click.echo(f"{count}  {answer}")
    return 1 if counts and not _effective(counts) else 0


def _effective(answers: Iterable[str]) -> bool:
    return any(not answer.startswith(_WITHOUT_EFFECT) for answer in answers)
