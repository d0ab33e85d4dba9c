"""`pgqueue demo`: shows the whole of pgqueue on a database of its own, and removes it, or keeps it to look further.

Guarantees: Ctrl-C at any time leaves no process and no directory; a demo that was kept is found and stopped by
`pgqueue demo --stop`, and by the next demo.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType

import click

from pgqueue.cli.output import say, style
from pgqueue.demo.home import Home, is_running, temporary, usual
from pgqueue.demo.postgres import find_binaries
from pgqueue.demo.screen import Screen
from pgqueue.demo.show import Plan, Show, choose_files
from pgqueue.errors import ConfigError

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class _SignalledError(BaseException):
    """A signal asked us to end."""


@click.command()
@click.option("--keep", is_flag=True, help="Leave the server and the workers running at the end.")
@click.option("--stop", is_flag=True, help="Stop and remove the demo that was kept.")
@click.option("--workers", type=click.IntRange(1, 16), default=2, show_default=True, help="Worker processes.")
@click.option("--files", type=click.IntRange(min=1), help="Only so many source files; else all.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    help="Where; else a temporary one, or with --keep the cache.",
)
def demo(*, keep: bool, stop: bool, workers: int, files: int | None, directory: Path | None) -> int:
    """Try everything: a database, workers and jobs of its own.

    Starts a PostgreSQL, makes an application's tables in it, and indexes the source files of Python's standard library:
    each file's row and its jobs commit in one transaction. The history answers questions in SQL. Then a worker is
    killed with kill -9 in the middle of an import, and another goes on where the rows end. At the end all of it is
    removed again. No database of yours is touched.

    \b
    pgqueue demo               less than a minute
    pgqueue demo --keep        and look further yourself
    pgqueue demo --stop        when you have seen enough
    kill -9 a worker, or the server, while it runs: see what happens
    """
    kept = usual() if directory is None else Home(directory)
    if stop:
        return _stop(kept)
    before = {number: signal.signal(number, _interrupt) for number in _SIGNALS}
    try:
        return _demo(kept, keep=keep, workers=workers, files=files, temporary_home=directory is None and not keep)
    except _SignalledError as error:
        over = "\r\x1b[K" if sys.stdout.isatty() else ""  # the terminal has shown ^C there
        click.echo(f"{over}  Interrupted: nothing is left running, the directory is removed.")
        return 128 + int(error.args[0])
    finally:
        for number, action in before.items():
            signal.signal(number, action or signal.SIG_DFL)  # None: not Python's, which can't be put back


def _demo(kept: Home, *, keep: bool, workers: int, files: int | None, temporary_home: bool) -> int:
    find_binaries()  # a missing extra is said before anything is begun
    chosen = choose_files(files)
    _make_room(kept, keep=keep)
    home = temporary() if temporary_home else kept
    home.prepare()
    return _run(Plan(home=home, keep=keep, workers=workers, files=chosen))


def _stop(home: Home) -> int:
    if home.read() is None:
        say(f"there is no demo in {home.directory}")
        return 1
    home.stop()
    home.remove()
    click.echo(f"The demo in {home.directory} is stopped and removed.")
    return 0


def _make_room(home: Home, *, keep: bool) -> None:
    """Take away the demo that was kept, or what a killed one has left.

    raises  ConfigError if it is going on and in the way
    """
    note = home.read()
    if note is None:
        return
    if not note.kept and is_running(note.owner):
        if keep:
            raise ConfigError(
                f"a demo is going on in {home.directory} (process {note.owner}): choose another --directory"
            )
        return
    home.stop()
    home.remove()
    click.echo(f"The demo that was kept in {home.directory} is stopped and removed.\n")


def _run(plan: Plan) -> int:
    screen = Screen()
    show = Show(plan, screen)
    try:
        screen.line(style("pgqueue indexes Python's standard library, with jobs", bold=True) + "\n")
        show.run()
        if plan.keep:
            _look_further(show, plan)
            show.disconnect()
            return 0
    except BaseException:
        _clean_up(show, screen)
        raise
    _clean_up(show, screen)
    screen.line("\nThe workers and the server are stopped, the directory is removed. To look further yourself, run")
    screen.line(f"  {_program()} demo --keep")
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    _ignore_signals()  # nothing interrupts the cleaning up
    raise _SignalledError(number)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _clean_up(show: Show, screen: Screen) -> None:
    _ignore_signals()
    screen.clear()
    show.close()


def _look_further(show: Show, plan: Plan) -> None:
    program, failed = _program(), show.first_failure()
    psql = "psql" if shutil.which("psql") else _quoted(find_binaries()["psql"])
    elsewhere = "" if plan.home.directory == usual().directory else f" --directory {_quoted(plan.home.directory)}"
    lines = [
        f"export PGQUEUE_DSN={_quoted(show.dsn)}",
        f'{psql} "$PGQUEUE_DSN"',
        f"{program} jobs list --state discarded",
        *([f"{program} jobs show {failed}", f"{program} jobs retry {failed}"] if failed else []),
        f"{program} queues list",
        f"{program} workers",
        f"{program} demo --stop{elsewhere}",
    ]
    click.echo()
    click.echo(style("Look further: the server and the workers keep running.", bold=True))
    for line in lines:
        click.echo(f"  {line}")


def _quoted(value: object) -> str:
    return shlex.quote(str(value))


def _program() -> str:
    """How this program is called here."""
    beside = Path(sys.executable).with_name("pgqueue")
    found = shutil.which("pgqueue")
    if found and Path(found).parent == beside.parent:
        return "pgqueue"
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable
    return os.path.relpath(beside) if beside.exists() and python != sys.executable else f"{python} -m pgqueue"
