"""`pgqueue config`: what the settings are, and who said so."""

from __future__ import annotations

import click

from pgqueue.cli.options import configured, json_option
from pgqueue.cli.output import Column, print_json, table
from pgqueue.config import PREFIX, SECRETS, SETTINGS, Loaded, describe_setting, shown


@click.group()
def config() -> None:
    """Show the settings and where they come from.

    A flag wins over the environment, that over pgqueue.yaml in the working directory (or --config, PGQUEUE_CONFIG),
    that over the default. An unknown name in the file, or an unknown variable PGQUEUE_..., is an error.

    \b
    pgqueue config show
    pgqueue config keys
    """


@config.command()
@json_option
@configured(*SETTINGS)
def show(loaded: Loaded, *, as_json: bool) -> None:
    """Show every setting's value and where it was said; passwords are left out. Status 2 if something is wrong.

    \b
    pgqueue config show
    pgqueue config show --config production.yaml --json
    """
    rows = [(name, shown(name, getattr(loaded.config, name)), loaded.origin(name)) for name in SETTINGS]
    if as_json:
        print_json({name: {"value": value, "origin": origin} for name, value, origin in rows})
    else:
        table(
            (Column(title="SETTING"), Column(title="VALUE", shrinks=True), Column(title="FROM")),
            rows,
        )


@config.command()
@json_option
def keys(*, as_json: bool) -> None:
    """List the settings: keys of pgqueue.yaml, and their variables.

    \b
    pgqueue config keys
    """
    rows = []
    for name in SETTINGS:
        variable = f"{PREFIX}{name.upper()}"
        rows.append((name, f"{variable}[_FILE]" if name in SECRETS else variable, describe_setting(name)))
    if as_json:
        print_json([{"key": key, "variable": variable, "meaning": meaning} for key, variable, meaning in rows])
    else:
        table((Column(title="KEY"), Column(title="VARIABLE"), Column(title="MEANING", shrinks=True)), rows)
