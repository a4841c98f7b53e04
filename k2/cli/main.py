"""The `k2` command. Sub-commands are loaded when they are called, so that each starts fast."""

from __future__ import annotations

import importlib
import sys

import click

from k2 import __version__
from k2.errors import CaptureError, ConfigError, K2Error

#: name -> (module:attribute, what it does)
_COMMANDS = {
    "backup": ("k2.cli.backup:backup", "Copy the lake's tables elsewhere, only what is new"),
    "bench": (
        "k2.cli.bench:bench",
        "Measure speed, start-up and freshness on this machine",
    ),
    "candles": ("k2.cli.candles:candles", "Check candles against the trades they are made of"),
    "chaos": ("k2.cli.chaos:chaos", "Break a running K2 on purpose and count every record"),
    "config": (
        "k2.cli.config:config",
        "Print the effective settings and where each came from",
    ),
    "correct": (
        "k2.cli.correct:correct",
        "Cancel or replace trades the exchange took back or changed",
    ),
    "degrade": ("k2.cli.degrade:degrade", "Look at the degradation level, or hold one by hand"),
    "demo": ("k2.cli.demo:demo", "Run the whole platform on this machine: market data in, SQL out"),
    "dev": (
        "k2.cli.dev:dev",
        "Kafka, registry, S3, catalog and PostgreSQL without containers",
    ),
    "dlq": ("k2.cli.dlq:dlq", "Look at dead letters, and put them into the log again"),
    "doctor": ("k2.cli.doctor:doctor", "Check a deployment and say what to do"),
    "docs": ("k2.cli.docs:docs", "Write the reference pages that come from the code"),
    "exchange": (
        "k2.cli.exchange:exchange",
        "An exchange to talk to: recorded or simulated, Binance's protocol",
    ),
    "key": ("k2.cli.key:key", "Make an API key: shown once, kept as a hash"),
    "lake": ("k2.cli.lake:lake", "Look after the lake: compact, expire, tag, roll back"),
    "load": ("k2.cli.load:load", "Load recorded tapes (CSV) into the log of record"),
    "migrate": ("k2.cli.migrate:migrate", "Bring records of an earlier version into today's log"),
    "query": ("k2.cli.query:query", "Ask for trades, quotes, candles, gaps, or anything in SQL"),
    "record": ("k2.cli.record:record", "Record an exchange's frames into files, as they came"),
    "replay": ("k2.cli.replay:replay", "Send stored records again in order, at any speed"),
    "restore": ("k2.cli.backup:restore", "Make the lake's tables anew from a backup"),
    "schema": ("k2.cli.schema:schema", "Schemas of records: compare them, let them grow"),
    "tiers": ("k2.cli.tiers:tiers", "Rank symbols by their volume: what is shed first"),
    "soak": ("k2.cli.soak:soak", "Hours of a simulated market with faults: is everything flat?"),
    "topics": ("k2.cli.topics:topics", "The log's topics: list, make, and compare with a cluster"),
    "up": ("k2.cli.up:up", "Run one worker (the same as faust -A k2.app worker -l info)"),
}


#: What `k2 --help` shows together; a command of no section comes last.
_SECTIONS = {
    "Try it": ("demo", "exchange"),
    "Ask it": ("query", "replay"),
    "Run it": ("up", "degrade", "tiers", "doctor", "config", "key", "topics", "dev"),
    "Look after it": (
        "lake",
        "candles",
        "schema",
        "correct",
        "backup",
        "restore",
        "dlq",
        "load",
        "migrate",
        "record",
        "gaps",
        "backfill",
    ),
    "Measure it": ("bench", "chaos", "soak"),
    "Work on K2 itself": ("docs",),
}
#: Ends with the status of a wrong call: what was given has to be changed.
_WRONG_USE = 2


def _sections() -> list[tuple[str, list[str]]]:
    placed = {name for names in _SECTIONS.values() for name in names}
    rest = sorted(set(_COMMANDS) - placed)
    sections = [
        (title, [name for name in names if name in _COMMANDS]) for title, names in _SECTIONS.items()
    ]
    sections = [(title, names) for title, names in sections if names]
    return [*sections, ("More", rest)] if rest else sections


def exit_status(error: K2Error) -> int:
    """2 when a setting or a file is not usable, or a process of ours said so; else 1."""
    wrong = isinstance(error, ConfigError | CaptureError)
    return _WRONG_USE if wrong or error.details.get("status") == _WRONG_USE else 1


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
        """List the commands by section, without importing them."""
        width = max(map(len, _COMMANDS))
        for title, names in _sections():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<{width}}", _COMMANDS[name][1]) for name in names])

    def invoke(self, ctx: click.Context) -> object:
        """Run the sub-command; an error K2 raised on purpose is a message, not a traceback."""
        try:
            return super().invoke(ctx)
        except K2Error as exc:
            click.echo(f"k2: {exc.message}", err=True)
            sys.exit(exit_status(exc))


@click.command(cls=LazyGroup)
@click.version_option(__version__, prog_name="k2")
def cli() -> None:
    """Market data in over WebSockets, SQL out over HTTP.

    New here? `k2 demo` runs everything on this machine. Settings are environment variables
    (`K2_...`); `k2 config` prints them. `k2 COMMAND --help` tells more.
    """
