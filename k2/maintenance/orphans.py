"""Delete files nothing refers to: what compactions took out, and what crashes left behind.

`sweep` is the quick way, every hour: it looks at K2's own manifests and at the notes compactions
leave of the files they took out. `find_orphans` is the thorough one: it lists everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec
import pyarrow as pa
import structlog
from pyiceberg.catalog import Catalog
from pyiceberg.io import FileIO
from pyiceberg.table import Table

from k2.clock import SYSTEM_CLOCK, Clock
from k2.errors import LakeError
from k2.lake.files import delete_files
from k2.lake.manifests import OWN_PREFIX, metadata_path
from k2.lake.tables import TableDef
from k2.maintenance.reach import Reach, StoredFile, listed
from k2.maintenance.replace import REMOVED_PREFIX

log = structlog.get_logger(__name__)

_HOUR_S: Final = 3_600.0
#: Younger files may belong to a commit on its way, whoever writes it.
MIN_AGE_S: Final = _HOUR_S
DEFAULT_AGE_S: Final = 72 * _HOUR_S


@dataclass(frozen=True, slots=True)
class Cleaned:
    """Files found (and, unless it was a dry run, deleted) and their size."""

    files: int
    bytes: int
    sample: tuple[str, ...] = ()


class Cleaner:
    """Cleans one table's directory; blocking, so call it in a thread."""

    def __init__(self, catalog: Catalog, table: TableDef, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._catalog = catalog
        self._table = table
        self._clock = clock
        self._reach = Reach()

    def orphans(self, *, older_than_s: float = DEFAULT_AGE_S, dry_run: bool = False) -> Cleaned:
        """Delete every unreferenced file of at least this age. Raises `LakeError`."""
        if older_than_s < MIN_AGE_S:
            raise LakeError(
                f"orphans of {older_than_s / _HOUR_S:g} h may be files of a commit on its way; "
                f"allowed: {MIN_AGE_S / _HOUR_S:g} h or more (--older-than-hours)",
                older_than_s=older_than_s,
            )
        # Listed first: what is committed meanwhile is then found in the metadata.
        loaded = self._load()
        old = self._old(listed(loaded.io, loaded.location()), older_than_s)
        return self._delete(old, dry_run=dry_run)

    def sweep(self, *, grace_s: float = MIN_AGE_S, dry_run: bool = False) -> Cleaned:
        """Delete what compactions took out and manifests that were merged, `grace_s` ago or longer.

        What a tag still needs is left to `orphans`. The grace is for readers of old snapshots and
        commits on their way.
        """
        loaded = self._load()
        folder = metadata_path(loaded.metadata, "x").rpartition("/")[0]
        own = [
            file
            for file in listed(loaded.io, folder, recursive=False)
            if file.key.rpartition("/")[2].startswith(OWN_PREFIX)
        ]
        old = self._old(own, grace_s)
        notes = [file for file in old if _is_note(file)]
        taken_out = [
            StoredFile(path, 0, 0.0) for note in notes for path in _noted(loaded.io, note.location)
        ]
        manifests = [file for file in old if not _is_note(file)]
        cleaned = self._delete([*manifests, *taken_out], dry_run=dry_run)
        if not dry_run:
            # Last: a crash before this only means that the same is tried again.
            delete_files(loaded.io, [note.location for note in notes])
        return cleaned

    def _load(self) -> Table:
        return self._catalog.load_table(self._table.identifier)

    def _old(self, files: Iterable[StoredFile], age_s: float) -> list[StoredFile]:
        limit_s = self._clock.now_us() / 1e6 - age_s
        return [file for file in files if file.modified_s <= limit_s]

    def _delete(self, candidates: list[StoredFile], *, dry_run: bool) -> Cleaned:
        if not candidates:
            return Cleaned(0, 0)
        loaded = self._load()
        needed = self._reach.keys(loaded)
        gone = [file for file in candidates if file.key not in needed]
        if not dry_run:
            again = self._load()
            if again.metadata_location != loaded.metadata_location:
                needed = self._reach.keys(again)
                gone = [file for file in gone if file.key not in needed]
            left = delete_files(loaded.io, [file.location for file in gone])
            if left:
                log.warning("lake_files_not_deleted", table=str(self._table), files=left[:5])
        sample = tuple(file.location for file in gone[:5])
        return Cleaned(len(gone), sum(file.bytes for file in gone), sample)


def _is_note(file: StoredFile) -> bool:
    return file.key.rpartition("/")[2].startswith(REMOVED_PREFIX)


def _noted(io: FileIO, location: str) -> list[str]:
    """The files a note names; none when it is gone or was cut short by a crash."""
    try:
        with io.new_input(location).open() as stream:
            return msgspec.json.decode(stream.read(), type=list[str])
    except (OSError, pa.ArrowException, msgspec.DecodeError) as exc:
        log.warning("lake_note_unreadable", location=location, error=str(exc)[:200])
        return []
