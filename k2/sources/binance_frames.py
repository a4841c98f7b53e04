"""The shapes of Binance's spot frames, strict: a price must be text, an id an integer.

Source: "Trade Streams" and "Individual Symbol Book Ticker Streams" of the Binance spot WebSocket
documentation.
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


class BookTicker(msgspec.Struct, gc=False):
    """u update id, s symbol, b/B best bid price and quantity, a/A best ask."""

    u: Integer
    s: str
    b: str
    B: str
    a: str
    A: str


class TradeFrame(msgspec.Struct, gc=False):
    """A trade in a combined stream."""

    data: Trade


class BookFrame(msgspec.Struct, gc=False):
    """A book ticker in a combined stream."""

    data: BookTicker


TRADE_FRAME: Final = msgspec.json.Decoder(TradeFrame)
BOOK_FRAME: Final = msgspec.json.Decoder(BookFrame)
