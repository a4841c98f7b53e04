"""What questions are made of, as the server takes them."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Literal

Symbols = str | Iterable[str] | None
Order = Literal["asc", "desc"]
Table = Literal["trades", "quotes"]
Side = Literal["BUY", "SELL", "SELL_SHORT", "UNKNOWN"]
#: Exact: a float has been rounded already, and the server refuses it.
Exact = Decimal | int | str


def names(given: str | Iterable[str] | None) -> list[str] | None:
    """One name or several."""
    if given is None:
        return None
    return [given] if isinstance(given, str) else sorted(given)


def listed(given: Iterable[str] | None) -> list[str] | None:
    """Several names whose order counts."""
    return None if given is None else list(given)


def id_text(snapshot: int | str | None) -> str | None:
    """64-bit ids do not survive JSON readers with floating-point numbers."""
    return None if snapshot is None else str(snapshot)
