"""A V1 table into a V2 log of record, file by file.

Guarantee: each row of the table becomes one V2 record (validation knows it again by the file and
row it was read from) or a dead letter. Interrupted, it goes on where it ended; run again, it brings
what was appended since. A table whose files were written anew since is refused: its rows could not
be told from those that are there.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import ArrowScan
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.snapshots import Operation

from k2.clock import SYSTEM_CLOCK
from k2.errors import ConfigError
from k2.lake.catalog import open_catalog
from k2.migrate.run import Migrated, send
from k2.migrate.v1 import Target, V1Reader
from k2.open_log import OpenLog, opened
from k2.settings import Settings
from k2.tapes.journal import Journal
from k2.topics import MarketTopic

#: Rows that are handed to the log at a time.
_ROWS: Final = 5_000
_DIGEST_CHARS: Final = 16


async def migrate_table(
    settings: Settings,
    source: str,
    catalog: str | None,
    topic: MarketTopic,
    target: Target,
    *,
    dry_run: bool,
    stop: asyncio.Event,
    progress: Callable[[Migrated], None] = lambda _: None,
) -> Migrated:
    """Bring what the table holds now. `catalog`: as PyIceberg knows it; None: K2's own.

    Raises `ConfigError`.
    """
    table = await asyncio.to_thread(_table, settings, source, catalog)
    made = Migrated()
    async with opened(settings, topic) as log:
        move = _Move(settings, log, table, target, made, dry_run=dry_run)
        for task in await asyncio.to_thread(move.files):
            await move.bring(task, stop)
            progress(made)
            if stop.is_set():
                return made
        move.finished()
    return made


def _table(settings: Settings, source: str, catalog: str | None) -> Table:
    try:
        known: Catalog = load_catalog(catalog) if catalog else open_catalog(settings)
        return known.load_table(source)
    except NoSuchTableError as exc:
        raise ConfigError(
            f"table {source!r} is not in the catalog; name it NAMESPACE.TABLE, and its catalog "
            "with --catalog",
            table=source,
        ) from exc
    except ValueError as exc:
        raise ConfigError(
            f"--catalog {catalog} is not usable: {exc}; PyIceberg is told of a catalog by "
            f"variables like PYICEBERG_CATALOG__{(catalog or 'V1').upper()}__URI",
            catalog=catalog,
        ) from exc


class _Move:
    def __init__(
        self,
        settings: Settings,
        log: OpenLog,
        table: Table,
        target: Target,
        made: Migrated,
        *,
        dry_run: bool,
    ) -> None:
        self._log, self._table, self._made, self._dry_run = log, table, made, dry_run
        self._name = ".".join(table.name())
        self._v1 = V1Reader(str, target)
        self._journal = Journal(settings.core.data_dir / "loads")

    def files(self) -> list[FileScanTask]:
        """What the table is made of now. Raises `ConfigError` where rows cannot be known again."""
        self._check_history()
        tasks = list(self._table.scan().plan_files())
        if any(task.delete_files for task in tasks):
            raise ConfigError(
                f"table {self._name} has deletes beside its files, by which rows lose their place; "
                "write its files anew without them first",
                table=self._name,
            )
        return sorted(tasks, key=lambda task: task.file.file_path)

    def _check_history(self) -> None:
        """Since the last run that went to its end rows may only have been added."""
        before = self._journal.rows(self._key, self._log.epoch)
        snapshot = self._table.current_snapshot()
        while before and snapshot is not None and snapshot.snapshot_id != before:
            operation = None if snapshot.summary is None else snapshot.summary.operation
            parent = snapshot.parent_snapshot_id
            snapshot = None if parent is None else self._table.snapshot_by_id(parent)
            if operation is not Operation.APPEND or snapshot is None:
                raise ConfigError(
                    f"table {self._name} was written anew since the last run, so its rows cannot "
                    "be told from those brought then; migrate it into a data directory of its own",
                    table=self._name,
                )

    async def bring(self, task: FileScanTask, stop: asyncio.Event) -> None:
        """One file into the log; noted piece by piece, once the log has it."""
        path = task.file.file_path
        digest = hashlib.sha256(f"{self._table.metadata.table_uuid}/{Path(path).name}".encode())
        name = digest.hexdigest()[:_DIGEST_CHARS]
        done = self._journal.rows(f"v1-{name}", self._log.epoch)
        self._made.before += done
        if done >= task.file.record_count:
            return
        rows = await asyncio.to_thread(self._read, task)
        for first, piece in _pieces(rows, done):
            if stop.is_set():
                return
            await self._bring(piece, first, name)

    async def _bring(self, piece: pa.Table, first: int, name: str) -> None:
        found = await asyncio.to_thread(piece.to_pylist)
        records, bad = await asyncio.to_thread(
            self._v1.read_rows, found, first, name, self._name, SYSTEM_CLOCK.now_us()
        )
        self._made.count(piece.num_rows, records, bad)
        if not self._dry_run:
            await send(self._log, records, bad, name, f"{self._name} {name} row")
            self._journal.note(f"v1-{name}", self._log.epoch, first + piece.num_rows)

    def _read(self, task: FileScanTask) -> pa.Table:
        metadata = self._table.metadata
        scan = ArrowScan(metadata, self._table.io, self._table.schema(), AlwaysTrue())
        rows = scan.to_table([task])
        # V1 has its times without a zone; they are UTC.
        fields = [
            field.with_type(pa.timestamp("us", "UTC"))
            if pa.types.is_timestamp(field.type)
            else field
            for field in rows.schema
        ]
        return rows.cast(pa.schema(fields))

    def finished(self) -> None:
        """Everything of this snapshot is in the log."""
        snapshot = self._table.current_snapshot()
        if not self._dry_run and snapshot is not None:
            self._journal.note(self._key, self._log.epoch, snapshot.snapshot_id)

    @property
    def _key(self) -> str:
        return f"v1-table-{self._table.metadata.table_uuid}"


def _pieces(rows: pa.Table, done: int) -> Iterator[tuple[int, pa.Table]]:
    for first in range(done, rows.num_rows, _ROWS):
        yield first, rows.slice(first, _ROWS)
