"""Rows of the lake from a batch of a validated (or gaps, or deferred) topic."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa

from k2.candles.fold import TRADE_COLUMNS
from k2.codec.avro import Codec
from k2.errors import DecodeError
from k2.pipeline.cover import CoverReader, Group
from k2.records import to_lake
from k2.topics import parse
from k2.transport.batch import LogBatch

#: Above it Arrow and the codec, which hold no interpreter lock, are worth a thread: meanwhile the
#: loop unpacks what comes next.
_INLINE_ROWS = 500
#: In a batch's cache: the rows decoded so far, and the lock around decoding.
_ROWS: Final = "k2-rows"
_LOCK: Final = "k2-rows-lock"

#: Epoch, first and last value of what was decoded, and how many columns were added.
_Decoded = tuple[str, int, int, int]


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

    `added`: columns the table has beyond K2's.
    """

    def __init__(self, kind: str, codec: Codec, added: Sequence[pa.Field] = ()) -> None:
        self._kind = kind
        self._codec = codec
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
        # Sink and candles read the same batch: whoever comes first decodes it for both.
        with batch.cache.setdefault(_LOCK, threading.Lock()):
            known: dict[_Decoded, pa.RecordBatch] = batch.cache.setdefault(_ROWS, {})
            key = (groups[0].epoch, groups[0].start, groups[-1].stop, len(self._added))
            rows = known.get(key)
            if rows is None:
                rows = known[key] = self._decoded(batch, groups)
        return RowPart(groups[0].epoch, rows, groups[-1].next_offset, groups[-1].last)

    def _decoded(self, batch: LogBatch, groups: list[Group]) -> pa.RecordBatch:
        values: list[bytes | None] = []
        for group in groups:
            values += batch.values[group.start : group.stop]
        sequences = np.concatenate([group.sequences for group in groups])
        decoded = self._codec.decode(values)
        if decoded.bad:
            first = decoded.bad[0]
            raise DecodeError(
                f"{batch.topic}[{batch.partition}]: the record of log offset "
                f"{int(sequences[first.row])} does not decode: {first.reason}, {first.detail}"
            )
        return to_lake(
            self._kind,
            decoded.batch,
            epoch=groups[0].epoch,
            topic=parse(batch.topic)[0].log,
            partition=batch.partition,
            sequences=sequences,
            added=self._added,
        )


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
