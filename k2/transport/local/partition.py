"""One partition: an ordered list of segments, one of them open for appending."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from k2.errors import LogCorruptError, LogError, RetentionGapError
from k2.transport.local.compaction import Compacted, compact_segments
from k2.transport.local.config import LogConfig
from k2.transport.local.files import DRAFT_SUFFIX, Files
from k2.transport.local.format import Buffer, parse_header, set_base_offset
from k2.transport.local.segment import SUFFIX, Chunk, Replaced, Segment

logger = structlog.get_logger(__name__)

#: Most offsets that may be acknowledged but not yet synced. After a power failure that many are
#: left out, so that an offset the lake may have stored is never given to another record.
UNSYNCED_OFFSETS: Final = 65_536

#: Holds the earliest offset, once it was moved by request rather than by retention.
_START_FILE: Final = "start"


class Mark(NamedTuple):
    """What a clean close remembers of a partition: its last file, that file's size, its end."""

    base: int
    size: int
    end: int


class PartitionLog:
    """Append-only log of one partition.

    Guarantee: what `append` returned an offset for is readable at once and survives the death of
    the process; it survives a power failure once synced. On failure of a write nothing of it
    remains. Appends, maintenance and reads may come from different threads.
    """

    def __init__(
        self,
        directory: Path,
        topic: str,
        partition: int,
        config: LogConfig,
        files: Files,
        *,
        sync_appends: bool,
    ) -> None:
        self.directory = directory
        self.topic = topic
        self.partition = partition
        self.config = config
        self._files = files
        self._sync_appends = sync_appends
        self._lock = threading.RLock()
        self._sync_lock = threading.Lock()
        self._maintenance_lock = threading.Lock()
        self._segments: list[Segment] = []
        self._start = 0
        self._end = 0
        self._synced_end = 0
        self._fd: int | None = None
        self._closed_fds: list[int] = []
        self._torn = False
        self._failed = False
        self._roll_next = False
        self._new_names = False
        self._clean_bytes = 0
        self._listeners: tuple[Callable[[], None], ...] = ()

    # -- opening and closing ---------------------------------------------------------------

    def open(self, mark: Mark | None, *, power_failed: bool) -> int:
        """Find the segments and where the log ends; returns the bytes a crash left to cut off.

        `mark`: from a clean close; without it the last file is checked batch by batch.
        Raises `LogCorruptError`.
        """
        for draft in self.directory.glob(f"*{DRAFT_SUFFIX}"):
            self._files.remove(draft)
        paths = sorted(self.directory.glob(f"*{SUFFIX}"))
        self._segments = [Segment(path, path.stat().st_size) for path in paths]
        if not self._segments:
            self._segments = [Segment(Segment.path_of(self.directory, 0), 0)]
        start = self.directory / _START_FILE
        self._start = int(start.read_bytes()) if start.exists() else 0
        last = self._segments[-1]
        lost = 0
        if mark is not None and (mark.base, mark.size) == (last.base, last.size):
            self._end = mark.end
        else:
            self._drop_compacted()
            lost = self._recover(last)
            if power_failed and self._end and not self.config.compacted:
                self._leave_out_offsets()
        self._synced_end = self._end
        return lost

    def _recover(self, last: Segment) -> int:
        if not last.path.exists():
            return 0
        found = last.recover(last.base)
        self._end = found.next_offset
        if found.lost_bytes:
            logger.warning(
                "torn_tail_truncated",
                file=str(last.path),
                bytes=found.lost_bytes,
                kept_bytes=found.size,
                next_offset=found.next_offset,
            )
            fd = self._files.open_append(last.path)
            try:
                self._files.truncate(fd, found.size)
                self._files.sync(fd)
            finally:
                self._files.close(fd)
        return found.lost_bytes

    def _drop_compacted(self) -> None:
        """Remove files whose records a compaction had moved into the one before when it died."""
        kept: list[Segment] = []
        for segment in self._segments:
            if kept and self.config.compacted and segment is not self._segments[-1]:
                end = _end_of(kept[-1])
                if segment.base < end:
                    logger.info("compacted_leftover_removed", file=str(segment.path))
                    self._files.remove(segment.path)
                    continue
            kept.append(segment)
        self._segments = kept

    def _leave_out_offsets(self) -> None:
        self._end += UNSYNCED_OFFSETS
        self._segments.append(Segment(Segment.path_of(self.directory, self._end), 0))
        self._files.close(self._files.open_append(self._segments[-1].path))
        logger.warning(
            "offsets_left_out_after_power_failure",
            topic=self.topic,
            partition=self.partition,
            next_offset=self._end,
        )

    def mark(self) -> Mark:
        """The state a clean close remembers."""
        last = self._segments[-1]
        return Mark(last.base, last.size, self._end)

    def close(self) -> None:
        """Sync and release the files."""
        try:
            self.sync()
        finally:
            with self._sync_lock, self._lock:
                for fd in [*self._closed_fds, *([] if self._fd is None else [self._fd])]:
                    self._files.close(fd)
                self._closed_fds, self._fd = [], None
                self._failed = True

    # -- appending -------------------------------------------------------------------------

    @property
    def start_offset(self) -> int:
        """Earliest offset that may be read."""
        return max(self._start, self._segments[0].base)

    @property
    def end_offset(self) -> int:
        """Offset of the next record."""
        return self._end

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in self._segments)

    def append(self, batch: bytearray) -> int:
        """Add one encoded record batch whole or not at all; returns its base offset.

        Raises `LogError` when the file system refuses; the log is then as before.
        """
        header = parse_header(batch, 0)
        if header is None or header.size != len(batch) or header.next_offset > UNSYNCED_OFFSETS:
            raise LogError(
                f"{self._name}: the {len(batch)} bytes to append are not one record batch with "
                f"base offset 0 and at most {UNSYNCED_OFFSETS} records"
            )
        if self._end + header.next_offset - self._synced_end > UNSYNCED_OFFSETS:
            # Rare: the periodic sync cannot keep up; waiting here keeps the bound true.
            self.sync()
        with self._lock:
            base = self._end
            set_base_offset(batch, base)
            header = header._replace(base_offset=base, next_offset=base + header.next_offset)
            try:
                self._write(batch)
            except OSError as exc:
                self._undo()
                raise self._write_error(exc, f"append {len(batch)} bytes") from exc
            self._segments[-1].appended(header)
            self._end = header.next_offset
            if self._sync_appends:
                self._synced_end = self._end
        for listener in self._listeners:
            listener()
        return base

    def _write(self, batch: bytearray) -> None:
        if self._failed:
            raise OSError("the partition is closed, or an earlier sync failed")
        if self._torn:
            self._cut()
        active = self._segments[-1]
        full = active.size + len(batch) > self.config.segment_bytes
        if active.size and (full or self._roll_next):
            self._roll()
        if self._fd is None:
            self._new_names = self._new_names or not self._segments[-1].path.exists()
            self._fd = self._files.open_append(self._segments[-1].path)
        self._files.write_at(self._fd, batch, self._segments[-1].size)
        if self._sync_appends:
            self._files.sync(self._fd)
            if self._new_names:
                self._files.sync_directory(self.directory)
                self._new_names = False

    def _roll(self) -> None:
        path = Segment.path_of(self.directory, self._end)
        fd = self._files.open_append(path)
        # First of all the new file is the one that appends go to: what fails below must not leave
        # the number of a closed file, which is soon another partition's.
        before, self._fd = self._fd, fd
        self._roll_next, self._new_names = False, True
        self._segments = [*self._segments, Segment(path, 0)]
        if before is None:
            return
        if self._sync_appends:
            self._files.close(before)
        else:
            self._closed_fds.append(before)

    def _undo(self) -> None:
        """Cut off what a failed write left; if that fails too, before the next append."""
        self._torn = True
        try:
            self._cut()
        except OSError as exc:
            logger.exception("truncate_failed", file=str(self._segments[-1].path), error=str(exc))

    def _cut(self) -> None:
        if self._fd is not None:
            self._files.truncate(self._fd, self._segments[-1].size)
        self._torn = False

    @property
    def _name(self) -> str:
        return f"{self.topic}[{self.partition}]"

    def _write_error(self, exc: OSError, doing: str) -> LogError:
        return LogError(
            f"{self._name}: cannot {doing} to {self._segments[-1].path}: {exc}; nothing of it was "
            "kept: free disk space or mend the disk and try again",
            topic=self.topic,
            partition=self.partition,
            file=str(self._segments[-1].path),
            errno=exc.errno,
        )

    # -- reading ---------------------------------------------------------------------------

    def read(self, offset: int, max_bytes: int) -> Chunk | None:
        """Whole record batches from `offset` on, at least one; None at the end of the log.

        The first batch may begin before `offset`. A chunk without data says that the offsets up
        to its `next_offset` are a hole. Raises `RetentionGapError` below the earliest offset and
        `LogCorruptError`.
        """
        while True:
            try:
                return self._read(offset, max_bytes)
            except Replaced:
                with self._lock:  # held until the new list of segments stands
                    continue

    def is_near(self, offset: int, records: int) -> bool:
        """Whether a read from `offset` is a short one in the newest, indexed file."""
        last = self._segments[-1]
        return offset >= last.base and offset >= self._end - records and last.indexed

    def _read(self, offset: int, max_bytes: int) -> Chunk | None:
        end, segments = self._end, self._segments
        if offset >= end:
            return None
        earliest = max(self._start, segments[0].base)
        if offset < earliest:
            raise RetentionGapError(
                f"{self._name}: offset {offset} was deleted by retention; the earliest is "
                f"{earliest}",
                topic=self.topic,
                partition=self.partition,
                position=offset,
                earliest=earliest,
            )
        at = max(0, bisect_right(segments, offset, key=lambda segment: segment.base) - 1)
        parts: list[Buffer] = []
        next_offset = offset
        for segment in segments[at:]:
            try:
                chunk = segment.read(next_offset, max_bytes)
            except LogCorruptError:
                if parts:
                    break  # what is whole first; the next read says the rest
                raise
            if chunk is None:
                continue
            if parts and len(chunk.data) > max_bytes:
                break
            parts.append(chunk.data)
            next_offset = chunk.next_offset
            max_bytes -= len(chunk.data)
            if max_bytes <= 0 or not chunk.ends_file:
                break
        if not parts:
            return Chunk(b"", end, ends_file=True)
        return Chunk(parts[0] if len(parts) == 1 else b"".join(parts), next_offset, ends_file=True)

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after every append, in the appending thread; returns how to stop."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

        def stop() -> None:
            with self._lock:
                self._listeners = tuple(one for one in self._listeners if one is not listener)

        return stop

    # -- syncing and maintenance -----------------------------------------------------------

    def sync(self) -> None:
        """Make everything appended so far survive a power failure. Raises `LogError`.

        After a failed sync nobody knows what is on the disk: the partition takes no more appends.
        """
        with self._sync_lock:
            with self._lock:
                end, active, closed = self._end, self._fd, self._closed_fds
                if self._failed or (end == self._synced_end and not closed):
                    return
                new_names, self._new_names = self._new_names, False
                self._closed_fds = []
            try:
                for fd in [*closed, *([] if active is None else [active])]:
                    self._files.sync(fd)
                if new_names:
                    self._files.sync_directory(self.directory)
            except OSError as exc:
                self._failed = True
                raise self._write_error(exc, "sync") from exc
            finally:
                for fd in closed:
                    self._files.close(fd)
            with self._lock:
                self._synced_end = max(self._synced_end, end)

    def maintain(self, now_ms: int) -> None:
        """Close files by age, delete by retention, compact. Raises `LogError`."""
        with self._maintenance_lock:
            active = self._segments[-1]
            active.index_all()
            if 0 <= active.first_timestamp_ms <= now_ms - self.config.segment_ms:
                self._roll_next = True
            try:
                if self.config.deleted:
                    self._delete_old(now_ms)
                if self.config.compacted:
                    self._compact(now_ms)
            except OSError as exc:
                raise self._write_error(exc, "delete or compact files next") from exc

    def delete_below(self, offset: int) -> None:
        """Make `offset` the earliest, as Kafka's DeleteRecords does. Raises `LogError`."""
        offset = min(offset, self._end)
        with self._maintenance_lock:
            try:
                self._files.write_file(self.directory / _START_FILE, b"%d" % offset)
                self._start = max(self._start, offset)
                while len(self._segments) > 1 and self._segments[1].base <= offset:
                    self._delete_oldest("asked")
            except OSError as exc:
                raise self._write_error(exc, "delete files next") from exc

    def _delete_oldest(self, reason: str) -> None:
        oldest = self._segments[0]
        with self._lock:
            oldest.retired = True
            self._segments = self._segments[1:]
        self._files.remove(oldest.path)
        logger.info("segment_deleted", file=str(oldest.path), bytes=oldest.size, reason=reason)

    def _delete_old(self, now_ms: int) -> None:
        limit_ms, limit_bytes = self.config.retention_ms, self.config.retention_bytes
        while len(self._segments) > 1:
            oldest = self._segments[0]
            oldest.index_all()
            expired = limit_ms >= 0 and oldest.max_timestamp_ms < now_ms - limit_ms
            if not expired and not (0 <= limit_bytes < self.size - oldest.size):
                return
            self._delete_oldest("age" if expired else "size")

    def _compact(self, now_ms: int) -> None:
        closed = self._segments[:-1]
        before = sum(segment.size for segment in closed)
        # Rewriting costs what there is; worth it once as much is new as is clean.
        if not closed or before - self._clean_bytes < max(self._clean_bytes, 1):
            return
        # What supersedes must be on the disk before what it supersedes goes.
        self.sync()
        result = compact_segments(closed, self.config, now_ms, self._files)
        self._replace(closed, result)
        self._clean_bytes = result.segment.size
        logger.info(
            "compacted",
            topic=self.topic,
            partition=self.partition,
            records=result.records,
            kept=result.kept,
            bytes=before,
            kept_bytes=result.segment.size,
        )

    def _replace(self, closed: list[Segment], result: Compacted) -> None:
        with self._lock:
            for segment in closed:
                segment.retired = True
            try:
                self._files.replace(result.draft, result.segment.path)
            except OSError:
                for segment in closed:
                    segment.retired = False
                raise
            self._segments = [result.segment, *self._segments[len(closed) :]]
        self._files.sync_directory(self.directory)
        # A crash between these leaves files that the next start recognises by their offsets.
        for segment in closed[1:]:
            self._files.remove(segment.path)


def _end_of(segment: Segment) -> int:
    end = segment.base
    for _, _, header in segment.scan():
        end = header.next_offset
    return end
