"""One file of a partition: record batches back to back, and a sparse index of them in memory."""

from __future__ import annotations

import os
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

from k2.errors import LogCorruptError
from k2.transport.local.format import (
    HEADER_BYTES,
    BatchHeader,
    Buffer,
    crc_is_valid,
    parse_header,
)

SUFFIX: Final = ".log"
#: Bytes between two entries of the index: what a read may have to skip.
_INDEX_BYTES: Final = 16_384
_WALK_BYTES: Final = 1 << 20
#: A length field above this is damage, not a batch.
_MAX_BATCH_BYTES: Final = 1 << 30
#: Offsets that may be missing between two batches (compaction); keeps chance hits from a CRC.
_MAX_HOLE: Final = 1 << 40


class Chunk(NamedTuple):
    """Whole record batches read from a partition.

    `next_offset`: where to go on; without data it lies behind a hole in the offsets.
    `ends_file`: nothing follows in the same file.
    """

    data: Buffer
    next_offset: int
    ends_file: bool


class Replaced(Exception):
    """The segment left the log (retention, compaction) while it was read: look again."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What is valid of a file: its first `size` bytes, up to `next_offset`.

    `lost_bytes`: what a crash left behind them.
    """

    size: int
    next_offset: int
    lost_bytes: int


class Segment:
    """A segment file; `size` bytes of it are acknowledged and may be read from any thread.

    `base`: no offset in it is lower. Appends come from one thread at a time.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.base = int(path.stem)
        self.size = size
        self.retired = False
        self.max_timestamp_ms = -1
        self.first_timestamp_ms = -1
        self._offsets = array("q")
        self._positions = array("q")
        self._indexed_to = 0
        self._index_lock = threading.Lock()

    @staticmethod
    def path_of(directory: Path, base: int) -> Path:
        """Kafka's naming: twenty digits, so that names sort like offsets."""
        return directory / f"{base:020d}{SUFFIX}"

    @property
    def indexed(self) -> bool:
        """Whether a read can go straight to its place."""
        return self._indexed_to >= self.size

    def appended(self, header: BatchHeader) -> None:
        """Take note of a batch written at the end; readers see it from here on."""
        if self._indexed_to == self.size:
            self._index(header, self.size)
        self.size += header.size

    def read(self, offset: int, max_bytes: int) -> Chunk | None:
        """Whole batches from the one holding `offset`, at least one; None if all are before it.

        Raises `LogCorruptError`, and `Replaced` when the file is no longer part of the log.
        """
        limit = self.size
        self._extend_index(limit)
        at = self._floor(offset)
        with self._open() as file:
            while True:
                data = file.read(at, min(max_bytes + _INDEX_BYTES, limit - at))
                start, found = self._skip(data, at, offset)
                if found:
                    break
                at += start
                if at >= limit:
                    return None
                self._require(parse_header(data, 0), at - start)
            first = self._require(parse_header(data, start), at + start)
            if start + first.size > len(data):
                data, at, start = file.read(at + start, first.size), at + start, 0
        return self._whole_batches(data, at, start, max_bytes, limit)

    def scan(self) -> Iterator[tuple[int, memoryview, BatchHeader]]:
        """Every batch with its position, checked by CRC. Raises `LogCorruptError`."""
        position = 0
        while position < self.size:
            with self._open() as file:
                header = self._header_at(file, position)
                data = memoryview(file.read(position, max(header.size, _WALK_BYTES)))
            start = 0
            while start + HEADER_BYTES <= len(data):
                header = self._require(parse_header(data, start), position + start)
                if start + header.size > len(data):
                    break
                batch = data[start : start + header.size]
                damage = self._damage(batch, header, self.base)
                if damage is not None:
                    raise self._corrupt(position + start, damage)
                yield position + start, batch, header
                start += header.size
            position += start

    def index_all(self) -> None:
        """Walk the headers, so that the timestamps are known. Raises `LogCorruptError`."""
        self._extend_index(self.size)

    def recover(self, floor: int) -> Recovery:
        """Find the valid prefix of a file whose writer did not close it.

        `floor`: no batch may have a lower offset. Damage followed by another valid batch is not
        the torn tail of a crash: raises `LogCorruptError`.
        """
        data = memoryview(self.path.read_bytes())
        position, next_offset = 0, floor
        while (header := _valid_batch(data, position)) is not None:
            # The base offset is outside the CRC; in a file nobody compacted there are no holes.
            if header.base_offset != next_offset:
                break
            self._index(header, position)
            position += header.size
            next_offset = header.next_offset
        lost = len(data) - position
        if lost:
            self._refuse_damage_in_the_middle(data, position, next_offset)
        self.size = position
        return Recovery(position, next_offset, lost)

    def _refuse_damage_in_the_middle(self, data: memoryview, position: int, floor: int) -> None:
        header = parse_header(data, position)
        # The length field of a damaged batch may still be right: the cheap place to look first.
        likely = position + header.size if header is not None else len(data)
        found = likely if _follows(data, likely, floor) else _find_batch(data, position, floor)
        if found is not None:
            raise self._corrupt(position, f"a valid record batch follows at byte {found}")

    def _index(self, header: BatchHeader, position: int) -> None:
        if not self._positions or position - self._positions[-1] >= _INDEX_BYTES:
            self._offsets.append(header.base_offset)
            self._positions.append(position)
        if self.first_timestamp_ms < 0:
            self.first_timestamp_ms = header.first_timestamp_ms
        self.max_timestamp_ms = max(self.max_timestamp_ms, header.max_timestamp_ms)
        self._indexed_to = position + header.size

    def _extend_index(self, limit: int) -> None:
        if self._indexed_to >= limit:
            return
        with self._index_lock, self._open() as file:
            data, at = b"", 0
            while self._indexed_to < limit:
                position = self._indexed_to
                header = parse_header(data, position - at)
                if header is None:
                    data, at = file.read(position, _WALK_BYTES), position
                    header = self._require(parse_header(data, 0), position)
                self._index(header, position)

    def _floor(self, offset: int) -> int:
        entry = bisect_right(self._offsets, offset) - 1
        return self._positions[entry] if entry >= 0 else 0

    def _skip(self, data: bytes, at: int, offset: int) -> tuple[int, bool]:
        """Where the first batch that ends above `offset` starts, and whether there is one."""
        start = 0
        while start + HEADER_BYTES <= len(data):
            header = self._require(parse_header(data, start), at + start)
            if header.next_offset > offset:
                return start, True
            start += header.size
        return start, False

    def _whole_batches(self, data: bytes, at: int, start: int, max_bytes: int, limit: int) -> Chunk:
        view = memoryview(data)
        stop, next_offset = start, 0
        while (header := parse_header(view, stop)) is not None:
            end = stop + header.size
            if end > len(view) or (stop > start and end - start > max_bytes):
                break
            damage = self._damage(view[stop:end], header, next_offset)
            if damage is not None:
                if stop > start:
                    break  # what is whole first; the next read says the rest
                raise self._corrupt(at + stop, damage)
            stop, next_offset = end, header.next_offset
        return Chunk(view[start:stop], next_offset, at + stop == limit)

    def _header_at(self, file: _File, position: int) -> BatchHeader:
        return self._require(parse_header(file.read(position, HEADER_BYTES), 0), position)

    def _require(self, header: BatchHeader | None, position: int) -> BatchHeader:
        if header is None or header.size > _MAX_BATCH_BYTES:
            raise self._corrupt(position, "no record batch starts there")
        if position + header.size > self.size:
            raise self._corrupt(position, "the record batch there is longer than the file")
        return header

    def _damage(self, batch: memoryview, header: BatchHeader, floor: int) -> str | None:
        if header.base_offset < floor:
            return "the offsets of the record batch there fall behind the one before"
        return None if crc_is_valid(batch) else "the record batch there fails its CRC"

    def _corrupt(self, position: int, what: str) -> LogCorruptError:
        return LogCorruptError(
            f"{self.path} is damaged at byte {position}: {what}; restore the file from a copy, or "
            "delete the topic and let the lake stand for what it held",
            file=str(self.path),
            position=position,
        )

    def _open(self) -> _File:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if self.size == 0:
                return _File(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            if self.retired:
                raise Replaced from None
            raise self._corrupt(0, "the file is missing") from None
        if self.retired:
            # The name may already belong to the compacted file, laid out otherwise.
            os.close(fd)
            raise Replaced
        return _File(fd)


class _File:
    """A descriptor for one read; opened per read, so that nothing is closed under a reader."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, position: int, size: int) -> bytes:
        return os.pread(self._fd, size, position)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _valid_batch(data: memoryview, position: int) -> BatchHeader | None:
    header = parse_header(data, position)
    if header is None or header.records < 1 or position + header.size > len(data):
        return None
    return header if crc_is_valid(data[position : position + header.size]) else None


def _follows(data: memoryview, position: int, offset: int) -> bool:
    """Whether a valid batch stands there that was written after `offset`."""
    header = parse_header(data, position)
    return (
        header is not None
        # Before the CRC, which for chance hits would be taken over and over.
        and offset <= header.base_offset < offset + _MAX_HOLE
        and _valid_batch(data, position) is not None
    )


def _find_batch(data: memoryview, position: int, offset: int) -> int | None:
    """The next place where a whole valid batch starts."""
    # The magic byte (2) stands 16 bytes into a batch: candidates without testing every byte.
    raw = bytes(data[position:])
    at = raw.find(2, 17)
    while at >= 0:
        if _follows(data, position + at - 16, offset):
            return position + at - 16
        at = raw.find(2, at + 1)
    return None
