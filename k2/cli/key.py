"""`k2 key NAME`: a new API key, shown once, and the entry for `K2_API_KEYS`."""

from __future__ import annotations

import click
import orjson

from k2.web.keys import SCOPES, new_key


@click.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    default=("read", "sql"),
    show_default=True,
    help="What it may do; may be given again.",
)
@click.option(
    "--per-minute",
    type=click.IntRange(0, 10_000_000),
    default=6_000,
    show_default=True,
    help="Requests a minute; 0: no limit.",
)
def key(name: str, scopes: tuple[str, ...], per_minute: int) -> None:
    """Make an API key called NAME.

    The key goes to standard error, once; its entry, which holds only a hash, to standard output.
    Put entries as a JSON list into K2_API_KEYS, or into the file K2_API_KEYS_FILE names.
    """
    secret, entry = new_key(name, scopes, per_minute)
    click.echo(f"X-API-Key: {secret}", err=True)
    click.echo(orjson.dumps(entry.entry()).decode())
