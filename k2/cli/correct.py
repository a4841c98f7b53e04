"""`k2 correct`: cancel or replace trades in the lake, as exchanges do when they bust them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import click
from pyiceberg.catalog import Catalog

from k2.candles.again import Refolded, fold_again
from k2.errors import ConfigError, K2Error
from k2.lake.catalog import open_catalog
from k2.lake.reader import LakeReader
from k2.lake.tables import CANDLES
from k2.lake.writer import LakeWriter
from k2.lakehouse import retention_of
from k2.log import configure_structlog
from k2.maintenance.correct import SIDES, Corrected, Correction, Corrector
from k2.settings import Settings, load_settings

_COLUMNS = ("message_id", "action", "price", "quantity", "side")


@click.group()
def correct() -> None:
    """Correct trades by identity: the column `message_id`.

    The old values stay visible by time travel, under the tag that is printed; what was asked for,
    and why, is a row of `market_data.corrections`. Candles made of the trades are made anew.
    """


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="One JSON object."),
        click.option("--dry-run", is_flag=True, help="Say what would be done."),
        click.option("--reason", required=True, help="Why; kept with the correction."),
    ):
        command = option(command)
    return command


@correct.command()
@click.argument("message_ids", nargs=-1, required=True)
@_options
def cancel(message_ids: tuple[str, ...], reason: str, dry_run: bool, as_json: bool) -> None:
    """Take trades out of the lake; their ids stay known, so a replay does not bring them back."""
    _run([Correction(one) for one in message_ids], reason, dry_run, as_json)


@correct.command()
@click.argument("message_id")
@click.option("--price", help="The right price, decimal text.")
@click.option("--quantity", help="The right quantity, decimal text.")
@click.option("--side", type=click.Choice(SIDES), help="The right side.")
@_options
def replace(
    message_id: str,
    price: str | None,
    quantity: str | None,
    side: str | None,
    reason: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Give a trade its right price, quantity or side."""
    one = _replaced(message_id, price=price, quantity=quantity, side=side)
    if not one.values:
        raise click.UsageError("give --price, --quantity or --side; `k2 correct cancel` removes it")
    _run([one], reason, dry_run, as_json)


@correct.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_options
def apply(file: Path, reason: str, dry_run: bool, as_json: bool) -> None:
    """Do all corrections of a CSV file (message_id,action,price,quantity,side) in one snapshot."""
    _run(_read(file), reason, dry_run, as_json)


def _read(file: Path) -> list[Correction]:
    with file.open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines)
        if (found := tuple(rows.fieldnames or ())) != _COLUMNS:
            raise ConfigError(
                f"{file} has the columns {','.join(found)}; they must be {','.join(_COLUMNS)}"
            )
        return [_one(file, number, row) for number, row in enumerate(rows, start=2)]


def _one(file: Path, number: int, row: dict[str, str]) -> Correction:
    one = _replaced(row["message_id"], **{name: row[name] or None for name in _COLUMNS[2:]})
    if row["action"] not in ("cancel", "replace") or one.action != row["action"]:
        raise ConfigError(
            f"{file}, line {number}: action {row['action']!r} with "
            f"{len(one.values)} new values; allowed: cancel with none, replace with some"
        )
    return one


def _replaced(message_id: str, **values: str | None) -> Correction:
    return Correction(message_id, {n: text for n, text in values.items() if text is not None})


def _run(asked: Sequence[Correction], reason: str, dry_run: bool, as_json: bool) -> None:
    configure_structlog()  # standard output is the answer's
    settings = load_settings()
    catalog = open_catalog(settings)
    try:
        corrector = Corrector(
            catalog,
            retention=retention_of(settings),
            retry_s=settings.iceberg.commit_retry_s,
        )
        done = corrector.run(asked, reason, dry_run=dry_run)
        candles = Refolded() if dry_run else _refold(settings, catalog, done)
    finally:
        catalog.close()
    if as_json:
        click.echo(json.dumps({**done.as_dict(), "candles": asdict(candles)}))
        return
    click.echo(_told(done, dry_run))
    if candles.left:
        click.echo(
            f"its candles are as they were: {candles.left}; run `k2 candles rebuild --write` later",
            err=True,
        )
    elif candles.windows:
        click.echo(f"{candles.windows} candles made anew")


def _refold(settings: Settings, catalog: Catalog, done: Corrected) -> Refolded:
    """The trades are corrected already, so what fails here is told and no error."""
    if not catalog.table_exists(CANDLES.identifier):
        return Refolded()
    writer = LakeWriter(
        catalog,
        CANDLES,
        retry_s=settings.iceberg.commit_retry_s,
        retention=retention_of(settings),
    )
    exclude = frozenset(settings.candles.exclude_conditions)
    try:
        return fold_again(LakeReader(catalog), writer, done.rows, exclude)
    except K2Error as exc:
        return Refolded(left=exc.message)
    finally:
        writer.close()


def _told(done: Corrected, dry_run: bool) -> str:
    lines = []
    for trade in done.trades:
        changes = ", ".join(
            f"{name} {trade['old'][name]} -> {value}" for name, value in trade["new"].items()
        )
        lines.append(f"{trade['action']:<8} {trade['message_id']}  {changes}".rstrip())
    if dry_run:
        return "\n".join([*lines, f"would rewrite {done.files} files; nothing was changed"])
    return "\n".join([*lines, f"snapshot {done.snapshot}; before it: tag {done.tag}"])
