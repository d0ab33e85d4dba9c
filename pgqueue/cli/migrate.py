"""`pgqueue migrate`: brings the schema to a version, shows the SQL that would, or says whether it is needed."""

from __future__ import annotations

import click

from pgqueue.cli.options import configured, json_option
from pgqueue.cli.output import is_terminal, print_json, say
from pgqueue.config import Loaded
from pgqueue.db import schema as database
from pgqueue.errors import ConfigError


@click.command()
@click.argument("target", default="head")
@click.option("--sql", is_flag=True, help="Print the SQL instead; connects to nothing.")
@click.option("--from", "start", default="base", metavar="VERSION", help="With --sql: the version to start from.")
@click.option("--check", is_flag=True, help="Change nothing; status 1 if the schema is not current.")
@click.option("--yes", is_flag=True, help="Go down even though that deletes data.")
@json_option
@configured("dsn", "direct_dsn", "pooled", "schema")
def migrate(loaded: Loaded, target: str, *, sql: bool, start: str, check: bool, yes: bool, as_json: bool) -> int | None:
    """Create the schema, or bring it to TARGET: head (the default), base (remove everything) or a version.

    \b
    pgqueue migrate                         create or upgrade
    pgqueue migrate --check                 in a deployment: is it needed?
    pgqueue migrate --sql > schema.sql      for those who run SQL themselves
    pgqueue migrate base --yes              remove the schema with all its jobs

    Safe to run from many places at once and while the application works. Behind PgBouncer give it --direct-dsn.
    """
    name = loaded.config.schema
    if sql:
        click.echo(database.migration_sql(name, target, start=start), nl=False)
        return None
    config = loaded.config
    # To look takes no session, so it may go through the pooler.
    dsn = database.direct_dsn(config.dsn, config.direct_dsn, pooled=config.pooled and not check)
    status = database.check(dsn, name)
    if check:
        return _report(status, name, as_json=as_json)
    if _goes_down(status.current, target) and not yes:
        _ask(name, status.current or "", target)
    reached = database.migrate(dsn, schema=name, target=target, on_step=say)
    if as_json:
        print_json({"schema": name, "from": status.current, "version": reached})
    elif reached == status.current:
        click.echo(f"schema {name} is at {_version(reached)} already")
    else:
        click.echo(f"schema {name}: {_version(status.current)} -> {_version(reached)}")
    return None


def _report(status: database.SchemaStatus, name: str, *, as_json: bool) -> int:
    if as_json:
        print_json({"schema": name, "version": status.current, "head": status.head, "current": status.is_current})
    elif status.is_current:
        click.echo(f"schema {name} is at {status.head}, which is current")
    else:
        newer = status.current is not None and status.current > status.head
        remedy = "`pip install --upgrade pgqueue-jobs`" if newer else "`pgqueue migrate`"
        click.echo(f"schema {name} is at {_version(status.current)}, this release brings {status.head}: run {remedy}")
    return 0 if status.is_current else 1


def _goes_down(current: str | None, target: str) -> bool:
    return current is not None and target != "head" and (target == "base" or target < current)


def _ask(name: str, current: str, target: str) -> None:
    what = f"schema {name}: going from {current} down to {target} deletes " + (
        "it with all jobs" if target == "base" else "what later versions added"
    )
    if not is_terminal():
        raise ConfigError(f"{what}; add --yes if that is what you want")
    if not click.confirm(f"{what}. Go on?", err=True):
        raise click.Abort


def _version(version: str | None) -> str:
    return version or "nothing"
