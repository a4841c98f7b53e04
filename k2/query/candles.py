"""Figures over intervals: OHLCV, VWAP, TWAP, volume profile. Exact: decimals never become floats.

All values come in as bound parameters, in the order of `values_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import pyarrow as pa

from k2.query.bounds import Bounds
from k2.query.cold import ColdSnapshot
from k2.query.execute import Result, run_checked
from k2.query.seam import Pin
from k2.query.views import create_view

#: Trades of the question. All intervals divide a day, so buckets begin at whole ones UTC.
_TRADES: Final = """
WITH asked AS (
  SELECT ?::BIGINT AS interval_us, ?::BIGINT AS start_us, ?::BIGINT AS end_us
), chosen AS (
  SELECT symbol, exchange, price, quantity, epoch_us(timestamp) AS ts_us, platform_sequence,
         epoch_us(timestamp) - epoch_us(timestamp) % (SELECT interval_us FROM asked) AS bucket_us
  FROM trades
  WHERE (?::VARCHAR[] IS NULL OR symbol IN (SELECT unnest(?::VARCHAR[])))
    AND (?::VARCHAR IS NULL OR exchange = ?::VARCHAR)
    AND timestamp >= make_timestamptz(?::BIGINT) AND timestamp < make_timestamptz(?::BIGINT)
    AND (?::VARCHAR[] IS NULL OR trade_conditions IS NULL
         OR NOT list_has_any(trade_conditions, ?::VARCHAR[]))
)
"""

_OHLCV: Final = """
  arg_min(price, (ts_us, platform_sequence)) AS open, max(price) AS high, min(price) AS low,
  arg_max(price, (ts_us, platform_sequence)) AS close, sum(quantity) AS volume,
  count(*) AS trade_count, vwap(price, quantity) AS vwap
"""

#: The newest windows; the end of a window is exclusive.
CANDLES: Final = f"""{_TRADES}
SELECT symbol, exchange, make_timestamptz(bucket_us) AS window_start,
       make_timestamptz(bucket_us + (SELECT interval_us FROM asked)) AS window_end, {_OHLCV}
FROM chosen GROUP BY symbol, exchange, bucket_us
ORDER BY bucket_us DESC, symbol, exchange
"""  # noqa: S608

#: The same as states that more trades can be folded into (`k2.candles.fold.STATE`).
STATES: Final = f"""{_TRADES}
SELECT symbol, exchange, make_timestamptz(bucket_us) AS window_start,
  arg_min(price, (ts_us, platform_sequence)) AS open, max(price) AS high, min(price) AS low,
  arg_max(price, (ts_us, platform_sequence)) AS close,
  CAST(sum(quantity) AS DECIMAL(38, 10)) AS volume,
  CAST(sum(CAST(price AS DECIMAL(28, 10)) * CAST(quantity AS DECIMAL(28, 10)))
    AS DECIMAL(38, 20)) AS notional,
  count(*) AS trade_count,
  make_timestamptz(min(ts_us)) AS first_timestamp,
  arg_min(platform_sequence, (ts_us, platform_sequence)) AS first_sequence,
  make_timestamptz(max(ts_us)) AS last_timestamp,
  arg_max(platform_sequence, (ts_us, platform_sequence)) AS last_sequence
FROM chosen GROUP BY symbol, exchange, bucket_us
"""  # noqa: S608

#: The whole period as one row over all exchanges asked for.
SUMMARY: Final = f"""{_TRADES}
SELECT symbol, {_OHLCV}, list_sort(list(DISTINCT exchange)) AS exchanges,
       make_timestamptz(min(ts_us)) AS first_trade, make_timestamptz(max(ts_us)) AS last_trade
