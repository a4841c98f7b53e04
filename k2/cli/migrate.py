"""`k2 migrate`: records of an earlier version into today's log."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from k2.cli.load import with_topic
from k2.cli.signals import stop_on_signals
from k2.log import configure_quietly
from k2.settings import Settings, load_settings
from k2.topics import ASSET_CLASSES, MarketTopic


@click.group()
def migrate() -> None:
    """Bring records of an earlier version into today's log."""


@migrate.command(short_help="A topic or table of V1 records into the V2 log of record.")
@click.argument("kind", type=click.Choice(["trades", "quotes"]))
@click.argument("source")
@click.option("--table", is_flag=True, help="SOURCE is an Iceberg table: NAMESPACE.TABLE.")
@click.option("--catalog", help="Its catalog as PyIceberg is told of it; default: K2's own.")
@click.option(
    "--asset-class", default="equities", show_default=True, type=click.Choice(ASSET_CLASSES)
)
@click.option("--exchange", default="ASX", show_default=True, help="Whose records they are.")
@click.option("--currency", default="AUD", show_default=True, help="V1 names none.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="As K2_DATA_DIR.")
@click.option("--follow", is_flag=True, help="Go on with what is written meanwhile, until Ctrl-C.")
@click.option("--dry-run", is_flag=True, help="Read and count, and bring nothing.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
def v1(
    kind: str,
    source: str,
    table: bool,
    catalog: str | None,
    asset_class: str,
    exchange: str,
    currency: str,
    data_dir: Path | None,
    follow: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Bring the trades or quotes of the V1 topic SOURCE into the log of record of an exchange.

    Who writes V1 may go on: run it again (or with --follow) until the writers have moved. A record
    is known by the place it was read from, so none is brought twice. Ends with status 1 when a
    record was none. With --table SOURCE is a table, whose rows are known by file and row.
    """
    if (follow and table) or (catalog is not None and not table):
        raise click.UsageError("--follow is of topics, --catalog of tables")
    if data_dir is not None:
        os.environ["K2_DATA_DIR"] = str(data_dir.resolve())
    settings = with_topic(load_settings(), asset_class, exchange, reference=False)
    configure_quietly(settings)
    into = MarketTopic(asset_class, kind, exchange.lower())
    report = asyncio.run(
        _run(
            settings,
            source,
            into,
            currency.upper(),
            follow=follow,
            dry_run=dry_run,
            catalog=catalog,
            table=table,
        )
    )
    if settings.embedded and not dry_run:
        report |= _drained(settings, report["sent"])
    if as_json:
        print(json.dumps(report))
    else:
        _print(report, into, dry_run)
    if report["bad"]:
        sys.exit(1)


async def _run(
    settings: Settings,
    source: str,
    into: MarketTopic,
    currency: str,
    *,
    follow: bool,
    dry_run: bool,
    table: bool,
    catalog: str | None,
) -> dict[str, Any]:
    from k2.migrate.run import migrate as bring  # noqa: PLC0415 - the help needs none of it
    from k2.migrate.table import migrate_table  # noqa: PLC0415
    from k2.migrate.v1 import Target  # noqa: PLC0415

    stop = asyncio.Event()
    stop_on_signals(stop)
    target = Target(into.data_type, into.exchange.upper(), into.asset_class, currency)
    if table:
        made = await migrate_table(
            settings, source, catalog, into, target, dry_run=dry_run, stop=stop
        )
    else:
        made = await bring(
            settings, source, into, target, dry_run=dry_run, stop=stop, follow=follow
        )
    return {
        "records": made.records,
        "sent": made.sent,
        "before": made.before,
        "bad": made.bad,
        "bad_records": [[row.offset, row.detail] for row in made.examples],
        "stopped": stop.is_set(),
    }


def _drained(settings: Settings, sent: int) -> dict[str, Any]:
    from k2.tapes.run import drain  # noqa: PLC0415

    stored = asyncio.run(drain(settings, sent, Console(stderr=True)))
    return {"stored": stored["rows"], "duplicates": stored["duplicates"]}


def _print(report: dict[str, Any], into: MarketTopic, dry_run: bool) -> None:
    done = "would bring" if dry_run else "brought"
    before = f"; {report['before']:,} were brought before" if report["before"] else ""
    click.echo(f"{done} {report['sent']:,} of {report['records']:,} records to {into.log}{before}")
    for offset, detail in report["bad_records"]:
        click.echo(f"  record {offset}: {detail}")
    if "stored" in report:
        click.echo(f"stored {report['stored']:,} rows; {report['duplicates']:,} were there before")
