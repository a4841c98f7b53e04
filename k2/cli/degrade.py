"""`k2 degrade`: look at the degradation level, hold one by hand, let it go."""

from __future__ import annotations

import getpass
import json
from datetime import UTC, datetime
from typing import Any

import click

from k2.ask import ask
from k2.cli.parameters import Duration
from k2.degradation.levels import Level
from k2.settings import load_settings


@click.group()
def degrade() -> None:
    """The degradation level of all workers.

    Asks the worker at K2_API_HOST and K2_API_PORT with K2_API_KEY.
    """


@degrade.command()
@click.option("--json", "as_json", is_flag=True, help="The answer as one JSON object.")
def status(as_json: bool) -> None:
    """The level, why it is that, what is put off, the last changes, and the workers."""
    found = _ask("GET", "/v1/degradation")
    shed, workers = _ask("GET", "/v1/shed"), _ask("GET", "/v1/workers")
    if as_json:
        print(json.dumps({**found, "shed": shed, "workers": workers}))
        return
    print(f"{found['level']}{': ' + found['reason'] if found['reason'] else ''}")
    override = found["override"]
    if override:
        print(f"held until {_time(override['until_us'])} by {override['by']}: {override['reason']}")
    print(f"{shed['pending']} records are put off, {shed['brought']} were stored after all")
    for change in found["history"][-10:]:
        when = _time(change["at_us"])
        print(f"  {when}  {change['before']} → {change['after']}: {change['reason']}")
    if len(workers) > 1:
        _print_workers(workers)


@degrade.command(name="set")
@click.argument("level", type=click.Choice([one.name for one in Level], case_sensitive=False))
@click.option("--for", "seconds", type=Duration(), required=True, help="30s, 10m or 2h.")
@click.option("--reason", required=True, help="Why; shown to everybody.")
def hold(level: str, seconds: int, reason: str) -> None:
    """Hold LEVEL for a while, whatever lag and memory say."""
    body = {"level": level, "minutes": seconds / 60, "reason": reason, "by": getpass.getuser()}
    found = _ask("POST", "/v1/degradation", body)["override"]
    print(f"{found['level']} until {_time(found['until_us'])}")


@degrade.command()
def clear() -> None:
    """Let the level go: lag and memory decide again."""
    _ask("POST", "/v1/degradation/clear", {})
    print("lag and memory decide again")


def _print_workers(workers: list[dict[str, Any]]) -> None:
    print(f"{len(workers)} workers, {sum(one['lag'] for one in workers)} messages of lag")
    rows = [("worker", "roles", "lag", "memory", "level", "told"), *map(_row, workers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(f"  {'  '.join(cells)}".rstrip())


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    load = (str(one["lag"]), f"{one['memory']:.0%}", one["level"])
    return (one["worker"], ",".join(one["roles"]), *load, f"{one['age_s']:.0f} s ago")


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _ask(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    return ask(load_settings().api, method, path, body)
