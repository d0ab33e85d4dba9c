"""`pgqueue queues`, `pgqueue workers`, `pgqueue stats`: what is going on."""

from __future__ import annotations

import click

from pgqueue.cli.options import DATABASE, configured, json_option, opened
from pgqueue.cli.output import Column, ago, paint_state, print_json, say, table
from pgqueue.config import Loaded
from pgqueue.tasks.door import nearest


@click.group()
def queues() -> None:
    """List, pause and resume queues.

    \b
    pgqueue queues list
    pgqueue queues pause mail
    """


@queues.command("list")
@json_option
@configured(*DATABASE)
def list_(loaded: Loaded, *, as_json: bool) -> None:
    """List the queues with their counts; OLDEST is how long the next job has waited.

    Columns with nothing but zeros are left out, and those for which the terminal has no room. With --json every line is
    one queue, with everything.

    \b
    pgqueue queues list
    """
    with opened(loaded) as q:
        found = q.queues()
    if as_json:
        for queue in found:
            print_json(queue)
    elif not found:
        say("there are no queues yet: a queue appears with its first job")
    else:
        table(
            _QUEUE_COLUMNS,
            [
                (
                    queue.queue, "paused" if queue.paused else "", str(queue.available),
                    ago(queue.oldest_available_at), str(queue.running), str(queue.scheduled), str(queue.retryable),
                    str(queue.pending), str(queue.discarded), str(queue.completed), str(queue.stopped),
                    str(queue.cancelled),
                )
                for queue in found
            ],
        )  # fmt: skip


@queues.command()
@click.argument("name")
@json_option
@configured(*DATABASE)
def pause(loaded: Loaded, name: str, *, as_json: bool) -> None:
    """Let workers take nothing from a queue; running jobs go on.

    \b
    pgqueue queues pause mail
    """
    with opened(loaded) as q:
        known = [each.queue for each in q.queues()]
        changed = q.pause(name)
    if as_json:
        print_json({"queue": name, "paused": True, "changed": changed})
        return
    click.echo(f"{name} is paused" if changed else f"{name} was paused already")
    if changed and name not in known:
        say(f"queue {name!r} is new, no job was in it yet{nearest(name, known)}")


@queues.command()
@click.argument("name")
@json_option
@configured(*DATABASE)
def resume(loaded: Loaded, name: str, *, as_json: bool) -> None:
    """Let workers take from a queue again.

    \b
    pgqueue queues resume mail
    """
    with opened(loaded) as q:
        changed = q.resume(name)
    if as_json:
        print_json({"queue": name, "paused": False, "changed": changed})
    else:
        click.echo(f"{name} is resumed" if changed else f"{name} was not paused")


@click.command()
@click.option("--all", "everybody", is_flag=True, help="Those too that stopped in the last day.")
@json_option
@configured(*DATABASE)
def workers(loaded: Loaded, *, everybody: bool, as_json: bool) -> None:
    """List the workers: active ones, and silent ones whose heartbeat is overdue.

    \b
    pgqueue workers
    pgqueue workers --all --json
    """
    with opened(loaded) as q:
        found = [each for each in q.workers() if everybody or each.state != "stopped"]
    if as_json:
        for worker in found:
            print_json(worker)
    elif not found:
        say("no worker is running: start one with `pgqueue worker -A module:name`")
    else:
        table(
            _WORKER_COLUMNS,
            [
                (
                    str(each.id), each.name, each.state, str(each.running), ago(each.seen_at), ago(each.started_at),
                    each.version, ",".join(f"{name}={count}" for name, count in each.queues.items()),
                )
                for each in found
            ],
        )  # fmt: skip


@click.command()
@json_option
@configured(*DATABASE)
def stats(loaded: Loaded, *, as_json: bool) -> None:
    """Count what waits and runs now, over all queues, and the outcomes so far.

    Final states count outcomes since the beginning: a job that was retried again with each, one that was deleted still.

    \b
    pgqueue stats --json
    """
    with opened(loaded) as q:
        counts = q.stats()
    if as_json:
        print_json(counts)
    else:
        table(_STATE_COLUMNS, [(state, str(count)) for state, count in counts.items()])


_STATE_COLUMNS = (Column(title="STATE", paint=paint_state), Column(title="JOBS", right=True))
_WORKER_COLUMNS = (
    Column(title="ID", right=True),
    Column(title="NAME"),
    Column(title="STATE", paint=paint_state),
    Column(title="RUNNING", right=True),
    Column(title="SEEN", right=True),
    Column(title="STARTED", right=True),
    Column(title="VERSION"),
    Column(title="QUEUES", shrinks=True),
)
_QUEUE_COLUMNS = (
    Column(title="QUEUE", shrinks=True),
    Column(title="PAUSED", optional=True, paint=paint_state),
    Column(title="AVAILABLE", right=True),
    Column(title="OLDEST", right=True, optional=True),
    Column(title="RUNNING", right=True),
    *(
        Column(title=state, right=True, optional=True)
        for state in ("SCHEDULED", "RETRYABLE", "PENDING", "DISCARDED", "COMPLETED", "STOPPED", "CANCELLED")
    ),
)
