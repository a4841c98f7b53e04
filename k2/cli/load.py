"""`k2 load`: recorded tapes (CSV, plain or gzip) into the log of record."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from k2.errors import ConfigError, TapeError
from k2.log import configure_quietly
from k2.settings import Settings, load_settings
from k2.tapes.layouts import names
from k2.topics import ASSET_CLASSES, FEED_TOPICS, MarketTopic


@click.command()
@click.argument("kind", type=click.Choice(["trades", "quotes", "reference"]))
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--asset-class", required=True, type=click.Choice(ASSET_CLASSES))
@click.option("--exchange", required=True, help="Whose tape it is, e.g. ASX.")
@click.option("--symbol", help="Of files that hold one symbol; default: by the reference file.")
@click.option("--layout", help=f"{', '.join(names())}; default: found by the first line.")
@click.option("--timezone", help="Of times without an offset; default: the layout's, else UTC.")
@click.option("--currency", help="Of prices; default: the layout's, else USD.")
@click.option("--reference", type=click.Path(path_type=Path), help="company_id,symbol,… as CSV.")
@click.option("--valid-from", help="Reference: since when, if the file does not say; default: now.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="As K2_DATA_DIR.")
@click.option("--dry-run", is_flag=True, help="Read and judge every row, and load nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def load(
    kind: str,
    files: tuple[Path, ...],
    data_dir: Path | None,
    valid_from: str | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Load FILES of trades, quotes or reference data, each whole or not at all.

    Reference data is Binance's exchangeInfo, Coinbase's products, Kraken's AssetPairs, or CSV.

    Loading a file twice, or again after an interruption, changes nothing: its rows are known by the
    file's content and their line. Without a Kafka the embedded log of the data directory is used:
    its worker must not run, and one is started to store what was loaded. Ends with status 1 when a
    row was no record.
    """
    if data_dir is not None:
        os.environ["K2_DATA_DIR"] = str(data_dir.resolve())
    of_reference = kind == "reference"
    settings = with_topic(
        load_settings(), options["asset_class"], options["exchange"], reference=of_reference
    )
    configure_quietly(settings)
    if of_reference:
        report = _reference(settings, files, valid_from, dry_run, as_json, options)
    else:
        if valid_from is not None:
            raise click.UsageError("--valid-from is of reference data: rows of a tape have times")
        report = _tapes(settings, kind, files, dry_run, as_json, options)
    if as_json:
        print(json.dumps(report))
    if report["bad"]:
        sys.exit(1)


def _reference(
    settings: Settings,
    files: tuple[Path, ...],
    valid_from: str | None,
    dry_run: bool,
    as_json: bool,
    options: dict[str, Any],
) -> dict[str, Any]:
    from k2.cli.load_reference import load_reference  # noqa: PLC0415 - the help needs none of it

    for name in ("symbol", "layout", "reference"):
        if options[name] is not None:
            raise click.UsageError(f"--{name} is of tapes, not of reference data")
    return load_reference(
        settings,
        files,
        options["asset_class"],
        options["exchange"],
        timezone=options["timezone"],
        currency=options["currency"],
        valid_from=valid_from,
        dry_run=dry_run,
        quiet=as_json,
    )


def _tapes(
    settings: Settings,
    kind: str,
    files: tuple[Path, ...],
    dry_run: bool,
    as_json: bool,
    options: dict[str, Any],
) -> dict[str, Any]:
    _check_layout(options["layout"])
    topic = MarketTopic(options["asset_class"], kind, options["exchange"].lower())
    return asyncio.run(_run(settings, topic, files, dry_run, as_json, options))


def _check_layout(name: str | None) -> None:
    if name is not None and name not in names():
        raise TapeError(f"layout {name!r} is unknown; allowed: {', '.join(names())}", layout=name)


