"""What people and scripts see: aligned tables, JSON, times in words.

Guarantees: a table fits the terminal (a pipe gets every character); colour only on a terminal, and not with NO_COLOR;
text from the database can't control the terminal; JSON has one document per line, instants as ISO text, durations in
seconds.
"""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import click
import msgspec

COLOURS = {
    "running": "cyan", "active": "green", "completed": "green", "retryable": "yellow", "silent": "red",
    "discarded": "red", "cancelled": "bright_black", "stopped": "magenta", "paused": "yellow",
}  # fmt: skip
GAP = "  "
LEAST = 16  # columns that a text which is cut keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table.

    right     numbers stand at the right
    shrinks   is cut when the line is too long for the terminal
    optional  is left out if no row has anything to say there ("" or "0"), or if there is no room; the last one first
    """

    title: str
    right: bool = False
    shrinks: bool = False
    optional: bool = False
    paint: Callable[[str], str | None] = lambda text: None


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under their titles."""
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max([width(column.title), *(width(row[index]) for row in cells)]) for index, column in enumerate(columns)]
    shown = _fit(columns, cells, widths)
    click.echo(_line([(columns[index], columns[index].title, widths[index]) for index in shown], title=True))
    for row in cells:
        click.echo(_line([(columns[index], row[index], widths[index]) for index in shown], title=False))


def _fit(columns: Sequence[Column], cells: Sequence[Sequence[str]], widths: list[int]) -> list[int]:
    """Which columns to show; makes those narrower that can be, as far as the terminal demands."""
    shown = [
        index
        for index, column in enumerate(columns)
        if not column.optional or any(row[index] not in ("", "0") for row in cells)
    ]
    room = terminal_width()
    if room is None:
        return shown
    least = [min(wide, LEAST) if column.shrinks else wide for column, wide in zip(columns, widths, strict=True)]
    for index in reversed(shown):
        if columns[index].optional and _length(shown, least) > room:
            shown = [each for each in shown if each != index]
    for index in shown:
        if columns[index].shrinks:
            too_long = max(0, _length(shown, widths) - room)
            widths[index] = max(least[index], widths[index] - too_long)
    return shown


def _length(shown: Sequence[int], widths: Sequence[int]) -> int:
    return sum(widths[index] + len(GAP) for index in shown) - len(GAP)


def _line(parts: Sequence[tuple[Column, str, int]], *, title: bool) -> str:
    words = []
    for column, cell, wide in parts:
        text = cut(cell, wide) if column.shrinks else cell
        space = " " * max(0, wide - width(text))
        text = style(text, bold=True) if title else style(text, fg=column.paint(text))
        words.append(space + text if column.right else text + space)
    return GAP.join(words).rstrip()


def style(text: str, *, fg: str | None = None, bold: bool = False) -> str:
    """`text` with a colour, if colours are wanted where it is going."""
    if not (fg or bold) or not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return click.style(text, fg=fg, bold=bold or None)


def paint_state(text: str) -> str | None:
    """The colour of a state."""
    return COLOURS.get(text)


def terminal_width() -> int | None:
    """Columns of the terminal; None if the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def is_terminal() -> bool:
    """Is there somebody whom one could ask?"""
    return sys.stdin.isatty()


def plain(text: str) -> str:
    """`text` on one line, with what could control a terminal written out."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else " " if each in "\n\t" else ascii(each)[1:-1] for each in text)


def width(text: str) -> int:
    """Columns that `text` takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text
    )


def cut(text: str, room: int) -> str:
    """`text` in at most `room` columns."""
    if width(text) <= room:
        return text
    taken, used = [], 1
    for each in text:
        used += width(each)
        if used > room:
            break
        taken.append(each)
    return f"{''.join(taken)}…"


def print_json(value: object) -> None:
    """One line of JSON: of a dataclass or of built-in values."""
    click.echo(json_text(value))


def json_text(value: object) -> str:
    """JSON of a value on one line."""
    tree = msgspec.to_builtins(value, builtin_types=(timedelta,))
    if isinstance(tree, dict):
        tree = {key: each.total_seconds() if isinstance(each, timedelta) else each for key, each in tree.items()}
    return msgspec.json.encode(tree).decode()


def say(text: str) -> None:
    """A line about what happens, for people: on stderr, so that it is in no script's way."""
    click.echo(plain(text), err=True)


def local(moment: datetime) -> str:
    """A time as the clock on the wall shows it, to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def ago(moment: datetime | None) -> str:
    """How long before now, or `in 5m` after it; empty for None."""
    if moment is None:
        return ""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    return f"in {span(-seconds)}" if seconds <= -0.5 else span(max(0.0, seconds))


def span(seconds: float) -> str:
    """A length of time in its two or three leading figures: 45ms, 2.5s, 12s, 5m, 3h, 12d."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms" if seconds >= 0.001 else f"{seconds * 1_000_000:.0f}us" if seconds else "0s"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    for limit, size, unit in ((99.5, 1, "s"), (5970, 60, "m"), (171000, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"


def fields(pairs: Mapping[str, str]) -> None:
    """Print names with their values, those that have one."""
    said = {name: value for name, value in pairs.items() if value}
    wide = max(map(len, said), default=0)
    for name, value in said.items():
        click.echo(f"  {name.ljust(wide)}  {plain(value)}")
