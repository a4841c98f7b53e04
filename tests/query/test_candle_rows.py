"""Candles folded in Arrow are those DuckDB computes, to the last digit and in the same order."""

from __future__ import annotations

import random
from decimal import Decimal

import pyarrow as pa
import pytest

from k2.query import cold_rows
from k2.query.candle_rows import CandleRows
from k2.query.candles import CANDLES, Intervals
from k2.timeframes import FRAMES_US
from tests.query.conftest import Platform
from tests.query.rows import T0_US, place, rows

_HOUR_US = 3_600_000_000


def _trades(chance: random.Random, first: int, count: int) -> pa.Table:
    made = rows(
        range(first, first + count),
        [T0_US + chance.randrange(30 * _HOUR_US) // 1000 * 1000 for _ in range(count)],
        symbols=[chance.choice(("AUSDT", "BUSDT")) for _ in range(count)],
        exchange=chance.choice(("BINANCE", "KRAKEN")),
        prices=[Decimal(chance.randrange(1, 10**9)).scaleb(-10) for _ in range(count)],
        quantities=[Decimal(chance.choice((0, 1, 7, 10**15))).scaleb(-10) for _ in range(count)],
    )
    codes = [chance.choice((None, [], ["3"], ["1", "9"])) for _ in range(count)]
    column = made.schema.get_field_index("trade_conditions")
    field = made.schema.field(column)
    return made.set_column(column, field, pa.array(codes, field.type))


@pytest.mark.parametrize("folded", [True, False])
async def test_they_equal_the_sql(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, folded: bool
) -> None:
    chance = random.Random(3)
    for first in range(0, 400, 100):
        platform.commit(_trades(chance, first, 100), place())
    platform.refresh()
    platform.tails["trades"].start(place(), 399)
    platform.produce(_trades(chance, 400, 50), place())
    monkeypatch.setattr(cold_rows, "MAX_ROWS", 10**6 if folded else 0)
    for interval in ("1m", "15m", "1h", "1d"):
        for symbols in ({"AUSDT"}, {"AUSDT", "BUSDT"}, {"NOPE"}):
            for exchange, exclude in ((None, None), ("KRAKEN", None), (None, frozenset("39"))):
                asked = Intervals(
                    frozenset(symbols), FRAMES_US[interval], T0_US + _HOUR_US,
                    T0_US + 29 * _HOUR_US, exchange, exclude,
                )  # fmt: skip
                question = CandleRows(asked, 25)
                found = await platform.engine.call("ohlcv", ("trades",), question)
                bounds = {"trades": question.bounds}
                wanted = await platform.engine.fixed(
                    "ohlcv", CANDLES, asked.values, bounds, limit=25
                )
                assert found.rows.schema.equals(wanted.rows.schema)
                assert found.rows.to_pylist() == wanted.rows.to_pylist()
                assert found.as_of == wanted.as_of
