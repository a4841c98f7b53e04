"""Views of one query: the union of a pinned snapshot's files and the hot rows above it."""

from __future__ import annotations

import itertools
from typing import Final

import duckdb
import pyarrow as pa

from k2.lake.columns import conform
from k2.query.bounds import Bounds
from k2.query.cold import ColdSnapshot, column_list
from k2.query.seam import Pin

_MARKET_DATA: Final = (
    "SELECT symbol, exchange, epoch_ms(timestamp) AS exchange_timestamp_ms, price, quantity, side, "
    "CAST(timestamp AS DATE) AS exchange_date FROM {rows}"
)
#: Candles are kept as versions of their windows.
_NEWEST: Final = (
    "SELECT {names} FROM ({rows}) QUALIFY row_number() OVER "
    "(PARTITION BY symbol, exchange, timeframe, window_start ORDER BY version DESC) = 1 "
    "AND trade_count > 0"
)
_NAMES: Final = itertools.count()


def table_of(view: str) -> str:
    """The table behind a public view."""
    return "trades" if view == "market_data" else view


def create_view(
    cursor: duckdb.DuckDBPyConnection,
    name: str,
    view: str,
    pinned: Pin[ColdSnapshot],
    bounds: Bounds,
) -> None:
    """Make the public `view` known as `name`, on this cursor only.

    It has the columns of the snapshot's table, those that were added to K2's after them.
    """
    columns = pa.schema([*pinned.snapshot.columns, *pinned.snapshot.added])
    hot = f"hot_{next(_NAMES)}"
    # The worker may know older columns than the lake has by now.
    cursor.register(hot, conform(pinned.hot_whole(bounds), columns))
    names = column_list(columns.names)
    parts = [f"SELECT {names} FROM {hot}"]  # noqa: S608
    scan = pinned.snapshot.scan(pinned.snapshot.select(bounds))
    if scan is not None:
        parts.append(f"SELECT {names} FROM {scan}")  # noqa: S608
    rows = " UNION ALL ".join(parts)
    if view == "market_data":
        rows = _MARKET_DATA.format(rows=f"({rows})")
    if view == "candles":
        rows = _NEWEST.format(names=names, rows=rows)
    cursor.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS {rows}")
