"""Kraken v1 arrays to columns: every trade of `[channel id, [trade, ...], "trade", "XBT/USD"]`.

A trade is `[price, volume, time, side, order type, misc]`, all text.

These trades have no id. Theirs is `{time in µs}-{hash of what the trade says}-{n}`, `n` counting
equal trades of one array, so that a frame that comes again gives the same ids and two equal fills
stay two.
"""

from __future__ import annotations

import zlib
from collections import Counter
from typing import Any, Final

import msgspec

from k2.sources.rows import Pair, RowMapper, Rows, TradeRow

_QUIET: Final = frozenset({"heartbeat", "systemStatus", "pong"})
_SIDES: Final = {"b": "BUY", "s": "SELL"}
_ORDER_TYPES: Final = {"l": "limit", "m": "market"}

_Trade = tuple[str, str, str, str, str, str]
_TRADES: Final = msgspec.json.Decoder(tuple[int, list[_Trade], str, str])


class KrakenV1Mapper(RowMapper):
    """Maps the trade frames of the given pairs, by Kraken's names."""

    exchange = "KRAKEN"

    def _sort(self, data: bytes, recv_us: int, rows: Rows) -> None:
        if not data.startswith(b"["):
            self._sort_event(msgspec.json.decode(data), data, recv_us, rows)
            return
        channel = data[data.rfind(b"]") + 1 :].split(b'"')[1:2]
        if channel and channel[0] != b"trade":
            rows.mapped.ignored[channel[0].decode("utf-8", "replace")[:40]] += 1
            return
        channel_id, trades, _, name = _TRADES.decode(data)
        pair = self._pair_of(name, data, recv_us, rows)
        if pair is None:
            return
        made = _rows_of(trades, pair, channel_id, recv_us)
        if isinstance(made, str):
            rows.refuse("bad_fields", data, made, recv_us)
        else:
            rows.trades += made

    def _sort_event(self, event: Any, data: bytes, recv_us: int, rows: Rows) -> None:
        if not isinstance(event, dict) or "event" not in event:
            rows.refuse("unknown_frame", data, "neither an array nor an event", recv_us)
        elif event["event"] in _QUIET or event.get("status") in {"subscribed", "unsubscribed"}:
            rows.mapped.control += 1
        else:
            rows.refuse("exchange_error", data, str(event.get("errorMessage", event)), recv_us)


def _rows_of(
    trades: list[_Trade], pair: Pair, channel_id: int, recv_us: int
) -> list[TradeRow] | str:
    """The trades of one array; text saying what is wrong with the first that is none."""
    made, seen = [], Counter[str]()
    for trade in trades:
        price, volume, time, side, order_type, misc = trade
        time_us = _micros(time)
        if time_us is None or side not in _SIDES:
            return f"no trade: {trade!r}"
        said = f"{time_us}-{zlib.crc32('/'.join((pair.symbol, *trade)).encode()):08x}"
        vendor = {
            "channel_id": str(channel_id),
            "order_type": _ORDER_TYPES.get(order_type, order_type),
            **({"misc": misc} if misc else {}),
        }
        made.append(
            TradeRow(
                pair,
                f"{said}-{seen[said]}",
                time_us,
                recv_us,
                price,
                volume,
                _SIDES[side],
                None,
                vendor,
            )
        )
        seen[said] += 1
    return made


def _micros(text: str) -> int | None:
    """Seconds with six decimals as microseconds; never through a float."""
    whole, _, fraction = text.partition(".")
    if not (whole.isascii() and whole.isdigit() and len(whole) < 12):
        return None
    if fraction and not (fraction.isascii() and fraction.isdigit()):
        return None
    return int(whole) * 1_000_000 + int(fraction[:6].ljust(6, "0") or 0)
