"""The `k2` command. Sub-commands are loaded when they are called, so that each starts fast."""

from __future__ import annotations

import importlib
import sys

import click

from k2 import __version__
from k2.errors import K2Error

#: name -> (module:attribute, what it does)
_COMMANDS = {
    "bench": ("k2.cli.bench:bench", "Measure transport, sink and pipeline on a real Kafka"),
    "config": ("k2.cli.config:config", "Print the effective settings and their origin"),
    "demo": ("k2.cli.demo:demo", "Run everything on this machine, from feed to SQL"),
    "docs": ("k2.cli.docs:docs", "Write the reference pages that come from the code"),
    "exchange": ("k2.cli.exchange:exchange", "Run the exchange server: recorded or simulated"),
    "up": ("k2.cli.up:up", "Run one worker with everything it needs"),
}


class LazyGroup(click.Group):
    """A group whose members live in modules that are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(_COMMANDS.items())])

    def invoke(self, ctx: click.Context) -> object:
        """Run the sub-command; an error K2 raised on purpose is a message, not a traceback."""
        try:
            return super().invoke(ctx)
        except K2Error as exc:
            click.echo(f"k2: {exc.message}", err=True)
            sys.exit(1)


@click.command(cls=LazyGroup)
@click.version_option(__version__, prog_name="k2")
def cli() -> None:
    """Market data in over WebSockets, SQL out over HTTP."""
