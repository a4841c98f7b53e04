"""Records as the frames an exchange sends: what `k2 exchange serve --capture` plays.

Binance's combined streams, from its documentation of `@trade` and `@bookTicker`. What K2 does not
keep is not invented: the event time is the trade time.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

import orjson

from k2.errors import CaptureError
from k2.replay.records import Record
from k2.times import micros

_EXCHANGE: Final = "BINANCE"


def capture_line(record: Record) -> bytes:
    """`<receive time, ns> <frame>`. Raises `CaptureError` for records of another exchange."""
    row = record.row
    if row["exchange"] != _EXCHANGE:
        raise CaptureError(
            f"a {record.kind} of {row['exchange']} has no frame; only those of {_EXCHANGE} can be "
            "replayed as a capture: give --exchange binance, or another --as"
        )
    recv = dt.datetime.fromisoformat(row["receive_timestamp"])
    recv_us = micros(recv)
    frame = _trade(record) if record.kind == "trade" else _quote(row)
    return b"%d " % (recv_us * 1_000) + orjson.dumps(frame)


def _trade(record: Record) -> dict[str, Any]:
    row, ts_ms = record.row, record.ts_us // 1_000
    data = {
        "e": "trade",
        "E": ts_ms,
        "s": row["symbol"],
        "t": int(row["trade_id"]),
        "p": row["price"],
        "q": row["quantity"],
        "T": ts_ms,
        "m": row["side"] == "SELL",
        "M": True,
    }
    return {"stream": f"{row['symbol'].lower()}@trade", "data": data}


def _quote(row: dict[str, Any]) -> dict[str, Any]:
    data = {
        "u": int(row["quote_id"]),
        "s": row["symbol"],
        "b": row["bid_price"],
        "B": row["bid_quantity"],
        "a": row["ask_price"],
        "A": row["ask_quantity"],
    }
    return {"stream": f"{row['symbol'].lower()}@bookTicker", "data": data}
