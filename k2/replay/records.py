"""Records of several tables as one series, in the order of their exchange times."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from k2.client.rows import Rows
from k2.errors import LakeError
from k2.query.cold import TIE_BREAK
from k2.query.encode import JSON_COLUMNS, rows_of


@dataclass(frozen=True, slots=True, order=True)
class Record:
    """One record. `key`: time in µs, then its place. `kind`: `trade` or `quote`."""

    key: tuple[Any, ...]
    kind: str
    row: dict[str, Any] = field(compare=False)

    @property
    def ts_us(self) -> int:
        return int(self.key[0])

    @property
    def shown(self) -> dict[str, Any]:
        """What is sent of it: `type` and the columns of its table."""
        return {"type": self.kind, **self.row}


async def records(kind: str, batches: AsyncIterator[Rows]) -> AsyncIterator[Record]:
    """The records of one table, one by one; a batch is held at a time.

    Raises `LakeError` for a batch with rows missing: what follows would look like all there is.
    """
    sent = 0
    async for batch in batches:
        if batch.partial:
            raise LakeError(
                f"the lake's answer was cut short after {sent:,} records of type {kind}; ask for "
                "less time at once, or raise K2_QUERY_TIMEOUT_S",
                records=sent,
            )
        times = batch.table["timestamp"].cast(pa.int64()).to_pylist()
        for ts_us, row in zip(times, rows_of(batch.table, parse_json=JSON_COLUMNS), strict=True):
            yield Record((ts_us, *(row[name] for name in TIE_BREAK)), kind, row)
        sent += len(batch)


async def merged(sources: Sequence[AsyncIterator[Record]]) -> AsyncIterator[Record]:
    """Ordered series as one ordered series; a record of each is held."""
    heap: list[tuple[Record, int]] = []
    for number, source in enumerate(sources):
        if (first := await anext(source, None)) is not None:
            heap.append((first, number))
    heapq.heapify(heap)
    while heap:
        record, number = heap[0]
        yield record
        following = await anext(sources[number], None)
        if following is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (following, number))
