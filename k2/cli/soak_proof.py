"""What became of every trade id of a soak: in the lake once, or disclosed as a gap."""

from __future__ import annotations

from typing import Any

import numpy as np
from pyiceberg.catalog import Catalog

from k2.cli.demo.count import stored_ids
from k2.lake.catalog import open_catalog
from k2.pipeline.open_gaps import open_ranges
from k2.settings import Settings


def prove(settings: Settings, played: dict[str, Any]) -> dict[str, int]:
    """Trade ids the market played, against the lake: stored, disclosed as a gap, or neither.

    From the first id stored to the last: what was played before the session stood was never asked
    for, and the last ones may have been on their way when the market closed.
    """
    catalog = open_catalog(settings)
    stored, gone = stored_ids(catalog, "trades", "trade_id"), _open_ranges(catalog)
    proof = dict.fromkeys(("played", "stored", "disclosed", "undisclosed", "doubled"), 0)
    for stream in played:
        symbol, _, channel = stream.upper().partition("@")
        if channel != "TRADE" or symbol not in stored:
            continue
        ids = np.unique(stored[symbol])
        breaks = np.flatnonzero(np.diff(ids) > 1)
        missing = list(zip((ids[breaks] + 1).tolist(), (ids[breaks + 1] - 1).tolist(), strict=True))
        disclosed = sum(overlap(one, gone.get(symbol, [])) for one in missing)
        proof["played"] += int(ids[-1] - ids[0]) + 1
        proof["stored"] += len(stored[symbol])
        proof["disclosed"] += disclosed
        proof["undisclosed"] += sum(last - first + 1 for first, last in missing) - disclosed
        proof["doubled"] += len(stored[symbol]) - len(ids)
    return proof


def _open_ranges(catalog: Catalog) -> dict[str, list[tuple[int, int]]]:
    """Ids disclosed as missing, by symbol."""
    rows = catalog.load_table("market_data.gaps").scan().to_arrow().to_pylist()
    found: dict[str, list[tuple[int, int]]] = {}
    ranges = open_ranges(row for row in rows if row["data_type"] == "trades")
    for (*_, symbol), spans in ranges.items():
        found.setdefault(symbol, []).extend(spans)
    return found


def overlap(one: tuple[int, int], others: list[tuple[int, int]]) -> int:
    """How many ids of `one` are in `others`, which do not overlap; all ends belong to them."""
    return sum(max(0, min(one[1], last) - max(one[0], first) + 1) for first, last in others)
