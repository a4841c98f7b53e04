"""The shapes of Binance's frames, strict: a price must be text, an id an integer.

Source: "Trade Streams" and "Individual Symbol Book Ticker Streams" of the Binance spot WebSocket
documentation; "Aggregate Trade Streams" of it and of USD-M futures, whose trades name their type
(`X`) and whose book tickers their times.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

#: Must fit an int64 column.
Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

#: Milliseconds that still fit an int64 as microseconds.
Millis = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]


class Trade(msgspec.Struct, gc=False):
    """E event time, s symbol, t trade id, p price, q quantity, T trade time, m buyer is maker."""

    e: Literal["trade"]
    E: Millis
    s: str
    t: Integer
    p: str
    q: str
    T: Millis
    m: bool
    M: bool | None = None
    X: str = ""


class AggTrade(msgspec.Struct, gc=False):
    """As a trade; a id of the aggregate, f and l first and last trade in it."""

    e: Literal["aggTrade"]
    E: Millis
    s: str
    a: Integer
    p: str
    q: str
    f: Integer
    l: Integer  # noqa: E741 - Binance's name
    T: Millis
    m: bool
    M: bool | None = None
    X: str = ""


class BookTicker(msgspec.Struct, gc=False):
    """u update id, s symbol, b/B best bid price and quantity, a/A best ask, T time (futures)."""

    u: Integer
    s: str
    b: str
    B: str
    a: str
    A: str
    T: Millis | None = None


class TradeFrame(msgspec.Struct, gc=False):
    """A trade in a combined stream."""

    data: Trade


class AggFrame(msgspec.Struct, gc=False):
    """An aggregated trade in a combined stream."""

    data: AggTrade


class BookFrame(msgspec.Struct, gc=False):
    """A book ticker in a combined stream."""

    data: BookTicker


AGG_FRAME: Final = msgspec.json.Decoder(AggFrame)
TRADE_FRAME: Final = msgspec.json.Decoder(TradeFrame)
BOOK_FRAME: Final = msgspec.json.Decoder(BookFrame)
