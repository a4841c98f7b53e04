"""Kraken's REST history of trades, as the v2 frames those trades came in.

See `k2.sources.kraken_history` for what the answer lists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from k2.errors import CaptureError
from k2.sources.kraken_history import nanoseconds, v2_frame
from k2.sources.symbols import split_symbol

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
    return f"{nanoseconds(str(row[2]))} {frame}".encode()
