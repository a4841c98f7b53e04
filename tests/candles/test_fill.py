"""Candles filled forward: no window missing, nothing invented."""

from __future__ import annotations

from collections.abc import Mapping
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


def fill(
    given: pa.Table,
    *,
    before: Mapping[str, Decimal] | None = None,
    end: int = 0,
    limit: int = 10,
) -> pa.Table:
    end_us = START + end * MINUTE
    return filled_forward(given, "BTCUSDT", before or {}, MINUTE, START, end_us, limit)


def test_holes_have_the_close_before_and_no_volume() -> None:
    found = fill(candles(0, 3))
    assert seen(found) == [
        (3, "13", 1, Decimal(13)),
        (2, "1E+1", 0, None),
        (1, "1E+1", 0, None),
        (0, "1E+1", 1, Decimal(10)),
    ]
    assert found["open"].to_pylist()[1] == found["low"].to_pylist()[1] == Decimal(10)
    assert found["volume"].to_pylist()[1] == 0


def test_windows_go_on_to_the_end_that_was_asked_for() -> None:
    assert [one[0] for one in seen(fill(candles(0), end=2))] == [1, 0]


def test_windows_begin_with_the_price_in_force() -> None:
    found = fill(candles(2), before={"BINANCE": Decimal(7)}, end=4)
    assert seen(found) == [(3, "12", 0, None), (2, "12", 1, Decimal(12)), (1, "7", 0, None),
                           (0, "7", 0, None)]  # fmt: skip
    assert [one[1] for one in seen(fill(candles(5)[:0], before={"KRAKEN": Decimal(7)}, end=1))] == [
        "7"
    ]


def test_the_newest_are_kept_and_each_exchange_has_its_own() -> None:
    both = pa.concat_tables([candles(0, 9), candles(8, exchange="KRAKEN")])
    found = fill(both, limit=4)
    assert [one[0] for one in seen(found)] == [9, 8, 8, 7]
    assert found["exchange"].to_pylist() == ["BINANCE", "BINANCE", "KRAKEN", "BINANCE"]


def test_nothing_stays_nothing() -> None:
    none = candles(0).slice(0, 0)
    assert fill(none).num_rows == 0
