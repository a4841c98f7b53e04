"""A topic of the embedded log: its metadata file and its partitions."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from k2.errors import ConfigError, LogCorruptError
from k2.transport.local.config import LogConfig
from k2.transport.local.files import Files
from k2.transport.local.partition import PartitionLog

META_FILE: Final = "topic.json"
_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class TopicMeta(msgspec.Struct, frozen=True):
    """What makes a topic: `epoch` is the UUID of this incarnation."""

    name: str
    epoch: str
    partitions: int
    config: dict[str, str]


class Topic:
    """An open topic."""

    def __init__(
        self, meta: TopicMeta, directory: Path, files: Files, *, sync_appends: bool
    ) -> None:
        self.meta = meta
        self.directory = directory
        self.config = LogConfig.of(meta.name, meta.config)
        self.partitions = tuple(
            PartitionLog(
                directory / str(number),
                meta.name,
                number,
                self.config,
                files,
                sync_appends=sync_appends,
            )
            for number in range(meta.partitions)
        )


def check_name(name: str) -> None:
    """Raise `ConfigError` for a name Kafka would refuse too."""
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise ConfigError(
            f"topic name {name!r} is not allowed: 1 to 249 letters, digits, '.', '_' or '-'",
            topic=name,
        )


def new_meta(name: str, partitions: int, config: Mapping[str, str]) -> TopicMeta:
    """Metadata of a new incarnation. Raises `ConfigError`."""
    check_name(name)
    if partitions < 1:
        raise ConfigError(f"topic {name!r} has {partitions} partitions; at least 1", topic=name)
    LogConfig.of(name, config)
    return TopicMeta(name, str(uuid.uuid4()), partitions, dict(config))


def write_topic(meta: TopicMeta, draft: Path, files: Files) -> None:
    """Make a topic's directory under a draft name. Raises `OSError`."""
    draft.mkdir()
    for number in range(meta.partitions):
        (draft / str(number)).mkdir()
    files.write_file(draft / META_FILE, msgspec.json.encode(meta))


def read_meta(directory: Path) -> TopicMeta:
    """The metadata of a topic's directory. Raises `LogCorruptError`."""
    path = directory / META_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=TopicMeta)
    except (OSError, msgspec.DecodeError) as exc:
        raise LogCorruptError(
            f"{path} is not a topic's metadata: {exc}; restore it from a copy, or remove the "
            f"directory to give up the topic {directory.name!r}",
            file=str(path),
            position=0,
        ) from exc
