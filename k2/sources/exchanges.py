"""The catalogue of exchanges with a feed: adding one is its module, an entry here, its topics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from k2.sources.binance import BinanceExchange, BinanceFuturesExchange
from k2.sources.coinbase import CoinbaseExchange
from k2.sources.contract import Exchange
from k2.sources.kraken import KrakenExchange

EXCHANGES: Final[Mapping[str, Exchange]] = {
    exchange.name: exchange
    for exchange in (
        BinanceExchange(),
        BinanceFuturesExchange(),
        CoinbaseExchange(),
        KrakenExchange(),
    )
}
