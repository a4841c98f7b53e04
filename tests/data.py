"""Where the recorded captures are: beside the checkout, never copied into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.services.require import require as skip_or_fail

SHARED = Path(__file__).parents[2] / "shared" / "data"
BTC_0808 = SHARED / "binance" / "btcusdt_20240808.gz"
BTC_0809 = SHARED / "binance" / "btcusdt_20240809.gz"
TRADES, QUOTES = 19_904, 73_174
FIRST_TRADE, LAST_TRADE = 3_735_683_259, 3_735_703_162


def require(*paths: Path) -> None:
    """Fail in CI, skip elsewhere, when a capture is not there."""
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        message = f"recorded data is missing: {', '.join(missing)}; it lives beside the checkout"
        skip_or_fail(message)


def btc_oracle() -> dict[str, Any]:
    """Counts and 1-minute candles computed straight from the frames of both BTC captures."""
    path = SHARED / "binance" / "oracle_btcusdt.json"
    require(path)
    return json.loads(path.read_text(encoding="utf-8"))["symbols"]["BTCUSDT"]
