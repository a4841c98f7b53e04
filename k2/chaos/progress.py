"""How far the lake is, and whether it goes on: a fault is over when rows of after it landed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from faust.types import TP
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from k2.dlq.log import Log
from k2.errors import LogError
from k2.lake.history import vector_at
from k2.topics import parse

_POLL_S = 0.3
#: Right after a fault the log itself may not answer.
_ASK_S = 30.0


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment: per active partition the sequence above which rows are of after it."""

    at_s: float
    beyond: Mapping[TP, int]


class Progress:
    """Watches the lake past all proxies. `log` None: the log cannot be asked while it is in use."""

    def __init__(self, catalog: Catalog, active: Sequence[TP], log: Log | None) -> None:
        self._catalog = catalog
        self._active = list(active)
        self._log = log

    def table(self, name: str) -> Table:
        return self._catalog.load_table(f"market_data.{name}")

    def landed(self) -> dict[TP, int]:
        """Highest platform_sequence in the lake by partition of the log of record; blocking."""
        found = dict.fromkeys(self._active, -1)
        for name in sorted({parse(tp.topic)[0].data_type for tp in self._active}):
            metadata = self.table(name).metadata
            vector = vector_at(metadata, metadata.current_snapshot())
            for place, position in vector.entries.items():
                tp = TP(parse(place.topic)[0].log, place.partition)
                if tp in found and place.topic.endswith(".validated"):
                    found[tp] = max(found[tp], position.sequence)
        return found

    async def mark(self) -> Mark:
        """Now: what is acknowledged (or, with an embedded log, in the lake) is of before."""
        at_s = time.monotonic()
        if self._log is None:
            return Mark(at_s, await asyncio.to_thread(self.landed))
        bounds = await self._bounds(self._log)
        return Mark(at_s, {tp: end - 1 for tp, (_, end) in bounds.items()})

    async def _bounds(self, log: Log) -> dict[TP, tuple[int, int]]:
        deadline = time.monotonic() + _ASK_S
        while True:
            try:
                return await log.bounds(self._active)
            except LogError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_POLL_S)

    async def behind(self, mark: Mark) -> list[TP]:
        """Partitions of which nothing that came after the mark has landed."""
        landed = await asyncio.to_thread(self.landed)
        return [tp for tp, sequence in mark.beyond.items() if landed[tp] <= sequence]

    async def recovered(self, mark: Mark, timeout_s: float) -> float | None:
        """Seconds from the mark until rows of after it landed everywhere; None: not in time."""
        deadline = time.monotonic() + timeout_s
        while await self.behind(mark):
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(_POLL_S)
        return time.monotonic() - mark.at_s
