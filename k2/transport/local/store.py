"""The embedded log's directory: topics, committed offsets, the lock, and the sync thread.

DIR/lock                            held while open
DIR/clean.json                      where each partition ended; only after a clean close
DIR/groups/GROUP.json               committed offsets
DIR/topics/TOPIC/topic.json         epoch, partitions, configuration
DIR/topics/TOPIC/N/OFFSET.log       segments
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import structlog

from k2.clock import SYSTEM_CLOCK, Clock
from k2.errors import ConfigError, LogError
from k2.transport.local.files import FILES, Files
from k2.transport.local.lock import DirectoryLock
from k2.transport.local.offsets import OffsetStore
from k2.transport.local.partition import Mark, PartitionLog
from k2.transport.local.topic import Topic, new_meta, read_meta, write_topic

logger = structlog.get_logger(__name__)

#: Prefixes a topic's name cannot have: directories that are being made or removed.
_MAKING: Final = "~new-"
_REMOVING: Final = "~old-"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MAINTAIN_S: Final = 30.0


class _Clean(msgspec.Struct):
    #: topic's epoch -> per partition: base and size of the last file, end offset
    marks: dict[str, list[tuple[int, int, int]]]


class LogStore:
    """Everything under one directory; safe to use from several threads.

    - `fsync_s`: seconds between syncs to the disk; 0 syncs every append before it returns.
    - `clock`: what retention and compaction take for now.
    - `files`: the file operations, for tests.

    The constructor opens the log. Raises `LogLockedError`, `LogCorruptError`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        fsync_s: float = 1.0,
        clock: Clock = SYSTEM_CLOCK,
        files: Files = FILES,
    ) -> None:
        self.directory = directory
        self.fsync_s = fsync_s
        self.clock = clock
        self._files = files
        self._topics: dict[str, Topic] = {}
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._sync_thread: threading.Thread | None = None
        self._topics_dir = directory / "topics"
        self._topics_dir.mkdir(parents=True, exist_ok=True)
        self._directory_lock = DirectoryLock(directory)
        self._directory_lock.acquire()
        self.offsets = OffsetStore(directory / "groups", files)
        try:
            self._open()
        except BaseException:
            self._directory_lock.release()
            raise
        self._sync_thread = threading.Thread(
            target=self._sync_and_maintain, name="k2-log-sync", daemon=True
        )
        self._sync_thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- opening and closing ---------------------------------------------------------------

    def _open(self) -> None:
        clean = self._take_clean_mark()
        power_failed = clean is None and self._boot_changed()
        self.offsets.open()
        lost = 0
        for directory in sorted(self._topics_dir.iterdir()):
            if directory.name.startswith((_MAKING, _REMOVING)):
                self._files.remove_tree(directory)
                continue
            topic = self._topic_of(directory)
            marks = clean.marks.get(topic.meta.epoch, []) if clean else []
            for log in topic.partitions:
                mark = Mark(*marks[log.partition]) if log.partition < len(marks) else None
                lost += log.open(mark, power_failed=power_failed)
            self._topics[topic.meta.name] = topic
        self._remember_boot()
        if clean is None and self._topics:
            logger.info(
                "log_recovered",
                directory=str(self.directory),
                topics=len(self._topics),
                truncated_bytes=lost,
                power_failed=power_failed,
            )

    def _topic_of(self, directory: Path) -> Topic:
        meta = read_meta(directory)
        return Topic(meta, directory, self._files, sync_appends=self.fsync_s == 0)

    def _take_clean_mark(self) -> _Clean | None:
        """Read and remove the mark: from now on only a clean close writes a new one."""
        path = self.directory / "clean.json"
        try:
            clean = msgspec.json.decode(path.read_bytes(), type=_Clean)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as exc:
            logger.warning("clean_mark_unreadable", file=str(path), error=str(exc))
            clean = None
        self._files.remove(path)
        self._files.sync_directory(self.directory)
        return clean

    def _boot_changed(self) -> bool:
        """Whether the machine, not only the process, went down since the log was opened."""
        path = self.directory / "boot"
        return path.exists() and path.read_bytes() != _boot_id()

    def _remember_boot(self) -> None:
        path = self.directory / "boot"
        if not path.exists() or path.read_bytes() != _boot_id():
            self._files.write_file(path, _boot_id())

    def close(self) -> None:
        """Sync, note where everything ended, release the lock. Raises `LogError`."""
        self._closing.set()
        if self._sync_thread is not None:
            self._sync_thread.join()
            self._sync_thread = None
        with self._lock:
            topics, self._topics = list(self._topics.values()), {}
        try:
            failures = [exc for topic in topics for exc in _close_all(topic)]
            if failures:
                raise failures[0]
            marks = {t.meta.epoch: [tuple(log.mark()) for log in t.partitions] for t in topics}
            self._files.write_file(
                self.directory / "clean.json", msgspec.json.encode({"marks": marks})
            )
        except OSError as exc:
            raise LogError(
                f"the embedded log in {self.directory} could not be closed cleanly: {exc}; the "
                "next start checks its last files",
                directory=str(self.directory),
            ) from exc
        finally:
            self._directory_lock.release()

    # -- topics ----------------------------------------------------------------------------

    def topics(self) -> dict[str, Topic]:
        """All topics by name."""
        with self._lock:
            return dict(self._topics)

    def topic(self, name: str) -> Topic:
        """Raises `LogError` for a topic that does not exist."""
        topic = self._topics.get(name)
        if topic is None:
            raise LogError(
                f"topic {name!r} does not exist in the embedded log {self.directory}; create it "
                "first (`LogAdmin.ensure_topics`)",
                topic=name,
            )
        return topic

    def partition(self, topic: str, partition: int) -> PartitionLog:
        """Raises `LogError` for a topic or partition that does not exist."""
        partitions = self.topic(topic).partitions
        if not 0 <= partition < len(partitions):
            raise LogError(
                f"topic {topic!r} has no partition {partition}; it has {len(partitions)}",
                topic=topic,
                partition=partition,
            )
        return partitions[partition]

    def create_topic(
        self, name: str, partitions: int, config: Mapping[str, str] | None = None
    ) -> Topic:
        """Make a topic; one that exists with as many partitions is returned as it is.

        Raises `ConfigError` when it exists with another number: keys would move.
        """
        with self._lock:
            existing = self._topics.get(name)
            if existing is not None:
                check_partitions(existing, partitions)
                return existing
            meta = new_meta(name, partitions, config or {})
            draft = self._topics_dir / f"{_MAKING}{meta.epoch}"
            target = self._topics_dir / name
            try:
                write_topic(meta, draft, self._files)
                self._files.replace(draft, target)
                self._files.sync_directory(self._topics_dir)
            except OSError as exc:
                raise LogError(
                    f"topic {name!r} could not be made in {self._topics_dir}: {exc}", topic=name
                ) from exc
            topic = self._topic_of(target)
            for log in topic.partitions:
                log.open(None, power_failed=False)
            self._topics[name] = topic
            return topic

    def delete_topic(self, name: str) -> None:
        """Remove a topic and its records; made again, it has another epoch."""
        with self._lock:
            topic = self.topic(name)
            del self._topics[name]
        for log in topic.partitions:
            log.close()
        doomed = self._topics_dir / f"{_REMOVING}{topic.meta.epoch}"
        try:
            self._files.replace(topic.directory, doomed)
            self._files.sync_directory(self._topics_dir)
            self._files.remove_tree(doomed)
        except OSError as exc:
            raise LogError(f"topic {name!r} could not be deleted: {exc}", topic=name) from exc

    # -- offsets ---------------------------------------------------------------------------

    def commit(self, group: str, offsets: Mapping[tuple[str, int], int]) -> None:
        """Store a group's offsets durably. Raises `LogError`."""
        self.offsets.commit(
            group,
            {
                (topic, partition): (self.topic(topic).meta.epoch, offset)
                for (topic, partition), offset in offsets.items()
            },
        )

    def committed(self, group: str, topic: str, partition: int) -> int | None:
        """The group's offset in this incarnation of the topic, if any."""
        return self.offsets.committed(group, topic, partition, self.topic(topic).meta.epoch)

    # -- background ------------------------------------------------------------------------

    def sync(self) -> None:
        """Make all appends so far survive a power failure. Raises `LogError`."""
        for log in self._partitions():
            log.sync()

    def maintain(self) -> None:
        """Apply retention and compaction as of the clock's now. Raises `LogError`."""
        for log in self._partitions():
            self._maintain(log)

    def _partitions(self) -> list[PartitionLog]:
        return [log for topic in self.topics().values() for log in topic.partitions]

    def _sync_and_maintain(self) -> None:
        due_s = _MAINTAIN_S
        pause_s = self.fsync_s or _MAINTAIN_S
        while not self._closing.wait(pause_s):
            due_s -= pause_s
            for log in self._partitions():
                self._attempt("sync_failed", log.sync)
                if due_s <= 0 and not self._closing.is_set():
                    self._attempt("maintenance_failed", self._maintain, log)
            due_s = _MAINTAIN_S if due_s <= 0 else due_s

    def _maintain(self, log: PartitionLog) -> None:
        log.maintain(self.clock.now_us() // 1_000)

    def _attempt(self, event: str, work: Callable[..., None], *args: Any) -> None:
        try:
            work(*args)
        except LogError as exc:
            # Appends to a partition that could not be synced fail from here on: the writer stops.
            logger.exception(event, error=exc.message, **exc.details)


def _close_all(topic: Topic) -> list[LogError]:
    failures = []
    for log in topic.partitions:
        try:
            log.close()
        except LogError as exc:  # the others still have to be closed
            failures.append(exc)
    return failures


def check_partitions(topic: Topic, wanted: int) -> None:
    """Raise `ConfigError` when a topic does not have as many partitions as wanted."""
    if topic.meta.partitions != wanted:
        raise ConfigError(
            f"topic {topic.meta.name!r} has {topic.meta.partitions} partitions, not {wanted}; the "
            f"number is immutable because keys would move: set K2_KAFKA_PARTITIONS to "
            f"{topic.meta.partitions}, or begin in a new directory",
            topic=topic.meta.name,
            partitions=topic.meta.partitions,
            wanted=wanted,
        )


def _boot_id() -> bytes:
    # Where there is none (not Linux) every crash is treated as one of the machine.
    return _BOOT_ID.read_bytes() if _BOOT_ID.exists() else b"unknown at %d" % id(object())
