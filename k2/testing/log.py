"""A log and a checkpoint table in memory, whose acknowledgements come when a test says so."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence

import numpy as np
from faust.types import TP

from k2.transport.batch import Headers, LogBatch, OutBatch


class MemoryLog:
    """What was sent, by partition. Each batch is read as it was written: one record batch.

    A refused batch is not in the log; one whose acknowledgement is held already is.
    """

    def __init__(self, epoch_ms: int = 1_723_161_253_000) -> None:
        self.sent: list[OutBatch] = []
        self._epoch_ms = epoch_ms
        self._batches: dict[TP, list[LogBatch]] = {}
        self._ends: dict[TP, int] = {}
        self._holding = False
        self._held: deque[tuple[asyncio.Future[int], int]] = deque()
        self._refusal: BaseException | None = None

    def send_batch(self, batch: OutBatch) -> asyncio.Future[int]:
        """`k2.steps.publish.BatchProducer`."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self._refusal is not None:
            future.set_exception(self._refusal)
            return future
        base = self._append(batch)
        if self._holding:
            self._held.append((future, base))
        else:
            future.set_result(base)
        return future

    def hold(self) -> None:
        """Acknowledge nothing from now on."""
        self._holding = True

    def release(self, count: int | None = None) -> None:
        """Acknowledge the oldest `count` held batches; without a number all, and hold no more."""
        if count is None:
            self._holding, count = False, len(self._held)
        for _ in range(count):
            future, base = self._held.popleft()
            future.set_result(base)

    def fail(self, error: BaseException) -> None:
        """Answer the oldest held batch with `error`."""
        self._held.popleft()[0].set_exception(error)

    def refuse(self, error: BaseException | None) -> None:
        """Answer every batch from now on with `error`; None: take them again, of a new producer."""
        self._refusal = error

    @property
    def held(self) -> int:
        """Batches that are not acknowledged."""
        return len(self._held)

    def end(self, topic: str, partition: int = 0) -> int:
        """The offset the next record gets."""
        return self._ends.get(TP(topic, partition), 0)

    def partitions(self, topic: str) -> list[int]:
        """Partitions with records, rising."""
        return sorted(tp.partition for tp in self._batches if tp.topic == topic)

    def batches(self, topic: str, partition: int = 0, start: int = 0) -> list[LogBatch]:
        """Record batches from offset `start` on, one by one."""
        found = self._batches.get(TP(topic, partition), [])
        return [_fresh(batch) for batch in found if batch.last_offset >= start]

    def batch(self, topic: str, partition: int = 0, start: int = 0) -> LogBatch:
        """The same as one `LogBatch`, as a reader that was behind gets them."""
        parts = self.batches(topic, partition, start)
        headers: dict[int, Headers] = {}
        rows = 0
        for part in parts:
            headers |= {rows + row: value for row, value in part.headers.items()}
            rows += len(part)
        return LogBatch(
            topic=topic,
            partition=partition,
            offsets=np.concatenate([part.offsets for part in parts]),
            timestamps_ms=np.concatenate([part.timestamps_ms for part in parts]),
            keys=[key for part in parts for key in part.keys],
            values=[value for part in parts for value in part.values],
            headers=headers,
            first_offset=parts[0].first_offset,
            last_offset=parts[-1].last_offset,
            highwater=self.end(topic, partition),
        )

    def values(self, topic: str, partition: int = 0) -> list[bytes | None]:
        """Every value of a partition, oldest first."""
        return [value for batch in self.batches(topic, partition) for value in batch.values]

    def _append(self, batch: OutBatch) -> int:
        self.sent.append(batch)
        tp = TP(batch.topic, batch.partition)
        base, count = self._ends.get(tp, 0), len(batch.values)
        times = batch.timestamps_ms
        self._batches.setdefault(tp, []).append(
            LogBatch(
                topic=batch.topic,
                partition=batch.partition,
                offsets=np.arange(base, base + count, dtype=np.int64),
                timestamps_ms=np.full(count, self._epoch_ms, np.int64) if times is None else times,
                keys=list(batch.keys),
                values=list(batch.values),
                headers={0: batch.headers} if batch.headers else {},
                first_offset=base,
                last_offset=base + count - 1,
                highwater=base + count,
            )
        )
        self._ends[tp] = base + count
        return base


def _fresh(batch: LogBatch) -> LogBatch:
    """The batch without what readers of it keep in its cache."""
    return LogBatch(
        batch.topic,
        batch.partition,
        batch.offsets,
        batch.timestamps_ms,
        batch.keys,
        batch.values,
        batch.headers,
        batch.first_offset,
        batch.last_offset,
        batch.highwater,
    )


class MemoryTable:
    """Checkpoints by partition (`CheckpointTable`); None deletes an entry.

    `stored`: what survives a crash. While `hold` is in force a store is on its way for ever.
    """

    def __init__(self) -> None:
        self.stored: dict[TP, dict[bytes, bytes]] = {}
        self.stores = 0
        self._gate = asyncio.Event()
        self._gate.set()

    def load(self, tp: TP) -> dict[bytes, bytes]:
        """Every entry of a partition."""
        return dict(self.stored.get(tp, {}))

    def store(self, tp: TP, entries: Sequence[tuple[bytes, bytes | None]]) -> Awaitable[None]:
        """Write entries; done once they survive a crash."""
        return self._store(tp, entries)

    def hold(self) -> None:
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()

    async def _store(self, tp: TP, entries: Sequence[tuple[bytes, bytes | None]]) -> None:
        await self._gate.wait()
        self.stores += 1
        kept = self.stored.setdefault(tp, {})
        for name, value in entries:
            if value is None:
                kept.pop(name, None)
            else:
                kept[name] = value