FROM chosen GROUP BY symbol
"""  # noqa: S608

#: TWAP: the price in force over time. A price holds until the next trade of its symbol and
#: exchange, over empty intervals too, at last until the end of its interval or of the period.
#: Before the first trade of the period no price is in force. µs times price in integers of 1e-10.
AGGREGATES: Final = f"""{_TRADES}
, held AS (
  SELECT *, lag(price) OVER w AS price_before, lag(bucket_us) OVER w AS bucket_before,
         lead(ts_us) OVER w AS next_us
  FROM chosen WINDOW w AS (PARTITION BY symbol, exchange ORDER BY ts_us, platform_sequence)
), bounded AS (
  SELECT *,
    least(coalesce(next_us, end_us), bucket_us + interval_us, end_us) - ts_us AS own_us,
    CASE WHEN bucket_before < bucket_us THEN ts_us - bucket_us ELSE 0 END AS before_us
  FROM held, asked
), sums AS (
  SELECT symbol, exchange, bucket_us, {_OHLCV},
    sum(price * CAST(own_us AS DECIMAL(14, 0))
        + coalesce(price_before, price) * CAST(before_us AS DECIMAL(14, 0))) AS price_us,
    CAST(sum(own_us + before_us) AS HUGEINT) AS held_us
  FROM bounded GROUP BY symbol, exchange, bucket_us
)
SELECT symbol, exchange, make_timestamptz(bucket_us) AS interval_start,
       make_timestamptz(bucket_us + (SELECT interval_us FROM asked)) AS interval_end,
       open, high, low, close, volume, trade_count, vwap,
       CASE WHEN held_us = 0 THEN CAST(close AS DECIMAL(30, 8)) ELSE CAST(
         (2 * CAST(replace(CAST(price_us AS VARCHAR), '.', '') AS HUGEINT) + 100 * held_us)
         // (200 * held_us) AS DECIMAL(30, 0)) * 0.00000001 END AS twap
FROM sums ORDER BY symbol, exchange, bucket_us
"""  # noqa: S608

_DIGITS: Final = "CAST(replace(CAST({} AS VARCHAR), '.', '') AS HUGEINT)"

#: Volume by price: `?` levels of equal height between low and high of each interval.
PROFILE: Final = f"""{_TRADES}
, ranged AS (
  SELECT *, {_DIGITS.format("price")} AS p,
    {_DIGITS.format("min(price) OVER w")} AS low, {_DIGITS.format("max(price) OVER w")} AS high
  FROM chosen WINDOW w AS (PARTITION BY symbol, exchange, bucket_us)
), levelled AS (
  SELECT *, CASE WHEN high = low THEN 0
    ELSE least(? - 1, CAST((p - low) * ? // (high - low) AS BIGINT)) END AS level
  FROM ranged
)
SELECT symbol, exchange, make_timestamptz(bucket_us) AS interval_start, level,
  CAST(low + (high - low) * level // ? AS DECIMAL(28, 0)) * 0.0000000001 AS price_low,
  CAST(CASE WHEN high = low THEN high ELSE low + (high - low) * (level + 1) // ? END
       AS DECIMAL(28, 0)) * 0.0000000001 AS price_high,
  sum(quantity) AS volume, count(*) AS trade_count
FROM levelled GROUP BY symbol, exchange, bucket_us, low, high, level
ORDER BY symbol, exchange, bucket_us, level
"""  # noqa: S608

_EXACT: Final = pa.decimal128(28, 10)
_LEVEL: Final = pa.schema(
    [
        ("price_low", _EXACT),
        ("price_high", _EXACT),
        ("volume", pa.decimal128(38, 10)),
        ("trade_count", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Intervals:
    """Which trades, in which intervals. Times in µs; `start` inclusive, `end` exclusive."""

    symbols: frozenset[str] | None
    interval_us: int
    start_us: int
    end_us: int
    exchange: str | None = None
    exclude_conditions: frozenset[str] | None = None

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.symbols, self.start_us, self.end_us)

    @property
    def values(self) -> list[Any]:
        """What the statements above bind, in order."""
        symbols = None if self.symbols is None else sorted(self.symbols)
        excluded = None if self.exclude_conditions is None else sorted(self.exclude_conditions)
        return [
            self.interval_us,
            self.start_us,
            self.end_us,
            symbols,
            symbols,
            self.exchange,
            self.exchange,
            self.start_us,
            self.end_us,
            excluded,
            excluded,
        ]


@dataclass(frozen=True, slots=True)
class Aggregates:
    """The rows of `AGGREGATES`, `limit` at most; `levels`: with the column volume_profile.

    Both statements read one pin, so volume and profile agree.
    """

    asked: Intervals
    limit: int
    levels: int | None = None

    def __call__(
        self, cursor: duckdb.DuckDBPyConnection, pins: Mapping[str, Pin[ColdSnapshot]]
    ) -> Result:
        create_view(cursor, "trades", "trades", pins["trades"], self.asked.bounds)
        found = run_checked(cursor, AGGREGATES, self.limit, self.asked.values)
        if self.levels is None:
            return found
        values = [*self.asked.values, *[self.levels] * 4]
        # In the order of the intervals, so that these are the levels of all of them.
        profile = run_checked(cursor, PROFILE, self.levels * self.limit, values)
        return Result(
            _with_profile(found.rows, profile.rows),
            found.truncated or profile.truncated,
            found.cut_short or profile.cut_short,
        )


def _with_profile(rows: pa.Table, profile: pa.Table) -> pa.Table:
    """The levels of each interval as one list column."""
    key = ("symbol", "exchange", "interval_start")
    levels: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in profile.to_pylist():
        place = tuple(row[name] for name in key)
        shown = {name: row[name] for name in _LEVEL.names}
        levels.setdefault(place, []).append(shown)
    columns = [rows[name].to_pylist() for name in key]
    lists = [levels.get(place, []) for place in zip(*columns, strict=True)]
    return rows.append_column("volume_profile", pa.array(lists, pa.list_(pa.struct(list(_LEVEL)))))
