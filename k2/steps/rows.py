"""Rows of the lake from a batch of a validated (or gaps, or deferred) topic."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.candles.fold import TRADE_COLUMNS
from k2.codec.avro import Codec
from k2.errors import DecodeError
from k2.pipeline.cover import CoverReader, Group
from k2.records import Span, lake_columns, placed, to_lake
from k2.steps.row_cache import RowCache
from k2.topics import parse
from k2.transport.batch import LogBatch

#: Above it Arrow and the codec, which hold no interpreter lock, are worth a thread: meanwhile the
#: loop unpacks what comes next.
_INLINE_ROWS = 500


@dataclass(frozen=True, slots=True)
class RowPart:
    """New rows of one incarnation of the log of record, and the position after them.

    `next_offset`: of the topic read; `last`: highest offset of the log of record covered.
    """

    epoch: str
    rows: pa.RecordBatch
    next_offset: int
    last: int


class RowReader:
    """Turns batches of one kind (`trades`, `quotes`, `gaps`) into rows of its table.

    `cache`: shared with whoever else reads the same records. `added`: columns the table has beyond
    K2's.
    """

    def __init__(
        self, kind: str, codec: Codec, cache: RowCache, added: Sequence[pa.Field] = ()
    ) -> None:
        self._kind = kind
        self._codec = codec
        self._cache = cache
        self._added = added

    def read(self, batch: LogBatch, cover: CoverReader) -> list[RowPart]:
        """What of `batch` is new to `cover`, which moves on. Raises `DecodeError`."""
        return [self._part(batch, groups) for groups in _by_epoch(cover.read(batch))]

    async def read_async(self, batch: LogBatch, cover: CoverReader) -> list[RowPart]:
        """`read` for the event loop: what takes long or may ask the registry runs in a thread."""
        if len(batch) > _INLINE_ROWS or self._codec.may_ask(batch.values):
            return await asyncio.to_thread(self.read, batch, cover)
        return self.read(batch, cover)

    def _part(self, batch: LogBatch, groups: list[Group]) -> RowPart:
        first, last = groups[0], groups[-1]
        sequences = np.concatenate([group.sequences for group in groups])
        # Epoch and offsets name the records, wherever and in whatever pieces they are read.
        key = (batch.topic, batch.partition, first.epoch, sequences.tobytes(), len(self._added))
        rows = self._cache.rows(key, lambda: self._placed(batch, groups, sequences))
        return RowPart(first.epoch, rows, last.next_offset, last.last)

    def _placed(
        self, batch: LogBatch, groups: list[Group], sequences: npt.NDArray[np.int64]
    ) -> pa.RecordBatch:
        span = Span(
            epoch=groups[0].epoch,
            topic=parse(batch.topic)[0].log,
            partition=batch.partition,
            sequences=sequences,
        )
        rows = self._shared(batch, groups)
        if rows is not None:
            return placed(self._kind, rows, added=self._added, **span)
        values = [value for g in groups for value in batch.values[g.start : g.stop]]
        decoded = self._codec.decode(values)
        if decoded.bad:
            first = decoded.bad[0]
            raise DecodeError(
                f"{batch.topic}[{batch.partition}]: the record of log offset "
                f"{int(sequences[first.row])} does not decode: {first.reason}, {first.detail}"
            )
        return to_lake(self._kind, decoded.batch, added=self._added, **span)

    def _shared(self, batch: LogBatch, groups: list[Group]) -> pa.RecordBatch | None:
        """The groups' rows out of those of all batches that came with this one."""
        # A gap's record says itself where it is from.
        if batch.company is None or self._kind == "gaps":
            return None
        key = (self._kind, tuple(field.name for field in self._added))
        shared = batch.company.share(batch, key, self._all)
        if shared is None:
            return None
        whole, at = shared
        parts = [whole.slice(at + g.start, g.stop - g.start) for g in groups if g.stop > g.start]
        return parts[0] if len(parts) == 1 else pa.concat_batches([whole.slice(0, 0), *parts])

    def _all(self, values: list[bytes | None]) -> pa.RecordBatch | None:
        decoded = self._codec.decode_fast(values)
        return None if decoded is None else lake_columns(self._kind, decoded.batch, self._added)


class CandleRows(RowReader):
    """The same for candles: of a trade only what they are folded from."""

    def read(self, batch: LogBatch, cover: CoverReader) -> list[RowPart]:
        """What of `batch` is new to `cover`, which moves on. Raises `DecodeError`."""
        return [
            replace(part, rows=part.rows.select(TRADE_COLUMNS))
            for part in super().read(batch, cover)
        ]


def _by_epoch(groups: Iterator[Group]) -> Iterator[list[Group]]:
    """Neighbouring groups of one incarnation: decoded in one call."""
    held: list[Group] = []
    for group in groups:
        if held and held[-1].epoch != group.epoch:
            yield held
            held = []
        held.append(group)
    if held:
        yield held
