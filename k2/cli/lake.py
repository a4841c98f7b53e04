"""`k2 lake`: look after the lake by hand; a worker with the role `maintain` does it by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import click

from k2.errors import LakeError
from k2.lake.catalog import open_catalog
from k2.lake.tables import TABLES
from k2.lakehouse import keepers
from k2.maintenance.keeper import Keeper
from k2.settings import load_settings

_HOUR_S = 3_600.0


@click.group()
def lake() -> None:
    """Look after the lake: what it is made of, compaction, history, clean-up."""


def _options(*, dry: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        command = click.option("--json", "as_json", is_flag=True, help="One JSON object.")(command)
        if dry:
            command = click.option("--dry-run", is_flag=True, help="Say what would be done.")(
                command
            )
        return command

    return wrap


_TABLES = click.argument("tables", nargs=-1, type=click.Choice(sorted(TABLES)))
_TABLE = click.argument("table", type=click.Choice(sorted(TABLES)))


def _keepers(tables: Iterable[str]) -> list[Keeper]:
    settings = load_settings()
    chosen = set(tables)
    found = keepers(open_catalog(settings), settings)
    return [keeper for name, keeper in found.items() if not chosen or name in chosen]


def _each(tables: Iterable[str], as_json: bool, act: Callable[[Keeper], dict[str, Any]]) -> None:
    """Do it for every table; one that fails does not keep the others from it."""
    results, failed = {}, False
    for keeper in _keepers(tables):
        try:
            results[keeper.table.name] = act(keeper)
        except LakeError as exc:
            failed = True
            results[keeper.table.name] = {"error": exc.message}
    _show(results, as_json)
    if failed:
        raise SystemExit(1)


def _show(results: dict[str, dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(results))
        return
    for name, facts in results.items():
        click.echo(name)
        for key, value in facts.items():
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            shown = f"{text:,}" if isinstance(text, int) else text
            click.echo(f"  {key.replace('_', ' '):<20} {shown}")


@lake.command()
@_TABLES
@_options(dry=False)
def status(tables: tuple[str, ...], as_json: bool) -> None:
    """Rows, files, snapshots, tags, and what is due, of TABLES (default: all)."""
    _each(tables, as_json, lambda keeper: keeper.status().as_dict())


@lake.command()
@_TABLES
@_options()
def compact(tables: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Merge small files of TABLES (default: all) into sorted ones of up to 128 MB."""
    _each(tables, as_json, lambda keeper: keeper.compact(dry_run=dry_run).as_dict())


@lake.command("rewrite-manifests")
@_TABLES
@_options()
def rewrite_manifests(tables: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Order the manifests of TABLES by day and bucket."""

    def act(keeper: Keeper) -> dict[str, Any]:
        before = keeper.status()
        if dry_run or before.manifests == 0:
            return {"manifests": before.manifests, "files": before.files}
        keeper.rewrite_manifests()
        return {"manifests_before": before.manifests, "manifests": keeper.status().manifests}

    _each(tables, as_json, act)


@lake.command()
@_TABLES
@_options()
def expire(tables: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Remove snapshots the retention lets go; tagged ones and the vector's stay."""

    def act(keeper: Keeper) -> dict[str, Any]:
        gone = keeper.expire(dry_run=dry_run)
        return {"expired": len(gone), "snapshots": [str(one) for one in gone[:20]]}

    _each(tables, as_json, act)


@lake.command()
@_TABLES
@click.option(
    "--older-than-hours", default=72.0, show_default=True, help="Younger files are left alone."
)
@_options()
def orphans(tables: tuple[str, ...], older_than_hours: float, dry_run: bool, as_json: bool) -> None:
    """Delete files that no snapshot of TABLES refers to."""

    def act(keeper: Keeper) -> dict[str, Any]:
        found = keeper.cleaner.orphans(older_than_s=older_than_hours * _HOUR_S, dry_run=dry_run)
        return {"files": found.files, "bytes": found.bytes, "sample": list(found.sample)}

    _each(tables, as_json, act)


@lake.command()
@_TABLE
@click.argument("name")
@click.option("--snapshot", help="Id, tag or time (ISO 8601, UTC); default: the newest.")
@click.option("--delete", is_flag=True, help="Remove the tag; its snapshot may expire then.")
@_options(dry=False)
def tag(table: str, name: str, snapshot: str | None, delete: bool, as_json: bool) -> None:
    """Call a snapshot of TABLE by NAME: it stays until the tag is removed."""
    (keeper,) = _keepers([table])
    if delete:
        keeper.untag(name)
        _show({table: {"removed": name}}, as_json)
    else:
        chosen = keeper.tag(name, snapshot)
        _show({table: {"tag": name, "snapshot": str(chosen)}}, as_json)


@lake.command()
@_TABLE
@click.argument("snapshot")
@_options()
def rollback(table: str, snapshot: str, dry_run: bool, as_json: bool) -> None:
    """Give TABLE the rows of an older SNAPSHOT (id, tag or time), as a new snapshot.

    The position in the log stays: rows stored since are not read again. They stay visible by time
    travel until their snapshots expire.
    """
    (keeper,) = _keepers([table])
    target, rows, now = keeper.rollback_target(snapshot)
    facts: dict[str, Any] = {"to": str(target.snapshot_id), "rows_then": rows, "rows_now": now}
    if not dry_run:
        facts["snapshot"] = str(keeper.rollback(str(target.snapshot_id)).snapshot.snapshot_id)
    _show({table: facts}, as_json)
