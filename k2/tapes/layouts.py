"""The layouts of tapes: which columns a file has, and how a file is known by its first lines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from k2.errors import TapeError


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to write a tape.

    `columns`: K2's names in the file's order; None when a header names them. `time`: `iso` (column
    exchange_timestamp) or `us-date` (MM/DD/YYYY and a time of day). `timezone`: of times that name
    none; `currency`: of prices that name none; None: the command must say, or UTC and USD.
    `per_symbol`: a file holds one symbol and does not name it.
    """

    name: str
    kind: str
    columns: tuple[str, ...] | None
    time: str
    timezone: str | None = None
    currency: str | None = None
    per_symbol: bool = False


#: What the layout with a header must have, by kind of record.
REQUIRED: Final = {
    "trades": ("symbol", "exchange_timestamp", "price", "quantity"),
    "quotes": (
        "symbol", "exchange_timestamp", "bid_price", "ask_price", "bid_size", "ask_size",
    ),
}  # fmt: skip
#: What it may have besides; any other column is kept in vendor_data.
OPTIONAL: Final = ("side", "sequence_number", "currency")

LAYOUTS: Final = (
    Layout("k2", "trades", None, "iso"),
    Layout("k2", "quotes", None, "iso"),
    Layout(
        "asx-tape",
        "trades",
        ("date", "time", "price", "quantity", "qualifiers", "venue", "buyer_id"),
        "us-date",
        timezone="Australia/Sydney",
        currency="AUD",
        per_symbol=True,
    ),
    Layout(
        "asx-tape",
        "quotes",
        ("date", "time", "bid_price", "ask_price", "bid_size", "ask_size"),
        "us-date",
        timezone="Australia/Sydney",
        currency="AUD",
        per_symbol=True,
    ),
)
_DATED: Final = re.compile(r"\d\d/\d\d/\d{4},\d\d:\d\d:\d\d(\.\d+)?,")


def names() -> list[str]:
    """Names of the layouts, each once."""
    return list(dict.fromkeys(layout.name for layout in LAYOUTS))


def choose(kind: str, first: Sequence[str], name: str | None, path: str) -> Layout:
    """The layout of a file of `kind` that begins with these lines.

    `name`: what the command says it is, checked against the lines. Raises `TapeError`.
    """
    of_kind = [layout for layout in LAYOUTS if layout.kind == kind]
    wanted = [layout for layout in of_kind if name in {None, layout.name}]
    for layout in wanted:
        if _fits(layout, first):
            return layout
    shown = first[0][:80] if first else ""
    meant = f"layout {name}" if name else "any layout K2 knows"
    raise TapeError(
        f"{path} is no tape of {kind} in {meant}: its first line is {shown!r}. "
        f"{' '.join(_described(layout) for layout in wanted)}",
        path=path,
        layout=name,
    )


def _fits(layout: Layout, first: Sequence[str]) -> bool:
    if not first:
        return False
    if layout.columns is None:
        return set(REQUIRED[layout.kind]) <= set(header_of(first[0]))
    return bool(_DATED.match(first[0])) and first[0].count(",") + 1 == len(layout.columns)


def header_of(line: str) -> list[str]:
    """Column names of a header line."""
    return [name.strip().strip('"').lower() for name in line.lstrip("\ufeff").split(",")]


def _described(layout: Layout) -> str:
    if layout.columns is None:
        return f"{layout.name} has a header with {', '.join(REQUIRED[layout.kind])}."
    return f"{layout.name} has no header and the columns {', '.join(layout.columns)}."
