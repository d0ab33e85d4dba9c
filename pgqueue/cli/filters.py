"""Which jobs: the same filters for `jobs list` and for the verbs on many jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import click

from pgqueue.cli.options import MOMENT, Decorator
from pgqueue.core.states import State
from pgqueue.selection import FilterOptions

_FILTERS = (
    click.option("--state", type=click.Choice([state.value for state in State]), help="In that state."),
    click.option("--kind", metavar="NAME", help="Of that kind."),
    click.option("--queue", metavar="NAME", help="In that queue."),
    click.option("--tenant", metavar="TEXT", help="Of that tenant."),
    click.option("--tag", metavar="TEXT", help="With that label."),
    click.option("--since", type=MOMENT, help="Enqueued since then: 2h, 1d, 2026-01-31T12:00."),
    click.option("--until", type=MOMENT, help="Enqueued before then."),
)
NAMES = tuple(FilterOptions.__annotations__)


def filtered(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Give a command the filters as options."""
    decorators: tuple[Decorator, ...] = _FILTERS
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def taken(given: dict[str, object]) -> FilterOptions:
    """The filters among a command's arguments, those that were given; they are taken out."""
    found = {name: given.pop(name) for name in NAMES}
    return cast(FilterOptions, {name: value for name, value in found.items() if value is not None})


def in_words(filter: FilterOptions) -> str:
    """`state discarded, kind mail`, for messages."""
    return ", ".join(f"{name} {value}" for name, value in filter.items())
