"""`k2 load reference`: what an exchange says of its instruments, into log and lake."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from k2.clock import SYSTEM_CLOCK
from k2.errors import ConfigError, TapeError
from k2.settings import Settings
from k2.tapes.reference import ReferenceFile, Rules, day_us, read
from k2.tapes.run import drain, send_reference
from k2.tapes.times import zone
from k2.topics import MarketTopic


def load_reference(
    settings: Settings,
    files: Sequence[Path],
    asset_class: str,
    exchange: str,
    *,
    timezone: str | None,
    currency: str | None,
    valid_from: str | None,
    dry_run: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Load FILES; the report."""
    topic = MarketTopic(asset_class, "reference_data", exchange.lower())
    if topic not in settings.topics:
        raise ConfigError(
            f"--asset-class {asset_class} and --exchange {exchange} do not go together: its feed "
            "has another class",
            exchange=exchange,
        )
    now_us, at = SYSTEM_CLOCK.now_us(), zone(timezone or "UTC")
    rules = Rules((currency or "USD").upper(), at, _since(valid_from, at, now_us))
    found = [read(path, exchange, asset_class, rules, now_us) for path in files]
    if not dry_run:
        asyncio.run(send_reference(settings, topic, found))
    report = _report(found)
    if not quiet:
        _print(report, dry_run)
    if settings.embedded and not dry_run:
        stored = asyncio.run(drain(settings, report["sent"], Console(stderr=True)))
        report |= {"stored": stored["rows"], "duplicates": stored["duplicates"]}
        if not quiet:
            click.echo(
                f"Stored {stored['rows']:,} rows in {settings.core.data_dir}; "
                f"{stored['duplicates']:,} were there before."
            )
    elif not dry_run and not quiet:
        click.echo(f"In {topic.log}. It is stored by workers with K2_REFERENCE=true.")
    return report


def _since(text: str | None, at: Any, now_us: int) -> int:
    if text is None:
        return now_us
    try:
        return day_us(text, at)
    except ValueError as exc:
        raise TapeError(
            f"--valid-from {text!r} is no time; give one like 2024-03-01 or 2024-03-01T09:00:00Z"
        ) from exc


def _report(found: Sequence[ReferenceFile]) -> dict[str, Any]:
    return {
        "files": [
            {
                "file": str(file.path),
                "layout": file.layout,
                "digest": file.content.digest,
                "rows": file.batch.num_rows + len(file.bad),
                "sent": file.batch.num_rows,
                "bad": len(file.bad),
                "bad_rows": [[row.row, row.reason, row.detail] for row in file.bad[:5]],
            }
            for file in found
        ],
        "rows": sum(file.batch.num_rows + len(file.bad) for file in found),
        "sent": sum(file.batch.num_rows for file in found),
        "bad": sum(len(file.bad) for file in found),
    }


def _print(report: dict[str, Any], dry_run: bool) -> None:
    done = "would load" if dry_run else "loaded"
    for file in report["files"]:
        click.echo(
            f"{file['file']}: {done} {file['sent']:,} of {file['rows']:,} instruments "
            f"({file['layout']}, {file['digest']})"
        )
        for row, reason, detail in file["bad_rows"]:
            click.echo(f"  entry {row}: {reason}: {detail}")
