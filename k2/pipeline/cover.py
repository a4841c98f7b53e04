"""Covers: how a reader of a validated topic tells dropped from lost, and old from new.

Each emitted group is one Kafka record batch and says in a header of its first record which range
of the log of record it covers and which offsets of that range its records have. Ranges abut. A
group whose range was applied before is dropped, a range that overlaps is cut, a hole stops the
reader. A group with no surviving record is one record without value.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from k2.errors import CoverHoleError, DecodeError
from k2.transport.batch import LogBatch

COVER_HEADER = "k2-cover"
_HEAD = struct.Struct(">B16sqqI")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Cover:
    """The range `first..last` (inclusive) of one incarnation of a log of record.

    `kept`: int64 offsets of the group's records, one each. They rise; only where one record of the
    log has several outputs (gap events) do they repeat.
    """

    epoch: str
    first: int
    last: int
    kept: npt.NDArray[np.int64]

    def to_bytes(self) -> bytes:
        """Header value: version, epoch, first, last, then the kept offsets as runs."""
        runs = _to_runs(self.kept - self.first) if len(self.kept) else np.empty(0, np.uint32)
        head = _HEAD.pack(
            _VERSION, uuid.UUID(self.epoch).bytes, self.first, self.last, len(self.kept)
        )
        return head + runs.astype(">u4").tobytes()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Cover:
        """Inverse of `to_bytes`. Raises `DecodeError`."""
        try:
            version, epoch, first, last, count = _HEAD.unpack_from(raw)
            if version != _VERSION:
                raise DecodeError(f"cover header has version {version}; this reader knows 1")
            runs = np.frombuffer(raw, ">u4", offset=_HEAD.size).astype(np.int64).reshape(-1, 2)
        except (struct.error, ValueError) as exc:
            raise DecodeError(f"cover header of {len(raw)} bytes is not readable: {exc}") from exc
        # Before the offsets are written out: damaged lengths may ask for any amount of memory.
        starts, lengths = runs[:, 0], runs[:, 1]
        if int(lengths.sum()) != count or not lengths.all():
            raise DecodeError(f"cover header lists {int(lengths.sum())} offsets but says {count}")
        ends = starts + lengths - 1
        if last < first - 1 or (ends > last - first).any() or (starts[1:] < ends[:-1]).any():
            raise DecodeError(f"cover header lists offsets that do not rise in {first}..{last}")
        kept = _from_runs(starts, lengths) + first
        return cls(str(uuid.UUID(bytes=epoch)), first, last, kept)


def _to_runs(offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Offsets, rising or repeated, as (start, length) pairs, flattened."""
    cuts = np.flatnonzero(np.diff(offsets) != 1) + 1
    starts = np.concatenate(([0], cuts))
    lengths = np.diff(np.concatenate((starts, [len(offsets)])))
    return np.column_stack((offsets[starts], lengths)).ravel()


def _from_runs(
    starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


@dataclass(frozen=True, slots=True)
class Group:
    """Rows `start..stop` of a `LogBatch` that a reader has to apply.

    `sequences`: int64 platform_sequence of each of those rows. `last`: the highest offset of the
    log of record that is applied with the group; `after`: what was applied before it.
    `next_offset`: the validated offset a reader resumes from once the group is applied. `head`: the
    row with the group's headers.
    """

    epoch: str
    start: int
    stop: int
    sequences: npt.NDArray[np.int64]
    last: int
    next_offset: int
    head: int
    after: int


@dataclass(slots=True)
class CoverReader:
    """Position of one reader in one validated partition.

    `applied`: highest offset applied, per incarnation of the log of record. Earlier incarnations
    are remembered too: a writer that lost its partition may still write what it read of one.
    `strict`: a hole raises; a reader of gaps or dead letters, whose groups need not abut, is not.
    """

    topic: str
    partition: int
    applied: dict[str, int] = field(default_factory=dict)
    strict: bool = True

    def read(self, batch: LogBatch) -> Iterator[Group]:
        """Yield the groups of `batch` that are new, advancing the position.

        Raises `CoverHoleError` when a range does not abut what was applied (the position then
        stays at the hole) and `DecodeError` on a record that belongs to no group.
        """
        if not len(batch):
            return  # a stretch of control records
        marks = sorted(
            (index, value)
            for index, headers in batch.headers.items()
            for name, value in headers
            if name == COVER_HEADER
        )
        if not marks or marks[0][0] != 0:
            raise DecodeError(
                f"{batch.topic}[{batch.partition}] offset {batch.first_offset}: a record without "
                f"the header {COVER_HEADER!r}; only K2's validate agent may write this topic"
            )
        stops = [index for index, _ in marks[1:]] + [len(batch)]
        # Sink and shed ledger read the same batch.
        known: dict[int, Cover] = batch.cache.setdefault(COVER_HEADER, {})
        for (start, raw), stop in zip(marks, stops, strict=True):
            cover = known.get(start)
            if cover is None:
                cover = known[start] = Cover.from_bytes(raw)
            group = self._group(batch, cover, start, stop)
            if group is not None:
                yield group

    def _group(self, batch: LogBatch, cover: Cover, start: int, stop: int) -> Group | None:
        # The first group of an incarnation tells where its log began.
        after = self.applied.get(cover.epoch, cover.first - 1)
        rows = len(cover.kept)
        if stop - start != max(rows, 1) or (not rows and batch.values[start] is not None):
            raise DecodeError(
                f"{batch.topic}[{batch.partition}] offset {int(batch.offsets[start])}: a group of "
                f"{stop - start} records whose header lists {rows}"
            )
        if cover.last <= after:
            return None
        if self.strict and cover.first > after + 1:
            raise CoverHoleError(
                f"{batch.topic}[{batch.partition}]: the range {cover.first}..{cover.last} does not "
                f"abut offset {after}, the last applied; records between are missing",
                topic=batch.topic,
                partition=batch.partition,
                applied=after,
                first=cover.first,
            )
        skip = int(np.searchsorted(cover.kept, after, side="right"))
        self.applied[cover.epoch] = cover.last
        return Group(
            epoch=cover.epoch,
            start=start + skip,
            stop=start + rows,
            sequences=cover.kept[skip:],
            last=cover.last,
            next_offset=int(batch.offsets[stop - 1]) + 1,
            head=start,
            after=after,
        )
