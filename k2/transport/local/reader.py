"""Reading the embedded log beside the app's consumer, in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from faust.types import TP

from k2.errors import LogError
from k2.transport.batch import LogBatch
from k2.transport.local.consumer import batches
from k2.transport.local.follower import PARTITION_BYTES, Follower
from k2.transport.local.segment import Chunk
from k2.transport.local.store import LogStore
from k2.transport.positions import check_position


class EmbeddedReader:
    """`LogReader` of the embedded log.

    `acquire` and `release` share the open store; `max_records` bounds one `LogBatch`.
    """

    def __init__(
        self,
        acquire: Callable[[], LogStore],
        release: Callable[[LogStore], None],
        max_records: int,
    ) -> None:
        self._acquire = acquire
        self._release = release
        self._max_records = max_records
        self._store: LogStore | None = None
        self._follower = Follower()
        self._highwaters: dict[TP, int] = {}

    async def start(self, positions: Mapping[TP, int]) -> None:
        if self._store is None:
            self._store = await asyncio.to_thread(self._acquire)
        logs = {tp: self._store.partition(tp.topic, tp.partition) for tp in positions}
        for tp, log in logs.items():
            check_position(tp, positions[tp], log.start_offset, log.end_offset)
        self._highwaters = {}
        self._follower.follow(logs, positions)

    async def getmany(self, timeout_s: float) -> list[LogBatch]:
        if self._store is None:
            raise LogError("the reader is not started; call `start` with the positions first")
        follower = self._follower
        ready = await follower.wait(follower.positions.keys(), timeout_s)
        chunks = await follower.read(dict.fromkeys(ready, PARTITION_BYTES))
        self._highwaters.update({tp: follower.log(tp).end_offset for tp in chunks})
        if not chunks:
            return []
        found = self._unpack(chunks) if _small(chunks) else await self._unpack_in_thread(chunks)
        for batch in found:
            follower.positions[TP(batch.topic, batch.partition)] = batch.last_offset + 1
        return found

    async def _unpack_in_thread(self, chunks: Mapping[TP, Chunk]) -> list[LogBatch]:
        return await asyncio.to_thread(self._unpack, chunks)

    def _unpack(self, chunks: Mapping[TP, Chunk]) -> list[LogBatch]:
        # The first piece only: what follows it is read again, from the page cache.
        return [
            batches(tp, self.position(tp), chunk, self._highwaters[tp], self._max_records)[
                0
            ].unpack()
            for tp, chunk in chunks.items()
        ]

    def position(self, tp: TP) -> int:
        return self._follower.positions[tp]

    def highwater(self, tp: TP) -> int | None:
        return self._highwaters.get(tp)

    async def stop(self) -> None:
        self._follower.close()
        store, self._store = self._store, None
        if store is not None:
            await asyncio.to_thread(self._release, store)


def _small(chunks: Mapping[TP, Chunk]) -> bool:
    return sum(len(chunk.data) for chunk in chunks.values()) < 65_536
