"""Candles filled forward: no window missing, nothing invented."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa

from k2.candles.fill import filled_forward
from k2.candles.fold import of_trades
from k2.candles.versions import shown
from tests.query.rows import T0_US, rows

MINUTE = 60_000_000
START = T0_US - T0_US % MINUTE


def candles(*minutes: int, exchange: str = "BINANCE") -> pa.Table:
    made = rows(
        range(len(minutes)),
        [START + minute * MINUTE for minute in minutes],
        prices=[Decimal(10 + minute) for minute in minutes],
        exchange=exchange,
    )
    return shown(of_trades(made)).drop_columns(["timeframe"])


def seen(table: pa.Table) -> list[tuple[int, str, int, object]]:
    times = table["window_start"].cast(pa.int64()).to_pylist()
    return [
        ((us - START) // MINUTE, str(row["close"].normalize()), row["trade_count"], row["vwap"])
        for us, row in zip(times, table.to_pylist(), strict=True)
    ]


def test_holes_have_the_close_before_and_no_volume() -> None:
    found = filled_forward(candles(0, 3), MINUTE, 0, 10)
    assert seen(found) == [
        (3, "13", 1, Decimal(13)),
        (2, "1E+1", 0, None),
        (1, "1E+1", 0, None),
        (0, "1E+1", 1, Decimal(10)),
    ]
    assert found["open"].to_pylist()[1] == found["low"].to_pylist()[1] == Decimal(10)
    assert found["volume"].to_pylist()[1] == 0


def test_windows_go_on_to_the_end_that_was_asked_for() -> None:
    assert [one[0] for one in seen(filled_forward(candles(0), MINUTE, START + 2 * MINUTE, 9))] == [
        1,
        0,
    ]


def test_the_newest_are_kept_and_each_exchange_has_its_own() -> None:
    both = pa.concat_tables([candles(0, 9), candles(8, exchange="KRAKEN")])
    found = filled_forward(both, MINUTE, 0, 4)
    assert [one[0] for one in seen(found)] == [9, 8, 8, 7]
    assert found["exchange"].to_pylist() == ["BINANCE", "BINANCE", "KRAKEN", "BINANCE"]


def test_nothing_stays_nothing() -> None:
    none = candles(0).slice(0, 0)
    assert filled_forward(none, MINUTE, START, 5).num_rows == 0
