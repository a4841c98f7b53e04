"""`k2 tiers`: which symbols matter most, by what they trade."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import msgspec

from k2.ask import ask
from k2.degradation.measured import VOLUMES_SQL, Ranked, rank, volumes_of
from k2.degradation.tiers import load_lists
from k2.errors import ConfigError
from k2.settings import load_settings


@click.command()
@click.option("--days", default=30, show_default=True, type=click.IntRange(1, 3_650))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the file here.")
@click.option("--json", "as_json", is_flag=True, help="The ranking as one JSON object.")
def tiers(days: int, out: Path | None, as_json: bool) -> None:
    """Rank symbols by their volume of the last days: top 20, top 100, the rest.

    Asks the worker at K2_API_HOST and K2_API_PORT. Without --out it only prints. Overrides of the
    file in use (K2_DEGRADATION_TIERS_FILE) go into the new one; workers read it when they start.
    """
    settings = load_settings()
    before = load_lists(settings.degradation.tiers_file)
    answer: Any = ask(settings.api, "POST", "/v1/sql", {"sql": VOLUMES_SQL.format(days=days)})
    found = rank(volumes_of(answer), before)
    if out is not None:
        _write(out, found)
    if as_json:
        print(json.dumps({"volumes": found.volumes, "unranked": found.unranked}))
        return
    _print(found)
    if out is not None:
        click.echo(f"Written to {out}; workers with K2_DEGRADATION_TIERS_FILE={out} use it.")


def _write(out: Path, found: Ranked) -> None:
    partial = out.with_name(f"{out.name}.new")
    try:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(found.lists), indent=2) + b"\n")
        partial.replace(out)
    except OSError as exc:
        raise ConfigError(f"--out {out} cannot be written: {exc.strerror}") from exc


def _print(found: Ranked) -> None:
    if not found.volumes:
        click.echo("nothing was traded in that time")
    for name, ranking in found.volumes.items():
        lists = found.lists[name]
        click.echo(f"{name}: {len(ranking)} names")
        for number, (symbol, volume) in enumerate(ranking[:100], start=1):
            tier = lists.overrides.get(symbol) or (1 if symbol in lists.tier1 else 2)
            note = " (override)" if symbol in lists.overrides else ""
            click.echo(f"{number:>4}  {symbol:<12} {volume:>20,.0f}  tier {tier}{note}")
    if found.unranked:
        click.echo(f"no price in dollars for: {', '.join(found.unranked)}")
