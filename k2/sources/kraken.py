"""Kraken: the entry in the catalogue, and how each of its two protocols wants to be asked.

Source: "Spot WebSockets API v2" and "v1" of the Kraken documentation, and recorded frames.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from k2.setting_feeds import Kraken
from k2.sources.contract import FrameMapper
from k2.sources.kraken_v1 import KrakenV1Mapper
from k2.sources.kraken_v2 import KrakenV2Mapper
from k2.sources.link import ExchangeProtocol
from k2.sources.plan import SessionSpec, plan_kraken
from k2.sources.rows import Pair

#: Names Kraken uses for what everybody else calls otherwise.
_ASSETS: Final = {"XBT": "BTC", "XDG": "DOGE"}


def pair_of(name: str) -> Pair:
    """`XBT/USD` as K2 writes it: BTCUSD, of BTC and USD."""
    base, _, quote = name.partition("/")
    base, quote = _ASSETS.get(base, base), _ASSETS.get(quote, quote)
    return Pair(base + quote, base, quote)


@dataclass(frozen=True, slots=True)
class KrakenV2Protocol:
    """One subscription per channel. `trade` begins with a snapshot: the newest trades again."""

    symbols: tuple[str, ...]
    channels: tuple[str, ...]

    def url(self, base: str) -> str:
        return base.rstrip("/").removesuffix("/v2") + "/v2"

    def messages(self) -> list[str]:
        return [self._subscribe(channel, n) for n, channel in enumerate(self.channels, start=1)]

    def _subscribe(self, channel: str, number: int) -> str:
        params: dict[str, object] = {"channel": channel, "symbol": list(self.symbols)}
        params["snapshot"] = True
        if channel == "ticker":
            # At every change of the best prices, not only with trades.
            params["event_trigger"] = "bbo"
        return json.dumps({"method": "subscribe", "params": params, "req_id": number})

    def is_data(self, frame: bytes) -> bool:
        return b'"channel":"trade"' in frame or b'"channel":"ticker"' in frame


@dataclass(frozen=True, slots=True)
class KrakenV1Protocol:
    """The arrays of before: trades of all pairs with one subscription."""

    symbols: tuple[str, ...]

    def url(self, base: str) -> str:
        return base.rstrip("/").removesuffix("/v2") + "/"

    def messages(self) -> list[str]:
        pairs, subscription = list(self.symbols), {"name": "trade"}
        return [json.dumps({"event": "subscribe", "pair": pairs, "subscription": subscription})]

    def is_data(self, frame: bytes) -> bool:
        return frame.startswith(b"[")


class KrakenExchange:
    """Kraken's entry in the catalogue of sources."""

    name = "kraken"

    def sessions(self, settings: Kraken) -> list[SessionSpec]:
        return plan_kraken(
            settings.symbols, settings.streams, per_session=settings.symbols_per_session
        )

    def protocol(self, spec: SessionSpec, settings: Kraken) -> ExchangeProtocol:
        if settings.protocol == "v1":
            return KrakenV1Protocol(spec.symbols)
        return KrakenV2Protocol(spec.symbols, spec.streams)

    def mapper(self, spec: SessionSpec, settings: Kraken) -> FrameMapper:
        pairs = _pairs(spec.symbols)
        if settings.protocol == "v1":
            return KrakenV1Mapper(pairs)
        return KrakenV2Mapper(pairs, spec.streams)


def _pairs(names: Sequence[str]) -> dict[str, Pair]:
    """By every name Kraken may use for them: v1 says XBT/USD where v2 says BTC/USD."""
    found = {name: pair_of(name) for name in names}
    found |= {f"{pair.base}/{pair.quote}": pair for pair in found.values()}
    back = {known: theirs for theirs, known in _ASSETS.items()}
    found |= {
        f"{back.get(pair.base, pair.base)}/{back.get(pair.quote, pair.quote)}": pair
        for pair in found.values()
    }
    return found
