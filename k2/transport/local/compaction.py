"""Compaction: of closed segments keep the newest record of each key, at its offset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from k2.transport.local.config import LogConfig
from k2.transport.local.files import DRAFT_SUFFIX, Files
from k2.transport.local.format import Record, encode_records, records_of, set_base_offset
from k2.transport.local.segment import Segment

_BATCH_BYTES: Final = 262_144
_BATCH_SPAN: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Compacted:
    """The finished file under its draft name; renaming it over `segment.path` is the commit."""

    draft: Path
    segment: Segment
    records: int
    kept: int


def compact_segments(
    closed: Sequence[Segment], config: LogConfig, now_ms: int, files: Files
) -> Compacted:
    """Write what remains of `closed` to one draft file, synced. Raises `OSError`.

    The last record always stays, whatever its key: readers of a changelog wait for the offset
    before the end.
    """
    newest: dict[bytes, int] = {}
    records = last = 0
    for offset, record in _records(closed):
        records, last = records + 1, offset
        if record.key is not None:
            newest[record.key] = offset
    tombstones_from_ms = now_ms - config.delete_retention_ms

    def stays(offset: int, record: Record) -> bool:
        if record.key is None or offset == last:
            return True
        dead = record.value is None and record.timestamp_ms < tombstones_from_ms
        return newest[record.key] == offset and not dead

    path = closed[0].path
    draft = path.with_name(path.name + DRAFT_SUFFIX)
    files.remove(draft)
    fd = files.open_append(draft)
    kept = size = 0
    try:
        for base, group in _groups(
            (offset, record) for offset, record in _records(closed) if stays(offset, record)
        ):
            batch = encode_records(group)
            set_base_offset(batch, base)
            files.write_at(fd, batch, size)
            size += len(batch)
            kept += len(group)
        files.sync(fd)
    finally:
        files.close(fd)
    return Compacted(draft, Segment(path, size), records, kept)


def _records(segments: Sequence[Segment]) -> Iterator[tuple[int, Record]]:
    for segment in segments:
        for _, batch, header in segment.scan():
            for record in records_of(batch, header.base_offset):
                yield header.base_offset + record.delta, record


def _groups(rows: Iterator[tuple[int, Record]]) -> Iterator[tuple[int, list[Record]]]:
    """Records as batches of bounded size; thousands of one-record batches become few."""
    base, size = 0, 0
    group: list[Record] = []
    for offset, record in rows:
        if group and (size >= _BATCH_BYTES or offset - base > _BATCH_SPAN):
            yield base, group
            group, size = [], 0
        if not group:
            base = offset
        group.append(record._replace(delta=offset - base))
        size += len(record.key or b"") + len(record.value or b"")
    if group:
        yield base, group
