"""Settings of a topic of the embedded log, in Kafka's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from k2.errors import ConfigError

_MIB: Final = 1 << 20
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What of a topic's configuration the embedded log acts on.

    - `compacted`, `deleted`: the two halves of `cleanup.policy`.
    - `retention_ms`, `retention_bytes`: -1 keeps for ever; both need `deleted`.
    - `segment_bytes`, `segment_ms`: size and age at which a file is closed; only closed files are
      deleted or compacted.
    - `delete_retention_ms`: how long a tombstone outlives what it deletes, for slow readers.
    """

    compacted: bool = False
    deleted: bool = True
    retention_ms: int = -1
    retention_bytes: int = -1
    # A start after a crash checks the last file of each partition: small files, quick starts.
    segment_bytes: int = 32 * _MIB
    segment_ms: int = _DAY_MS
    delete_retention_ms: int = _DAY_MS

    @classmethod
    def of(cls, topic: str, config: Mapping[str, str]) -> LogConfig:
        """Read Kafka's names; unknown ones have no counterpart here and are left alone.

        Raises `ConfigError` for a value that is not a whole number.
        """
        policy = {part.strip() for part in str(config.get("cleanup.policy", "delete")).split(",")}
        compacted = "compact" in policy
        # Changelogs are read whole at every start, up to one file beyond what compaction leaves.
        size = _MIB if compacted else 32 * _MIB
        return cls(
            compacted=compacted,
            deleted="delete" in policy,
            retention_ms=_number(topic, config, "retention.ms", -1),
            retention_bytes=_number(topic, config, "retention.bytes", -1),
            segment_bytes=_number(topic, config, "segment.bytes", size),
            segment_ms=_number(topic, config, "segment.ms", _DAY_MS),
            delete_retention_ms=_number(topic, config, "delete.retention.ms", _DAY_MS),
        )


def _number(topic: str, config: Mapping[str, str], name: str, default: int) -> int:
    value = config.get(name, default)
    try:
        return int(value)
    except ValueError:
        raise ConfigError(
            f"topic {topic!r} has {name}={value!r}; allowed: a whole number",
            topic=topic,
            setting=name,
        ) from None
