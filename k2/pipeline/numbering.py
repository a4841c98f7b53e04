"""How each feed numbers its records, with the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from k2.pipeline.continuity import Policy

#: How the ids of a feed run, by exchange and data type; others have no order.
POLICIES: Final[Mapping[tuple[str, str], Policy]] = {
    ("binance", "trades"): Policy.CONTIGUOUS,
    ("binance", "agg_trades"): Policy.CONTIGUOUS,
    ("binance", "quotes"): Policy.RISING,
    # Aggregates are numbered like spot's. Its trades leave single ids out by themselves, even in
    # the exchange's own files (docs/adding-an-exchange.md): no gaps are told of them.
    ("binance_futures", "agg_trades"): Policy.CONTIGUOUS,
    ("binance_futures", "trades"): Policy.RISING,
    ("binance_futures", "quotes"): Policy.RISING,
    # Trade ids of a recorded session run without a hole in all of its ten products; a ticker has
    # the sequence number of its product, which counts more than tickers.
    ("coinbase", "trades"): Policy.CONTIGUOUS,
    ("coinbase", "quotes"): Policy.RISING,
    # 1,000 trades of the REST history: ids 10218208 to 10219207, none missing. Tickers have none.
    ("kraken", "trades"): Policy.CONTIGUOUS,
}

#: Feeds that number everything: an id that is no number is a mistake.
NUMBERED: Final = frozenset(POLICIES) - {("kraken", "trades")}
