"""Changes of a table's metadata alone: references and expiry; no new snapshot."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.update import RemoveSnapshotsUpdate, TableUpdate

from k2.errors import CommitConflictError, LakeError
from k2.lake.commit import REFUSED, UNKNOWN
from k2.lake.files import delete_files
from k2.lake.history import Retention
from k2.lake.snapshot import requirements
from k2.lake.tables import TableDef

log = structlog.get_logger(__name__)

_TRIES: Final = 20

#: What to change of this metadata; nothing when all is as it should be.
Decide = Callable[[TableMetadata], list[TableUpdate]]


def alter(
    catalog: Catalog, table: TableDef, decide: Decide, wait: Callable[[float], None] = time.sleep
) -> list[TableUpdate]:
    """Apply what `decide` says of the newest metadata; returns what was applied.

    `decide` is asked again after each conflict and each answer that got lost: once what it wants is
    there it wants nothing. Raises what it raises, `CommitConflictError`, `LakeError`.
    """
    cause: Exception | None = None
    wanted: list[TableUpdate] = []
    for number in range(_TRIES):
        try:
            loaded: Table = catalog.load_table(table.identifier)
            changes = decide(loaded.metadata)
            if not changes:
                return wanted if cause is not None else []
            wanted = changes
            response = catalog.commit_table(loaded, requirements(loaded.metadata), tuple(changes))
            catalog._delete_old_metadata(loaded.io, loaded.metadata, response.metadata)
        except REFUSED as exc:
            raise LakeError(
                f"table {table}: the catalog refused ({type(exc).__name__}: {str(exc)[:200]})",
                table=str(table),
            ) from exc
        except (CommitFailedException, *UNKNOWN) as exc:
            cause = exc
            wait(min(0.05 * 2**number, 2.0))
        else:
            return changes
    raise CommitConflictError(
        f"table {table}: no change of its references got through in {_TRIES} tries "
        f"({type(cause).__name__}); try again when fewer writers commit",
        table=str(table),
    ) from cause


def expire(
    catalog: Catalog,
    table: TableDef,
    retention: Retention,
    now_ms: int,
    *,
    dry_run: bool = False,
    wait: Callable[[float], None] = time.sleep,
) -> list[int]:
    """Remove what the retention lets go, and its manifest lists; returns the snapshots' ids."""
    gone: dict[int, Snapshot] = {}

    def decide(metadata: TableMetadata) -> list[TableUpdate]:
        expired = retention.expired(metadata, now_ms)
        gone.update({one.snapshot_id: one for one in expired})
        ids = [one.snapshot_id for one in expired]
        return [RemoveSnapshotsUpdate(snapshot_ids=ids)] if ids and not dry_run else []

    while alter(catalog, table, decide, wait):
        continue
    if dry_run:
        return list(gone)
    loaded = catalog.load_table(table.identifier)
    left = {one.snapshot_id for one in loaded.metadata.snapshots}
    lists = [one.manifest_list for one in gone.values() if one.snapshot_id not in left]
    if failed := delete_files(loaded.io, lists):
        log.warning("lake_files_not_deleted", table=str(table), files=failed[:5])
    return [snapshot_id for snapshot_id in gone if snapshot_id not in left]
