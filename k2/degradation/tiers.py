"""Tiers: which symbols matter most when not all can be handled (DEG-06).

They come from a file per asset class, not from code:
`{"crypto": {"quotes": ["USDT"], "tier1": ["BTC"], "tier2": ["ZEC"], "overrides": {"DOGE": 1}}}`.
A symbol has the tier of its own name, else of what is left when one of `quotes` is taken off its
end; any other symbol is tier 3. `k2 tiers` writes the lists by measured volume and leaves the
overrides, which come before them, as they are.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.errors import ConfigError
from k2.topics import ASSET_CLASSES

LOWEST: Final = 3


class TierLists(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One asset class in the file."""

    tier1: list[str] = []
    tier2: list[str] = []
    quotes: list[str] = []
    overrides: dict[str, Literal[1, 2, 3]] = {}


class Tiers:
    """Tiers of the symbols of one asset class."""

    def __init__(self, lists: TierLists) -> None:
        named: dict[str, int] = {**dict.fromkeys(lists.tier2, 2), **dict.fromkeys(lists.tier1, 1)}
        self._named = {**named, **lists.overrides}
        # Longest first: BTCFDUSD is quoted in FDUSD, not in USD.
        self._quotes = sorted(lists.quotes, key=len, reverse=True)
        self._known: dict[str, int] = {}

    def of(self, symbol: str) -> int:
        """1, 2 or 3."""
        tier = self._known.get(symbol)
        if tier is None:
            tier = self._known[symbol] = self._look_up(symbol)
        return tier

    def _look_up(self, symbol: str) -> int:
        named = self._named.get(symbol)
        if named is not None:
            return named
        for quote in self._quotes:
            if symbol.endswith(quote):
                return self._named.get(symbol[: -len(quote)], LOWEST)
        return LOWEST

    def of_all(self, symbols: pa.Array) -> npt.NDArray[np.int8]:
        """int8 per row: the tiers of a column of symbols."""
        encoded = symbols.dictionary_encode()
        tiers = np.array([self.of(name) for name in encoded.dictionary.to_pylist()], np.int8)
        result: npt.NDArray[np.int8] = tiers[encoded.indices.to_numpy()]
        return result


def load_tiers(file: str = "") -> dict[str, Tiers]:
    """Tiers by asset class, from `file` or K2's own list. Raises `ConfigError`."""
    found = load_lists(file)
    return {name: Tiers(found.get(name) or TierLists()) for name in ASSET_CLASSES}


def load_lists(file: str = "") -> dict[str, TierLists]:
    """What the file says, by asset class. Raises `ConfigError`."""
    try:
        raw = (
            Path(file).read_bytes()
            if file
            else resources.files("k2.degradation").joinpath("tiers.json").read_bytes()
        )
        classes = msgspec.json.decode(raw, type=dict[str, TierLists])
    except (OSError, msgspec.MsgspecError) as exc:
        raise ConfigError(
            f"K2_DEGRADATION_TIERS_FILE={file!r} is not a usable tiers file: {exc}; it must be "
            'JSON like {"crypto": {"quotes": ["USDT"], "tier1": ["BTC"], "tier2": ["ZEC"]}}',
            variable="K2_DEGRADATION_TIERS_FILE",
        ) from exc
    unknown = sorted(set(classes) - set(ASSET_CLASSES))
    if unknown:
        raise ConfigError(
            f"K2_DEGRADATION_TIERS_FILE={file!r} names the asset class {unknown[0]!r}; allowed: "
            f"{', '.join(ASSET_CLASSES)}",
            variable="K2_DEGRADATION_TIERS_FILE",
        )
    return classes
