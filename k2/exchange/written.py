"""A block of the made-up market as Binance's frames, all at once in Arrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2.exchange.capture import Frame
from k2.exchange.market import E8, Block, Ints, Quotes, Trades


class FrameWriter:
    """Frames of the combined streams of `symbols`."""

    def __init__(self, symbols: Sequence[str]) -> None:
        trades = [f"{symbol.lower()}@trade" for symbol in symbols]
        quotes = [f"{symbol.lower()}@bookTicker" for symbol in symbols]
        self._streams = [*trades, *quotes]
        self._trade_heads = pa.array(
            f'{{"stream":"{stream}","data":{{"e":"trade","E":' for stream in trades
        )
        self._trade_names = pa.array(f',"s":"{symbol}","t":' for symbol in symbols)
        self._quote_heads = pa.array(f'{{"stream":"{stream}","data":{{"u":' for stream in quotes)
        self._quote_names = pa.array(f',"s":"{symbol}","b":"' for symbol in symbols)

    def frames(self, block: Block, recv_ns: Ints) -> Iterator[Frame]:
        """Frames in their order; `recv_ns` is the time of each."""
        trades, quotes = block.trades, block.quotes
        texts = pa.concat_arrays([self._traded(trades, recv_ns), self._quoted(quotes)])
        order = np.argsort(np.concatenate([trades.frame, quotes.frame]))
        count = len(self._streams) // 2
        streams = np.concatenate([trades.market, quotes.market + count])[order]
        return map(
            Frame,
            recv_ns.tolist(),
            [self._streams[number] for number in streams.tolist()],
            texts.take(pa.array(order)).cast(pa.binary()).to_pylist(),
        )

    def _traded(self, trades: Trades, recv_ns: Ints) -> pa.Array:
        time_ms = _text(recv_ns[trades.frame] // 1_000_000)
        market = pa.array(trades.market)
        maker = pa.array(["false", "true"]).take(pa.array(trades.buyer_is_maker.astype(np.int8)))
        return _joined(
            self._trade_heads.take(market), time_ms, self._trade_names.take(market),
            _text(trades.ident), ',"p":"', *_decimal(trades.price), '","q":"',
            *_decimal(trades.size), '","T":', time_ms, ',"m":', maker, ',"M":true}}',
        )  # fmt: skip

    def _quoted(self, quotes: Quotes) -> pa.Array:
        market = pa.array(quotes.market)
        return _joined(
            self._quote_heads.take(market), _text(quotes.ident), self._quote_names.take(market),
            *_decimal(quotes.bid), '","B":"', *_decimal(quotes.bid_size), '","a":"',
            *_decimal(quotes.ask), '","A":"', *_decimal(quotes.ask_size), '"}}',
        )  # fmt: skip


def _joined(*parts: Any) -> pa.Array:
    return pc.binary_join_element_wise(*parts, "")


def _text(values: Ints) -> pa.Array:
    return pa.array(values).cast(pa.string())


def _decimal(units: Ints) -> tuple[pa.Array, str, pa.Array]:
    """Units of 1e-8 as the exchange writes them, with eight decimals."""
    return _text(units // E8), ".", pc.utf8_lpad(_text(units % E8), 8, "0")
