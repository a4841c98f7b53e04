"""The simulated market in Coinbase's words: the same trades and quotes, other frames."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import lru_cache

from k2.exchange.capture import Frame
from k2.exchange.feed import Feed
from k2.sources.binance_frames import BOOK_FRAME, TRADE_FRAME
from k2.sources.symbols import split_symbol


class AsCoinbase:
    """`feed`, which speaks Binance's protocol, as Coinbase's `matches` and `ticker`."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def symbols(self) -> tuple[str, ...]:
        return self._feed.symbols()

    def segments(self) -> Iterator[Iterator[Frame]]:
        return (map(_translated, segment) for segment in self._feed.segments())


@lru_cache(maxsize=4_096)
def product_of(symbol: str) -> str:
    """BTC-USDT of BTCUSDT."""
    return "-".join(split_symbol(symbol))


def _translated(frame: Frame) -> Frame:
    if frame.stream.endswith("@trade"):
        trade = TRADE_FRAME.decode(frame.data).data
        product = product_of(trade.s)
        # Coinbase names the side of the maker.
        side = "buy" if trade.m else "sell"
        text = (
            f'{{"type":"match","trade_id":{trade.t},"side":"{side}","size":"{trade.q}",'
            f'"price":"{trade.p}","product_id":"{product}","sequence":{trade.t},'
            f'"time":"{_iso(trade.T)}"}}'
        )
        return Frame(frame.recv_ns, f"matches:{product}", text.encode())
    book = BOOK_FRAME.decode(frame.data).data
    product = product_of(book.s)
    text = (
        f'{{"type":"ticker","sequence":{book.u},"product_id":"{product}","best_bid":"{book.b}",'
        f'"best_bid_size":"{book.B}","best_ask":"{book.a}","best_ask_size":"{book.A}",'
        f'"time":"{_iso(frame.recv_ns // 1_000_000)}"}}'
    )
    return Frame(frame.recv_ns, f"ticker:{product}", text.encode())


def _iso(time_ms: int) -> str:
    return f"{_second(time_ms // 1_000)}.{time_ms % 1_000:03d}000Z"


@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