def with_topic(settings: Settings, asset_class: str, exchange: str, *, reference: bool) -> Settings:
    """Settings of a platform that carries the tape too, or the exchange's reference data."""
    name = exchange.lower()
    if name in FEED_TOPICS and not reference:
        raise ConfigError(
            f"--exchange {exchange}: its feed numbers its records, and a tape numbers rows; "
            f"load the tape under a name of its own, e.g. {name}_tape",
            exchange=exchange,
        )
    if not (name.isascii() and name.replace("_", "").isalnum()):
        raise ConfigError(f"--exchange {exchange!r} must be letters, digits and '_', e.g. ASX")
    wanted = name if name in FEED_TOPICS else f"{asset_class}.{name}"
    exchanges = tuple(dict.fromkeys((*settings.core.exchanges, wanted)))
    carried = {"exchanges": exchanges, "reference": reference or settings.core.reference}
    core = settings.core.model_copy(update=carried)
    return settings.model_copy(update={"core": core})


async def _run(
    settings: Settings,
    topic: MarketTopic,
    files: Sequence[Path],
    dry_run: bool,
    as_json: bool,
    options: dict[str, Any],
) -> dict[str, Any]:
    from k2.tapes.load import Wanted, origins  # noqa: PLC0415 - the help needs none of it
    from k2.tapes.run import drain, dry, send  # noqa: PLC0415

    wanted = Wanted(kind=topic.data_type, **options)
    found = await asyncio.to_thread(origins, files, wanted)
    began_s: list[float] = []
    with _progress(as_json) as bar:
        task = bar.add_task("", total=sum(origin.file.lines for origin in found))

        def advance(lines: int) -> None:
            # From the first line on: what comes before is starting up.
            began_s.append(time.monotonic())
            bar.advance(task, lines)

        loaded = (
            await asyncio.to_thread(dry, found, advance)
            if dry_run
            else await send(settings, topic, found, advance)
        )
    seconds = time.monotonic() - began_s[0] if began_s else 0.0
    report = _report(loaded, seconds)
    console = Console(stderr=True)
    if not as_json:
        _print(report, dry_run)
    if settings.embedded and not dry_run:
        stored = await drain(settings, report["sent"], console)
        report |= {"stored": stored["rows"], "duplicates": stored["duplicates"]}
        if not as_json:
            click.echo(
                f"Stored {stored['rows']:,} rows in {settings.core.data_dir}; "
                f"{stored['duplicates']:,} were there before."
            )
    elif not dry_run and not as_json:
        click.echo(
            f"In the log of record {topic.log}. It is stored by workers with "
            f"K2_EXCHANGES={','.join(settings.core.exchanges)}."
        )
    return report


def _progress(as_json: bool) -> Progress:
    return Progress(
        TextColumn("loading"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} lines"),
        TextColumn("{task.speed:,.0f}/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=as_json or not sys.stderr.isatty(),
        speed_estimate_period=10,
    )


def _report(loaded: Sequence[Any], seconds: float) -> dict[str, Any]:
    bad = sum((made.bad for made in loaded), Counter[str]())
    rows, sent = sum(made.rows for made in loaded), sum(made.sent for made in loaded)
    return {
        "files": [
            {
                "file": str(made.file.path),
                "layout": made.layout,
                "digest": made.file.digest,
                "lines": made.file.lines,
                "in_log_before": made.before,
                "rows": made.rows,
                "sent": made.sent,
                "bad": sum(made.bad.values()),
                "bad_rows": [[row.row, row.reason, row.detail] for row in made.examples],
            }
            for made in loaded
        ],
        "rows": rows,
        "sent": sent,
        "bad": sum(bad.values()),
        "reasons": dict(bad),
        "seconds": round(seconds, 3),
        "rows_per_s": round(rows / seconds) if seconds else 0,
    }


def _print(report: dict[str, Any], dry_run: bool) -> None:
    done = "would load" if dry_run else "loaded"
    for file in report["files"]:
        known = f", {file['in_log_before']:,} lines were there" if file["in_log_before"] else ""
        click.echo(
            f"{file['file']}: {done} {file['sent']:,} of {file['rows']:,} rows "
            f"({file['layout']}, {file['digest']}{known})"
        )
        for row, reason, detail in file["bad_rows"]:
            click.echo(f"  row {row}: {reason}: {detail}")
    share = 100 * report["bad"] / report["rows"] if report["rows"] else 0.0
    click.echo(
        f"{report['rows']:,} rows, {report['sent']:,} good, {report['bad']:,} bad ({share:.1f} %), "
        f"{report['seconds']:.1f} s, {report['rows_per_s']:,} rows/s"
    )
