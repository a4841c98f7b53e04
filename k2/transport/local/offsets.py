"""Committed offsets of consumer groups: one small file per group, replaced as a whole."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote

import msgspec

from k2.errors import LogCorruptError, LogError
from k2.transport.local.files import Files

#: topic -> partition -> (topic's epoch, offset)
_Group = dict[str, dict[str, tuple[str, int]]]


class OffsetStore:
    """Offsets per group, topic and partition.

    An offset belongs to one incarnation of its topic: once the topic was made anew it is unknown.
    """

    def __init__(self, directory: Path, files: Files) -> None:
        self._directory = directory
        self._files = files
        self._lock = threading.Lock()
        self._groups: dict[str, _Group] = {}

    def open(self) -> None:
        """Read all groups. Raises `LogCorruptError`."""
        self._directory.mkdir(exist_ok=True)
        for path in self._directory.glob("*.json"):
            try:
                group = msgspec.json.decode(path.read_bytes(), type=_Group)
            except msgspec.DecodeError as exc:
                raise LogCorruptError(
                    f"{path} is not a file of committed offsets: {exc}; remove it, and the group "
                    "starts over at the earliest offsets",
                    file=str(path),
                ) from exc
            self._groups[unquote(path.stem)] = group

    def committed(self, group: str, topic: str, partition: int, epoch: str) -> int | None:
        """The group's offset, or None if there is none for this incarnation of the topic."""
        entry = self._groups.get(group, {}).get(topic, {}).get(str(partition))
        return entry[1] if entry is not None and entry[0] == epoch else None

    def commit(self, group: str, offsets: Mapping[tuple[str, int], tuple[str, int]]) -> None:
        """Set offsets: (topic, partition) -> (epoch, offset). Raises `LogError`."""
        with self._lock:
            old = self._groups.get(group, {})
            new = {topic: dict(partitions) for topic, partitions in old.items()}
            for (topic, partition), entry in offsets.items():
                new.setdefault(topic, {})[str(partition)] = entry
            path = self._directory / f"{quote(group, safe='')}.json"
            try:
                self._files.write_file(path, msgspec.json.encode(new))
            except OSError as exc:
                raise LogError(
                    f"offsets of group {group!r} could not be written to {path}: {exc}; the ones "
                    "committed before stand",
                    group=group,
                ) from exc
            self._groups[group] = new
