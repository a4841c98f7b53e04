"""`k2 candles`: candles of the lake against the trades they are made of."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from k2.candles.rebuild import Report, compare, pair, write
from k2.clock import SYSTEM_CLOCK
from k2.lake.catalog import open_catalog
from k2.lake.reader import LakeReader
from k2.lake.tables import CANDLES, ensure_table
from k2.lake.writer import LakeWriter
from k2.lakehouse import retention_of
from k2.settings import load_settings

#: Status when candles are not what their trades make them.
_DIFFERENT = 1


@click.group()
def candles() -> None:
    """Candles of the lake."""


@candles.command()
@click.option("--write", "do_write", is_flag=True, help="Store what is right as new versions.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def rebuild(do_write: bool, as_json: bool) -> None:
    """Compute all candles anew from the trades of the lake and tell what differs.

    Ends with status 1 when something differs and is not written. With --write it also folds in the
    trades of a lake that is older than its candles.
    """
    settings = load_settings()
    catalog = open_catalog(settings)
    ensure_table(catalog, CANDLES, settings.iceberg.compression)
    reader = LakeReader(catalog)
    exclude = frozenset(settings.candles.exclude_conditions)
    found = pair(reader)
    report = compare(reader, found, exclude, add=do_write)
    facts: dict[str, Any] = {
        "windows": report.windows,
        "trades": report.trades,
        "not_folded_yet": report.behind,
        "different": report.different,
        "trades_not_kept": report.outlived,
    }
    if do_write:
        writer = LakeWriter(
            catalog,
            CANDLES,
            retry_s=settings.iceberg.commit_retry_s,
            retention=retention_of(settings),
        )
        landed = write(writer, found, report, SYSTEM_CLOCK.now_us())
        writer.close()
        facts["written"] = 0 if landed is None else landed.rows
        facts["snapshot"] = None if landed is None else str(landed.snapshot_id)
    _show(facts, report, as_json)
    if report.different and not do_write:
        sys.exit(_DIFFERENT)


def _show(facts: dict[str, Any], report: Report, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({**facts, "examples": report.examples}, default=str))
        return
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) else value
        click.echo(f"{name.replace('_', ' '):<16} {shown}")
    for one in report.examples:
        at = one["window_start"].isoformat()
        click.echo(f"\n{one['symbol']} {one['exchange']} {one['timeframe']} {at}")
        for name, (lake, right) in one["lake_and_right"].items():
            click.echo(f"  {name:<16} lake {lake}, right {right}")
