"""Kraken's history of trades: by time over REST, by id to whoever asks here.

Source: "Get Recent Trades" of the Kraken REST documentation and a recorded answer. It lists
`[price, volume, seconds, side, order type, misc, id]`, oldest first, from `since` (nanoseconds) on.
Prices and volumes are text there and numbers in a frame: the digits stay as they are.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import Any, Final
from urllib.parse import urlencode

from k2.errors import SourceError
from k2.setting_feeds import Feed
from k2.sources.page import PAGE, HistoryFrame, Wanted

#: What the REST interface calls what everybody else calls otherwise.
_ASSETS: Final = {"BTC": "XBT", "DOGE": "XDG"}
_SIDES: Final = {"b": "buy", "s": "sell"}
_KINDS: Final = {"l": "limit", "m": "market"}
_FIELDS: Final = 7


def rest_pair(symbol: str) -> str:
    """`BTC/USD` as the REST interface names it: XBTUSD."""
    return "".join(_ASSETS.get(part, part) for part in symbol.split("/"))


def nanoseconds(seconds: str) -> int:
    """Seconds as text with up to nine decimals; a float can't hold them."""
    whole, _, fraction = seconds.partition(".")
    return int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))


def v2_frame(symbol: str, row: list[Any]) -> str:
    """One row of the answer as the v2 frame it came in. Raises what a row of another shape does."""
    price, volume, time, side, kind, _, ident = row
    whole, _, fraction = str(time).partition(".")
    stamp = dt.datetime.fromtimestamp(int(whole), dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return (
        f'{{"channel":"trade","type":"update","data":[{{"symbol":"{symbol}",'
        f'"side":"{_SIDES[side]}","price":{price},"qty":{volume},"ord_type":"{_KINDS[kind]}",'
        f'"trade_id":{int(ident)},"timestamp":"{stamp}.{fraction[:6].ljust(6, "0")}Z"}}]}}'
    )


class KrakenHistory:
    """`GET /0/public/Trades?pair=&since=`: a page begins where the one before ended."""

    live = "https://api.kraken.com"
    by_time = True

    def serves(self, settings: Feed) -> bool:
        """The arrays of v1 have no ids to ask for."""
        return getattr(settings, "protocol", "v2") == "v2"

    def url(self, wanted: Wanted) -> str:
        # One nanosecond less: whether `since` itself is among the answer is not said.
        query = {"pair": rest_pair(wanted.symbol), "since": max(0, wanted.since_ns - 1)}
        return f"/0/public/Trades?{urlencode({**query, 'count': PAGE})}"

    def frames(self, symbol: str, content: bytes) -> list[HistoryFrame]:
        try:
            # Floats as text, for the digits of times.
            answer = json.loads(content, parse_float=str)
            errors, result = answer["error"], answer["result"] if not answer["error"] else {}
            if errors:
                raise SourceError(f"the history answers {', '.join(map(str, errors))}")
            (rows,) = (rows for name, rows in result.items() if name != "last")
            return [_frame(symbol, row) for row in rows]
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise SourceError(f"the history is no list of trades: {content[:200]!r}") from exc


def _frame(symbol: str, row: list[Any]) -> HistoryFrame:
    if len(row) < _FIELDS:
        raise ValueError("a trade without an id")
    return HistoryFrame(int(row[6]), v2_frame(symbol, row).encode(), nanoseconds(str(row[2])))
