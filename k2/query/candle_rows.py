"""Candles of a few data files and the hot rows, folded in Arrow.

The same figures as `k2.query.candles.CANDLES`, for questions that touch few rows (a symbol's day)
in a fraction of the processor time DuckDB takes for them. Others are DuckDB's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2.candles.fill import filled_forward
from k2.candles.fold import BASE, TRADE_COLUMNS, in_frame, of_trades, vwaps
from k2.errors import QueryTimeout
from k2.query.asked import RecordsQuery
from k2.query.bounds import Bounds
from k2.query.candles import CANDLES, Intervals
from k2.query.cold import ColdSnapshot
from k2.query.execute import run_checked
from k2.query.records import find
from k2.query.seam import Pin
from k2.query.views import create_view
from k2.timeframes import FRAMES_US

_TIME: Final = pa.timestamp("us", "UTC")
_VWAP: Final = pa.decimal128(38, 8)
#: How many trades before the period are looked at for one that makes a price, where some do not.
_LOOK_BACK: Final = 1_000


@dataclass(frozen=True, slots=True)
class CandleRows:
    """The newest `limit` candles of `asked`, newest first; columns of `CANDLES`."""

    asked: Intervals
    limit: int

    def __call__(
        self, cursor: duckdb.DuckDBPyConnection, pins: Mapping[str, Pin[ColdSnapshot]]
    ) -> pa.Table:
        pinned = pins["trades"]
        found = self._folded(pinned)
        if found is not None:
            return found
        create_view(cursor, "trades", "trades", pinned, self.bounds)
        result = run_checked(cursor, CANDLES, self.limit, self.asked.values)
        if result.cut_short:
            raise _late()
        return result.rows

    @property
    def bounds(self) -> Bounds:
        return self.asked.bounds

    def _folded(self, pinned: Pin[ColdSnapshot]) -> pa.Table | None:
        """None where it has to be DuckDB."""
        files = pinned.snapshot.select(self.bounds)
        reader = pinned.snapshot.reader(files)
        if reader is None:
            return None
        hot = pinned.hot(self.bounds).select(TRADE_COLUMNS)
        tables = [hot.take(pa.array(self.rows(hot)))]
        tables.append(reader.read(files, self, TRADE_COLUMNS))
        minutes = of_trades(pa.concat_tables(tables), self.asked.exclude_conditions or frozenset())
        frames = {us: name for name, us in FRAMES_US.items()}
        frame = frames[self.asked.interval_us]
        return self._shown(minutes if frame == BASE else in_frame(minutes, frame))

    def _shown(self, states: pa.Table) -> pa.Table:
        order = [("window_start", "descending"), ("symbol", "ascending"), ("exchange", "ascending")]
        newest = states.take(pc.sort_indices(states, sort_keys=order).slice(0, self.limit))
        ends = pc.add(newest["window_start"].cast(pa.int64()), self.asked.interval_us).cast(_TIME)
        shown = newest.select(
            ["symbol", "exchange", "window_start", "open", "high", "low", "close", "volume",
             "trade_count"]
        )  # fmt: skip
        vwap = vwaps(newest).cast(_VWAP)
        shown = shown.add_column(3, "window_end", ends).append_column("vwap", vwap)
        # As DuckDB gives them: no column says that it is never null.
        return pa.Table.from_arrays(shown.columns, shown.column_names)

    @property
    def columns(self) -> Sequence[str]:
        return TRADE_COLUMNS

    def rows(self, keys: pa.Table) -> npt.NDArray[np.int64]:
        """Places of the trades asked for."""
        times = keys["timestamp"].cast(pa.int64())
        mask = pc.and_(
            pc.greater_equal(times, self.asked.start_us), pc.less(times, self.asked.end_us)
        )
        if self.asked.symbols is not None:
            names = pa.array(sorted(self.asked.symbols), pa.string())
            mask = pc.and_(mask, pc.is_in(keys["symbol"], value_set=names))
        if self.asked.exchange is not None:
            mask = pc.and_(mask, pc.equal(keys["exchange"], self.asked.exchange))
        return np.flatnonzero(mask.to_numpy())


@dataclass(frozen=True, slots=True)
class FilledRows:
    """`candles` of one symbol and the windows without trades, of one pin.

    `until_us`: no window begins at or after it. The price in force before the period is that of
    the newest trade before it that no excluded condition has, among the last `_LOOK_BACK`; without
    one the first window is that of the first trade.
    """

    candles: CandleRows
    symbol: str
    until_us: int

    def __call__(
        self, cursor: duckdb.DuckDBPyConnection, pins: Mapping[str, Pin[ColdSnapshot]]
    ) -> pa.Table:
        asked = self.candles.asked
        rows = self.candles(cursor, pins)
        before: dict[str, Decimal] = {}
        for exchange in set(rows["exchange"].to_pylist()) or {asked.exchange}:
            before |= self._before(cursor, pins["trades"], exchange)
        begin_us = asked.start_us - asked.start_us % asked.interval_us
        return filled_forward(
            rows, self.symbol, before, asked.interval_us, begin_us, self.until_us,
            self.candles.limit,
        )  # fmt: skip

    def _before(
        self,
        cursor: duckdb.DuckDBPyConnection,
        pinned: Pin[ColdSnapshot],
        exchange: str | None,
    ) -> dict[str, Decimal]:
        """The price in force when the period begins, by its exchange; of any where it is None."""
        asked = self.candles.asked
        query = RecordsQuery(
            symbols=asked.symbols,
            exchanges=None if exchange is None else frozenset((exchange,)),
            end_us=asked.start_us,
            limit=_LOOK_BACK if asked.exclude_conditions else 1,
        )
        found = find(cursor, pinned, query)
        if found.cut_short:
            raise _late()
        minutes = of_trades(found.rows, asked.exclude_conditions or frozenset())
        last = pc.sort_indices(minutes, sort_keys=[("last_timestamp", "descending")])[:1]
        newest = minutes.take(last)
        return dict(zip(newest["exchange"].to_pylist(), newest["close"].to_pylist(), strict=True))


def _late() -> QueryTimeout:
    return QueryTimeout("the query was stopped at its deadline")
