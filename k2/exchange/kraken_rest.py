"""Kraken's REST history of trades, as the v2 frames those trades came in.

The answer to `GET /0/public/Trades` lists `[price, volume, seconds, side, order type, misc, id]`.
Prices and volumes are text there and numbers in a frame: the digits stay as they are.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from k2.errors import CaptureError
from k2.sources.symbols import split_symbol

_SIDES = {"b": "buy", "s": "sell"}
_KINDS = {"l": "limit", "m": "market"}
#: The first line of a document, not of a capture.
_FIRST = re.compile(rb'\s*\{\s*($|"error")')


def is_rest(first_line: bytes) -> bool:
    """True when a file beginning so is a REST answer."""
    return bool(_FIRST.match(first_line))


def rest_lines(document: bytes, path: Path) -> Iterator[bytes]:
    """Lines of a capture with one frame per trade. Raises `CaptureError`."""
    try:
        # Floats as text: seconds with seven decimals do not fit one exactly.
        result = json.loads(document, parse_float=str)["result"]
        pairs = {name: rows for name, rows in result.items() if name != "last"}
        for name, rows in pairs.items():
            symbol = "/".join(split_symbol(name.replace("XBT", "BTC")))
            for row in rows:
                yield _line(symbol, row)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CaptureError(
            f"capture {path} is a JSON document, but not an answer of Kraken's Trades: {exc!r}",
            path=str(path),
        ) from exc


def _line(symbol: str, row: list[Any]) -> bytes:
    frame = v2_frame(symbol, row)
    whole, _, fraction = str(row[2]).partition(".")
    return f"{whole}{fraction[:9].ljust(9, '0')} {frame}".encode()


def v2_frame(symbol: str, row: list[Any]) -> str:
    """One row of the answer as a v2 frame."""
    price, volume, time, side, kind, _, ident = row
    whole, _, fraction = str(time).partition(".")
    stamp = dt.datetime.fromtimestamp(int(whole), dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return (
        f'{{"channel":"trade","type":"update","data":[{{"symbol":"{symbol}",'
        f'"side":"{_SIDES[side]}","price":{price},"qty":{volume},"ord_type":"{_KINDS[kind]}",'
        f'"trade_id":{int(ident)},"timestamp":"{stamp}.{fraction[:6].ljust(6, "0")}Z"}}]}}'
    )
