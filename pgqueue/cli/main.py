"""`pgqueue`: finds the command, runs it, and turns what goes wrong into one line and an exit status.

Guarantees: `--help` imports no command; a user's mistake is one line on stderr that says what to do, never a traceback;
status 0 it succeeded, 1 it did not, 2 the command line or the configuration is wrong (130 after Ctrl-C).
Never: hides a defect of pgqueue itself: an error that nobody foresaw keeps its traceback.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

# Name -> where it is and what `pgqueue --help` says. A module that does not exist is a command that does not exist.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "demo": ("pgqueue.cli.demo:demo", "Try everything: a database, workers and jobs of its own."),
    "dev": ("pgqueue.cli.dev:dev", "Start a PostgreSQL for development and print its DSN."),
    "migrate": ("pgqueue.cli.migrate:migrate", "Create or upgrade the schema in the database."),
    "worker": ("pgqueue.cli.worker:worker", "Run jobs until stopped."),
    "run": ("pgqueue.cli.run:run", "Run a job here and now, without a server."),
    "enqueue": ("pgqueue.cli.enqueue:enqueue", "Insert a job."),
    "jobs": ("pgqueue.cli.jobs:jobs", "List, show, cancel, stop, retry and delete jobs."),
    "queues": ("pgqueue.cli.queues:queues", "List, pause and resume queues."),
    "workers": ("pgqueue.cli.queues:workers", "List the workers."),
    "stats": ("pgqueue.cli.queues:stats", "Count what waits and runs now, and the outcomes so far."),
    "bench": ("pgqueue.cli.bench:bench", "Measure the queue on your own database."),
    "config": ("pgqueue.cli.settings:config", "Show the settings and where they come from."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, (place, _) in COMMANDS.items() if importlib.util.find_spec(place.partition(":")[0])]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            from pgqueue.tasks.door import nearest

            ctx.fail(f"no command is called {args[0]!r}{nearest(args[0], known)}")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run the command line and exit."""
        extra |= {"standalone_mode": False, "prog_name": "pgqueue"}
        try:
            answer = super().main(args=None if args is None else list(args), **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except Exception as error:
            from pgqueue.cli.failures import explain  # it knows all that can fail: 0.3 s

            told = explain(error)
            if told is None:
                raise
            line, status = told
            if line:
                click.echo(f"pgqueue: {line}", err=True)
            sys.exit(status)
        sys.exit(answer if isinstance(answer, int) else 0)


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from pgqueue import __version__

        click.echo(f"pgqueue {__version__}")
        ctx.exit()


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show it.")
def cli() -> None:
    """Background jobs in PostgreSQL.

    \b
    pgqueue dev                         a PostgreSQL to try things on
    pgqueue migrate                     create the schema
    pgqueue worker -A app:q -q mail=20  run jobs
    pgqueue jobs list --state discarded

    Where the database is: --dsn, PGQUEUE_DSN, DATABASE_URL, `dsn` in pgqueue.yaml, or libpq's PG* variables.
    """


def main() -> NoReturn:
    """The program."""
    cli.main()
    raise AssertionError("unreachable")
