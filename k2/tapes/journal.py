"""How far a tape is in the log, so that a load that was interrupted goes on where it ended.

It only saves work: a row that is loaded again is recognised by validation and dropped. An entry
holds for one incarnation of the log; where that is gone, the file is loaded again in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec


class _Entry(msgspec.Struct):
    epoch: str
    rows: int


@dataclass(frozen=True, slots=True)
class Journal:
    """Entries as files in `directory`, by topic, symbol and digest."""

    directory: Path

    def rows(self, key: str, epoch: str) -> int:
        """Lines of the file that the log has acknowledged, from its beginning."""
        try:
            entry = msgspec.json.decode(self._path(key).read_bytes(), type=_Entry)
        except (OSError, msgspec.MsgspecError):
            return 0
        return entry.rows if entry.epoch == epoch else 0

    def note(self, key: str, epoch: str, rows: int) -> None:
        """The log has acknowledged the first `rows` lines."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".new")
        partial.write_bytes(msgspec.json.encode(_Entry(epoch, rows)))
        partial.replace(path)

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.json"
