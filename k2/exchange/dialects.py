"""The exchanges the server can be, and which of them a capture is of."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Final

from k2.errors import CaptureError
from k2.exchange.binance import BinanceDialect
from k2.exchange.coinbase import CoinbaseDialect
from k2.exchange.dialect import Dialect
from k2.exchange.feed import Feed
from k2.exchange.kraken import KrakenV1Dialect, KrakenV2Dialect

DIALECTS: Final[Mapping[str, Dialect]] = {
    dialect.name: dialect
    for dialect in (BinanceDialect(), CoinbaseDialect(), KrakenV2Dialect(), KrakenV1Dialect())
}
#: Frames looked at to tell whose they are: a capture begins with answers and heartbeats.
_LOOK: Final = 5_000


def dialect_of(feed: Feed) -> Dialect:
    """The dialect of a feed's frames. Raises `CaptureError` when none of the first has a stream."""
    for segment in feed.segments():
        for frame in islice(segment, _LOOK):
            if frame.stream:
                return DIALECTS[_name_of(frame.data)]
    raise CaptureError(
        "the capture has no frame of an exchange K2 knows "
        f"({', '.join(DIALECTS)}); say which it is with --exchange"
    )


def _name_of(data: bytes) -> str:
    if data.startswith(b"["):
        return "kraken-v1"
    if data.startswith(b'{"channel":'):
        return "kraken"
    return "binance" if data.startswith(b'{"stream"') or b'"stream"' in data[:40] else "coinbase"
