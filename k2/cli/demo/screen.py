"""The demo's live table: what the worker says of itself, a row per symbol. Fits 80 columns."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

_LEVEL_STYLE = ("green", "yellow", "dark_orange", "red", "bold red")
#: Digits of a price that are shown at least, so that its text keeps its length.
_DIGITS = 7
#: The longest level, counts up to 99,999,999, milliseconds; with the names they fill 76 columns.
_VALUE_WIDTHS = (13, 10, 8)


@dataclass(frozen=True, slots=True)
class Place:
    """Which feed the demo shows, and where its worker answers."""

    source: str
    base: str
    key: str

    @property
    def curl(self) -> str:
        """A request that works as it stands; 80 columns with the defaults."""
        header = shlex.quote(f"X-API-Key:{self.key}")
        return f"curl -H {header} '{self.base}/v1/trades?limit=3'"


def price_text(text: str | None) -> str:
    """A price with the decimals its size calls for, never fewer than it has.

    Stored prices have no trailing zeros; shown like that they would jump about.
    """
    if text is None:
        return "-"
    price = Decimal(text)
    has = max(0, -int(price.as_tuple().exponent))
    wanted = min(max(_DIGITS - 1 - price.adjusted(), 2), 8) if price else 2
    return f"{price:,.{max(has, wanted)}f}"


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:,.0f}{unit}"


def _symbols(status: dict[str, Any]) -> Table:
    table = Table(expand=True, pad_edge=False, box=None, header_style="bold")
    table.add_column("symbol", ratio=2, no_wrap=True)
    table.add_column("last price", justify="right", ratio=3, no_wrap=True)
    for column in ("trades/s", "quotes/s"):
        table.add_column(column, justify="right", ratio=2, no_wrap=True)
    for row in status.get("symbols", []):
        table.add_row(
            row["symbol"],
            price_text(row["last_price"]),
            f"{row['trades_per_s']:,.1f}",
            f"{row['quotes_per_s']:,.1f}",
        )
    return table


def _facts(status: dict[str, Any]) -> Table:
    """Three columns of names and numbers; names and numbers line up."""
    lake, freshness, validate = status["lake"], status["freshness_ms"], status["validate"]
    level = status["degradation"]
    commits = [entry["last_commit_ms"] for entry in status["sink"]["tables"].values()]
    last_commit = max((ms for ms in commits if ms is not None), default=None)
    rows: tuple[tuple[tuple[str, str | Text], ...], ...] = (
        (
            ("level", Text(level["name"], style=_LEVEL_STYLE[level["level"]])),
            ("lag", _number(status["lag"])),
            ("fresh p50", _number(freshness["p50"], " ms")),
        ),
        (
            ("trades stored", _number(lake["trades"])),
            ("quotes stored", _number(lake["quotes"])),
            ("fresh p99", _number(freshness["p99"], " ms")),
        ),
        (
            ("duplicates", _number(validate["duplicates"])),
            ("dead letters", _number(validate["dead_letters"])),
            ("commit", _number(last_commit, " ms")),
        ),
        (
            ("missing ids", _number(validate["missing_ids"])),
            ("memory", _number(status["memory"]["rss_mb"], " MB")),
            ("up", _number(status["uptime_s"], " s")),
        ),
    )
    table = Table.grid(padding=(0, 1), expand=True)
    for number, width in enumerate(_VALUE_WIDTHS):
        if number:
            table.add_column(width=1)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(justify="right", no_wrap=True, min_width=width)
    for row in rows:
        cells = [cell for name, value in row for cell in (name, value, "")]
        table.add_row(*cells[:-1])
    return table


def render(status: dict[str, Any], place: Place) -> Group:
    """One frame of the live screen."""
    return Group(
        Panel(_symbols(status), title=f"K2 — {place.source}", border_style="cyan"),
        Panel(_facts(status), border_style="cyan"),
        Text(f"API {place.base}/  (also /health, /metrics, /faust/). Ask it:", style="dim"),
        Text(place.curl, no_wrap=True, overflow="fold"),
        Text("Ctrl-C stores what was received and stops.", style="dim"),
    )
