"""The demo's live table: what the worker says of itself, a row per symbol."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

_LEVEL_STYLE = ("green", "yellow", "dark_orange", "red", "bold red")


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:,.0f}{unit}"


def _symbols(status: dict[str, Any]) -> Table:
    table = Table(expand=True, pad_edge=False, box=None, header_style="bold")
    table.add_column("symbol")
    for column in ("last price", "trades/s", "quotes/s"):
        table.add_column(column, justify="right")
    for row in status.get("symbols", []):
        table.add_row(
            row["symbol"],
            row["last_price"] or "-",
            f"{row['trades_per_s']:,.1f}",
            f"{row['quotes_per_s']:,.1f}",
        )
    return table


def _facts(status: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 3))
    lake, freshness = status["lake"], status["freshness_ms"]
    level = status["degradation"]
    commits = [entry["last_commit_ms"] for entry in status["sink"]["tables"].values()]
    last_commit = max((ms for ms in commits if ms is not None), default=None)
    table.add_row(
        "level",
        Text(level["name"], style=_LEVEL_STYLE[level["level"]]),
        "lag",
        _number(status["lag"], " msgs"),
        "freshness p50 / p99",
        f"{_number(freshness['p50'])} / {_number(freshness['p99'], ' ms')}",
    )
    table.add_row(
        "trades in lake",
        _number(lake["trades"]),
        "quotes in lake",
        _number(lake["quotes"]),
        "last commit",
        _number(last_commit, " ms"),
    )
    table.add_row(
        "duplicates",
        _number(status["validate"]["duplicates"]),
        "dead letters",
        _number(status["validate"]["dead_letters"]),
        "missing ids",
        _number(status["validate"]["missing_ids"]),
    )
    return table


def render(status: dict[str, Any], source: str, base: str, key: str) -> Group:
    """One frame of the live screen."""
    curl = f"curl -s -H 'X-API-Key: {key}' '{base}/v1/trades?limit=3'"
    return Group(
        Panel(_symbols(status), title=f"K2 — {source}", border_style="cyan"),
        _facts(status),
        Text(f"\nSQL and API  {base}/      health  {base}/health      metrics  {base}/metrics"),
        Text(f"Try          {curl}"),
        Text("Ctrl-C stops; what is in the log stays.", style="dim"),
    )
