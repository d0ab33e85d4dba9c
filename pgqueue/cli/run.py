"""`pgqueue run`: runs one job here and now, without a server, and goes on with it the next time."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import fields
from pathlib import Path

import click

from pgqueue.cli.application import find_queue
from pgqueue.cli.enqueue import check_kind, read_object, read_text
from pgqueue.cli.logs import begin_logging
from pgqueue.cli.options import configured, json_option
from pgqueue.cli.output import print_json, say
from pgqueue.cli.worker import leave_threads_behind
from pgqueue.config import Loaded
from pgqueue.core.states import State
from pgqueue.db.connect import connect
from pgqueue.errors import ConfigError
from pgqueue.local import LocalJob, has_left_any
from pgqueue.state_file import StateFile


@click.command()
@click.argument("kind")
@click.argument("args", metavar="[JSON]", default="{}")
@click.option("--local", is_flag=True, help="Without a server: its checkpoint is kept in a file.")
@click.option("--state", metavar="FILE", help="That file; KIND.state.json in the working directory unless given.")
@click.option("--restart", is_flag=True, help="Forget what an earlier run has reached.")
@json_option
@configured("app", "dsn", "schema", "pooled", "log_level")
def run(
    loaded: Loaded, kind: str, args: str, *, local: bool, state: str | None, restart: bool, as_json: bool
) -> int | None:
    """Run one attempt of a job of KIND here and now, with the arguments in JSON, an object; prints its result.

    \b
    pgqueue run backup '{"schema": "shop"}' -A examples.backup:q --local --state backup.json

    What its steps reach is kept in the file. If the job fails, or is interrupted by Ctrl-C, a time-out, or the loss of
    power, the same command goes on where it stopped. A job that was completed is run anew. A database is asked only if
    the job asks it. ctx.mode is "local", and ctx.http reads and writes file:// URLs.
    """
    if not local:
        raise ConfigError(f"say --local to run it here; to have a worker run it: pgqueue enqueue {kind} --wait 60s")
    begin_logging(loaded.config.log_level, as_json=False)
    values = read_object("JSON", read_text(args))
    q = find_queue(loaded)
    check_kind(q, kind, f"{loaded.config.app}")
    path = Path(state or f"{re.sub(r'[^A-Za-z0-9_.-]', '-', kind)}.state.json")
    if StateFile(path).note.exists():  # its database will be asked, and the pool would try for half a minute
        connect(q.dsn, role="command line", pooled=q.pooled).close()
    try:
        job = q.run_local(kind, values, state=path, restart=restart)
    finally:
        q.close()
    status = _tell(job, as_json=as_json)
    leave_threads_behind(status)
    if has_left_any():  # the interpreter would complain about its coroutine
        sys.stdout.flush()
        os._exit(status)
    return status


def _tell(job: LocalJob, *, as_json: bool) -> int:
    if as_json:
        print_json({field.name: getattr(job, field.name) for field in fields(job)} | {"path": str(job.path)})
    elif job.state is State.COMPLETED:
        click.echo(json.dumps(job.result, ensure_ascii=False))
    if job.state is State.COMPLETED:
        return 0
    again = f"the same command goes on from {job.path.name}"
    match job.state:
        case State.SCHEDULED:
            say(f"{job.kind} wants to go on in {job.delay:g} s: {again}")
        case State.AVAILABLE:
            how = f" ({job.error['message']})" if job.error else ""
            say(f"{job.kind} was interrupted{how}: {again}")
        case _:
            error = job.error or {}
            say(f"{job.kind} is {job.state}: {error.get('type')}: {error.get('message')}")
            if error.get("traceback"):
                click.echo(str(error["traceback"]).rstrip(), err=True)
            say(again)
    return 1
