"""What the demo prints: lines, and below them one that changes while it works.

Guarantees: the changing line exists on a terminal only; elsewhere it becomes an ordinary line every two seconds.
"""

from __future__ import annotations

import shutil
import sys
import time

import click

from pgqueue.cli.output import cut, style

EVERY = 2.0  # seconds between lines where there is no terminal
WIDE = 96


class Screen:
    """Standard output."""

    def __init__(self) -> None:
        self._lively = sys.stdout.isatty()
        self._shown = False
        self._last = time.monotonic()

    def line(self, text: str = "") -> None:
        """Print a line, above the changing one."""
        self.clear()
        click.echo(text)

    def note(self, text: str) -> None:
        """Print a line about something unforeseen."""
        self.line(f"  {style('!', fg='yellow')} {text}")

    def fact(self, name: str, text: str) -> None:
        """Print a name and what there is to say about it."""
        self.line(f"  {style(name.ljust(10), bold=True)}{text}")

    def change(self, done: int, total: int, text: str) -> None:
        """Show how far it is; `text` says more."""
        if self._lively:
            columns = shutil.get_terminal_size().columns
            bar = 24 if columns >= WIDE else 10
            click.echo(f"\r  {_bar(done, total, bar)}  {cut(text, columns - bar - 5)}\x1b[K", nl=False)
            self._shown = True
        elif time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            click.echo(f"  {text}")
        sys.stdout.flush()

    def clear(self) -> None:
        """Take the changing line away."""
        if self._shown:
            click.echo("\r\x1b[K", nl=False)
            self._shown = False


def _bar(done: int, total: int, size: int) -> str:
    full = size * min(done, total) // max(total, 1)
    return style("━" * full, fg="green") + style("━" * (size - full), fg="bright_black")
