"""Trades joined to the quote in force when each happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from k2.errors import QueryTimeout
from k2.query.asked import RecordsQuery
from k2.query.bounds import Bounds
from k2.query.cold import ColdSnapshot
from k2.query.records import find
from k2.query.seam import Pin
from k2.query.views import create_view

#: Of quotes with one timestamp the one the log has last is in force.
_JOIN: Final = """
WITH q AS (
  SELECT symbol, exchange, timestamp AS quote_timestamp,
         unnest(arg_max({'quote_id': quote_id, 'bid_price': bid_price, 'bid_quantity': bid_quantity,
                         'ask_price': ask_price, 'ask_quantity': ask_quantity},
                        (platform_sequence, log_partition)))
  FROM quotes
  WHERE symbol = ? AND timestamp >= make_timestamptz(?::BIGINT)
    AND timestamp <= make_timestamptz(?::BIGINT)
  GROUP BY symbol, exchange, timestamp
)
SELECT t.symbol, t.exchange, t.timestamp, t.trade_id, t.price, t.quantity, t.side,
       t.platform_sequence, q.quote_timestamp, q.quote_id, q.bid_price, q.bid_quantity,
       q.ask_price, q.ask_quantity
FROM asof_trades t ASOF LEFT JOIN q
  ON t.symbol = q.symbol AND t.exchange = q.exchange AND t.timestamp >= q.quote_timestamp
ORDER BY t.timestamp DESC, t.platform_sequence DESC, t.log_partition DESC
"""


@dataclass(frozen=True, slots=True)
class AsofJoin:
    """The trades of `query` (one symbol), each with a quote at most `max_age_us` older, or none.

    Raises `QueryTimeout` when the deadline came before all trades were read.
    """

    query: RecordsQuery
    symbol: str
    max_age_us: int

    def __call__(
        self, cursor: duckdb.DuckDBPyConnection, pins: Mapping[str, Pin[ColdSnapshot]]
    ) -> pa.Table:
        found = find(cursor, pins["trades"], self.query)
        if found.cut_short:
            # At the deadline there is no time left to look for their quotes either.
            raise QueryTimeout("the query was stopped at its deadline")
        trades = found.rows
        low, high = self._times(trades)
        bounds = Bounds(frozenset((self.symbol,)), low - self.max_age_us, high + 1)
        create_view(cursor, "quotes", "quotes", pins["quotes"], bounds)
        cursor.register("asof_trades", trades)
        values = [self.symbol, low - self.max_age_us, high]
        joined = cursor.execute(_JOIN, values).to_arrow_table()
        return self._fresh(joined)

    def _times(self, trades: pa.Table) -> tuple[int, int]:
        if not trades.num_rows:
            return 0, 0
        times = pc.min_max(trades["timestamp"].cast(pa.int64()))
        return times["min"].as_py(), times["max"].as_py()

    def _fresh(self, joined: pa.Table) -> pa.Table:
        """Quotes that are too old are as good as none."""
        age = pc.subtract(
            joined["timestamp"].cast(pa.int64()), joined["quote_timestamp"].cast(pa.int64())
        )
        stale = pc.fill_null(pc.greater(age, self.max_age_us), False)
        first = joined.schema.get_field_index("quote_timestamp")
        for index in range(first, joined.num_columns):
            column = joined.column(index)
            blank = pc.if_else(stale, pa.scalar(None, column.type), column)
            joined = joined.set_column(index, joined.field(index), blank)
        return joined
