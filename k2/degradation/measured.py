"""Tiers by measured volume: the top 20 and the top 100 of each asset class.

Turnover in several currencies is compared in US dollars: what is quoted in a dollar or a coin that
stands for one counts as it is, anything else by the last price of its quote asset. What has no such
price is not ranked. Classes other than crypto and its futures are ranked by turnover as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from k2.degradation.tiers import TierLists

TOP: Final = 20
NEXT: Final = 100
#: One row per symbol; floats will do for an order.
VOLUMES_SQL: Final = (
    "select asset_class, symbol, sum(price::double * quantity::double) as turnover, "
    "max_by(price, timestamp)::double as price from trades "
    "where timestamp >= now() - to_days({days}) group by all"
)
_DOLLARS: Final = ("USDT", "USDC", "USD", "FDUSD", "BUSD", "TUSD", "USDP", "DAI")
_PAIRS: Final = ("crypto", "futures")


class Volume(NamedTuple):
    """What a symbol traded: turnover in its quote asset, and its last price."""

    asset_class: str
    symbol: str
    turnover: float
    price: float


class Ranked(NamedTuple):
    """`lists`: the whole file anew; `volumes`: by asset class and name, highest first;
    `unranked`: symbols without a price in dollars."""

    lists: dict[str, TierLists]
    volumes: dict[str, list[tuple[str, float]]]
    unranked: list[str]


def volumes_of(rows: Iterable[Mapping[str, Any]]) -> list[Volume]:
    """Rows of `VOLUMES_SQL`."""
    return [
        Volume(r["asset_class"], r["symbol"], float(r["turnover"]), float(r["price"])) for r in rows
    ]


def rank(volumes: Iterable[Volume], before: Mapping[str, TierLists]) -> Ranked:
    """New lists where something traded, those of `before` elsewhere; overrides and quotes stay."""
    by_class: dict[str, list[Volume]] = defaultdict(list)
    for volume in volumes:
        by_class[volume.asset_class].append(volume)
    lists, ranking, unranked = dict(before), dict[str, list[tuple[str, float]]](), list[str]()
    for name, traded in by_class.items():
        known = before.get(name) or TierLists()
        found, left_out = _ranking(traded, known.quotes if name in _PAIRS else [])
        ranking[name] = found
        unranked += left_out
        names = [one for one, _ in found]
        lists[name] = TierLists(names[:TOP], names[TOP:NEXT], known.quotes, known.overrides)
    return Ranked(lists, ranking, sorted(unranked))


def _ranking(traded: list[Volume], quotes: list[str]) -> tuple[list[tuple[str, float]], list[str]]:
    prices = {one.symbol: one.price for one in traded}
    total: dict[str, float] = defaultdict(float)
    unranked = []
    for one in traded:
        base, quote = _split(one.symbol, quotes)
        rate = _dollars(quote, prices) if quote else 1.0
        if rate is None:
            unranked.append(one.symbol)
        else:
            total[base] += one.turnover * rate
    return sorted(total.items(), key=lambda item: (-item[1], item[0])), unranked


def _split(symbol: str, quotes: list[str]) -> tuple[str, str]:
    for quote in sorted(quotes, key=len, reverse=True):
        if symbol.endswith(quote) and symbol != quote:
            return symbol[: -len(quote)], quote
    return symbol, ""


def _dollars(quote: str, prices: Mapping[str, float]) -> float | None:
    if quote in _DOLLARS:
        return 1.0
    return next((prices[quote + usd] for usd in _DOLLARS if quote + usd in prices), None)
