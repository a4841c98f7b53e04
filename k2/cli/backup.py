"""`k2 backup`, `k2 restore`: the lake's tables in another place, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from k2.lake.catalog import file_properties, open_catalog, warehouse
from k2.lake.tables import CORRECTIONS, TABLES, TableDef
from k2.log import configure_structlog
from k2.maintenance.backup import Backup, BackupStore
from k2.maintenance.restore import Restore
from k2.settings import Settings, load_settings

_BY_NAME = {**TABLES, CORRECTIONS.name: CORRECTIONS}
_TABLES = click.argument("tables", nargs=-1, type=click.Choice(sorted(_BY_NAME)))
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


def _store(settings: Settings, place: str) -> BackupStore:
    location = place if "://" in place else Path(place).absolute().as_uri()
    return BackupStore(location, file_properties(settings, location))


def _chosen(tables: tuple[str, ...], there: set[str]) -> list[TableDef]:
    return [_BY_NAME[name] for name in tables or sorted(there)]


@click.command()
@_TABLES
@click.option("--to", "place", required=True, help="A directory, or s3://bucket/prefix.")
@click.option("--keep", type=click.IntRange(1), help="Forget all but the newest so many backups.")
@_JSON
def backup(tables: tuple[str, ...], place: str, keep: int | None, as_json: bool) -> None:
    """Copy TABLES (default: all) with their history; only what no earlier backup has.

    Workers may go on meanwhile. The log is not copied: it is Kafka's to keep (`docs/lake.md`).
    """
    configure_structlog()  # standard output is the answer's
    settings = load_settings()
    store, catalog = _store(settings, place), open_catalog(settings)
    there = {name for name, table in _BY_NAME.items() if catalog.table_exists(table.identifier)}
    done: dict[str, dict[str, Any]] = {}
    for table in _chosen(tables, there):
        done[table.name] = Backup(catalog, store).run(table).as_dict()
        if keep is not None:
            done[table.name]["pruned_files"] = store.prune(table, keep)
    catalog.close()
    _show(done, as_json)


@click.command()
@_TABLES
@click.option("--from", "place", required=True, help="Where `k2 backup` put it.")
@click.option("--at", "name", help="Which backup; default: the newest. `--list` shows them.")
@click.option("--list", "listing", is_flag=True, help="Show the backups there are.")
@_JSON
def restore(
    tables: tuple[str, ...], place: str, name: str | None, listing: bool, as_json: bool
) -> None:
    """Make TABLES (default: all that were backed up) anew in the catalog of the settings.

    Into an empty catalog, with the workers stopped. Rows since the backup are read from the log
    again when the workers start.
    """
    configure_structlog()  # standard output is the answer's
    settings = load_settings()
    store = _store(settings, place)
    names = {table.name: store.names(table) for table in _BY_NAME.values()}
    if listing:
        _show({table: {"backups": found} for table, found in names.items() if found}, as_json)
        return
    catalog = open_catalog(settings)
    base = warehouse(settings)
    restorer = Restore(catalog, store, base, file_properties(settings, base))
    chosen = _chosen(tables, {table for table, found in names.items() if found})
    done = {table.name: restorer.run(table, name).as_dict() for table in chosen}
    catalog.close()
    _show(done, as_json)


def _show(done: dict[str, dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(done))
        return
    if not done:
        click.echo("there is nothing: no table in the catalog, or no backup there")
    for table, facts in done.items():
        click.echo(table)
        for key, value in facts.items():
            text = ", ".join(value) if isinstance(value, list) else value
            click.echo(f"  {key.replace('_', ' '):<14} {text:,}" if isinstance(value, int)
                       else f"  {key.replace('_', ' '):<14} {text}")  # fmt: skip
