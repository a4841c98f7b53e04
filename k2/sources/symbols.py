"""Base and quote asset of a symbol without separator."""

from __future__ import annotations

#: In this order (spec ING-04): USDT before BTC, so that BTCUSDT is quoted in USDT.
QUOTE_SUFFIXES = (
    "USDT", "USDC", "BUSD", "TUSD", "USDP", "BTC", "ETH", "BNB",
    "EUR", "GBP", "AUD", "USD", "TRY", "ZAR", "UAH", "NGN",
)  # fmt: skip

_FALLBACK_CHARACTERS = 4


def split_symbol(symbol: str) -> tuple[str, str]:
    """(base, quote) of e.g. `BTCUSDT`; with no known suffix the last four characters are the quote.

    A suffix must leave a base: `USDT` alone is not `"" + USDT` but falls through.
    """
    for suffix in QUOTE_SUFFIXES:
        if symbol.endswith(suffix) and len(symbol) > len(suffix):
            return symbol[: -len(suffix)], suffix
    return symbol[:-_FALLBACK_CHARACTERS], symbol[-_FALLBACK_CHARACTERS:]
