"""Small feeds made of lists."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from k2.exchange.capture import Frame
from k2.exchange.server import ExchangeServer

START_NS = 1_723_161_254_000_000_000


def trade(ident: int, symbol: str = "BTCUSDT", at_ms: int = 0, **changes: Any) -> Frame:
    stream = f"{symbol.lower()}@trade"
    time_ms = START_NS // 1_000_000 + at_ms
    data = (
        f'{{"stream":"{stream}","data":{{"e":"trade","E":{time_ms},"s":"{symbol}","t":{ident},'
        f'"p":"61837.63000000","q":"0.02000000","T":{time_ms},"m":true,"M":true}}}}'
    )
    return Frame(START_NS + at_ms * 1_000_000, stream, data.encode())


def book(ident: int, symbol: str = "BTCUSDT", at_ms: int = 0) -> Frame:
    stream = f"{symbol.lower()}@bookTicker"
    data = (
        f'{{"stream":"{stream}","data":{{"u":{ident},"s":"{symbol}","b":"61837.63000000",'
        '"B":"3.78826000","a":"61837.64000000","A":"1.54698000"}}'
    )
    return Frame(START_NS + at_ms * 1_000_000, stream, data.encode())


class ListFeed:
    """Frames from lists, one per segment."""

    def __init__(self, *segments: list[Frame]) -> None:
        self._segments = segments

    def segments(self) -> Iterator[Iterator[Frame]]:
        return (iter(segment) for segment in self._segments)

    def symbols(self) -> tuple[str, ...]:
        return ("BTCUSDT",)


@asynccontextmanager
async def serving(feed: Any, **options: Any) -> AsyncIterator[ExchangeServer]:
    server = ExchangeServer(feed, **{"speed": None, **options})
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
