"""Correct trades the exchange took back or changed: cancel or replace them by identity.

The files that hold them are written anew without them, or with their new values, as one snapshot
that carries the vector on. What was there before stays visible by a tag, and who asked for what by
a row of `market_data.corrections`.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog
from pyiceberg.manifest import DataFile
from pyiceberg.table.snapshots import Operation

from k2.clock import SYSTEM_CLOCK, Clock
from k2.errors import LakeError, SupersededError
from k2.lake import corrections
from k2.lake.commit import CommitLoop
from k2.lake.corrections import CANCEL, REPLACE
from k2.lake.files import delete_files
from k2.lake.history import Retention
from k2.lake.reader import LakeFile, LakeReader, Pinned
from k2.lake.tables import CORRECTIONS, TRADES
from k2.maintenance import refs
from k2.maintenance.alter import alter
from k2.maintenance.plan import CompactionPolicy, Group
from k2.maintenance.replace import ReplaceFiles
from k2.maintenance.rewrite import Rewriter

SIDES: Final = ("BUY", "SELL", "SELL_SHORT", "UNKNOWN")
#: Corrections of one run: each is a row that is looked up in every file.
MOST: Final = 10_000
_SPACE: Final = uuid.UUID("6f1d1c55-5f0d-4c0e-9b3c-0d6f6b1d7a11")
_TRIES: Final = 5
_VALUES: Final = ("price", "quantity", "side")


@dataclass(frozen=True, slots=True)
class Correction:
    """What becomes of one trade. `message_id`: `{exchange}:{timestamp_ms}:{symbol}:{trade_id}`.

    `values`: new price, quantity or side by name; empty: the trade is cancelled.
    """

    message_id: str
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def action(self) -> str:
        return REPLACE if self.values else CANCEL

    @property
    def correction_id(self) -> str:
        told = ",".join(f"{name}={self.values[name]}" for name in sorted(self.values))
        return str(uuid.uuid5(_SPACE, f"{self.action} {self.message_id} {told}"))

    @property
    def symbol(self) -> str:
        return self._parts()[2]

    @property
    def timestamp_us(self) -> int:
        return int(self._parts()[1]) * 1_000

    def _parts(self) -> list[str]:
        parts = self.message_id.split(":", 3)
        if len(parts) != 4 or not parts[1].isdecimal() or not all(parts):
            raise LakeError(
                f"{self.message_id!r} is not the identity of a trade; it is "
                "{exchange}:{timestamp_ms}:{symbol}:{trade_id}, the column message_id",
                message_id=self.message_id,
            )
        return parts

    def check(self) -> None:
        """Raise `LakeError` for an identity or a value that cannot be."""
        self._parts()
        for name, text in self.values.items():
            if name not in _VALUES:
                raise LakeError(
                    f"{name} of a trade cannot be replaced; allowed: price, quantity, side"
                )
            if name == "side":
                if text not in SIDES:
                    raise LakeError(f"side {text!r} is unknown; allowed: {', '.join(SIDES)}")
            elif not _is_amount(text):
                raise LakeError(
                    f"{name} {text!r} is not a positive decimal of at most 18 digits before and "
                    "10 after the point"
                )


def _is_amount(text: str) -> bool:
    try:
        value = Decimal(text)
        return value > 0 and value < 10**18 and value == round(value, 10)
    except (InvalidOperation, ArithmeticError):
        return False


@dataclass(slots=True)
class Corrected:
    """What a run did, or would do. `tag`: names the snapshot with the old values."""

    trades: list[dict[str, Any]]
    files: int = 0
    rows_rewritten: int = 0
    tag: str = ""
    snapshot: str = ""
    #: The trades as they were, in the lake's columns.
    rows: pa.Table = field(default_factory=TRADES.arrow_schema.empty_table)

    def as_dict(self) -> dict[str, Any]:
        return {
            "trades": self.trades,
            "files": self.files,
            "rows_rewritten": self.rows_rewritten,
            "tag": self.tag,
            "snapshot": self.snapshot,
        }


@dataclass(frozen=True, slots=True)
class _Found:
    """The rows meant, and the files they are in, with how many of these are cancelled."""

    rows: pa.Table
    files: list[tuple[LakeFile, int]]


class Corrector:
    """Corrects trades; blocking. `clock` and `wait` for tests."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        retention: Retention | None = None,
        retry_s: float = 60.0,
        clock: Clock = SYSTEM_CLOCK,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._catalog = catalog
        self._clock = clock
        self._wait = wait
        self._reader = LakeReader(catalog)
        self._retention = retention or Retention()
        self._loop = CommitLoop(
            catalog, TRADES, retry_s=retry_s, retention=retention, clock=clock, wait=wait
        )

    def run(self, asked: Sequence[Correction], reason: str, *, dry_run: bool = False) -> Corrected:
        """Correct all of `asked` in one snapshot, or nothing.

        Raises `LakeError` for an identity that is not in the lake, and when the lake refuses.
        """
        _check(asked, reason)
        for _ in range(_TRIES):
            pinned = self._reader.current(TRADES)
            found = self._find(pinned, asked)
            done = Corrected(_described(found.rows, asked), len(found.files), rows=found.rows)
            if dry_run:
                return done
            try:
                return self._apply(pinned, found, asked, reason, done)
            except SupersededError:
                # A compaction took one of the files meanwhile; its rows are in another one now.
                continue
        raise LakeError(
            f"the trades' files were replaced by others {_TRIES} times in a row; nothing was "
            "corrected, try again"
        )

    def _find(self, pinned: Pinned, asked: Sequence[Correction]) -> _Found:
        if self._reader.has_deletes(pinned):
            raise LakeError(
                f"table {TRADES} has delete files of another engine; let that engine rewrite its "
                "data files first (Trino: ALTER TABLE … EXECUTE optimize)"
            )
        ids = pa.array([one.message_id for one in asked], pa.string())
        cancelled = pa.array([one.message_id for one in asked if not one.values], pa.string())
        tables, files = [], []
        for file in self._candidates(pinned, asked):
            rows = self._matching(pinned, file, ids)
            if rows.num_rows:
                tables.append(rows)
                files.append((file, pc.sum(pc.is_in(rows["message_id"], cancelled)).as_py()))
        rows = pa.concat_tables(tables) if tables else TRADES.arrow_schema.empty_table()
        there = set(rows["message_id"].to_pylist())
        missing = [one.message_id for one in asked if one.message_id not in there]
        if missing:
            raise LakeError(
                f"{len(missing)} of {len(asked)} trades are not in {TRADES}, the first is "
                f"{missing[0]!r}; nothing was corrected. A trade of the last seconds may still be "
                "on its way, one cancelled before is in market_data.corrections",
                missing=missing[:100],
            )
        return _Found(rows, files)

    def _candidates(self, pinned: Pinned, asked: Sequence[Correction]) -> list[LakeFile]:
        """Files of the trades' own buckets and milliseconds; each once."""
        chosen = {
            file.path: file
            for one in asked
            for file in self._reader.files_for(
                pinned, {one.symbol}, one.timestamp_us, one.timestamp_us + 1_000
            )
        }
        for file in chosen.values():
            if file.day is None or file.bucket is None:
                raise LakeError(
                    f"data file {file.path} is of another partitioning; run `k2 lake compact` or "
                    "let the engine that wrote it rewrite it",
                    path=file.path,
                )
        return list(chosen.values())

    def _matching(self, pinned: Pinned, file: LakeFile, ids: pa.Array) -> pa.Table:
        """The rows of a file that are meant; read whole only where there are some."""
        with pinned.io.new_input(file.path).open() as stream:
            there = pq.read_table(stream, columns=["message_id"], use_threads=False)
        if not pc.any(pc.is_in(there["message_id"], value_set=ids)).as_py():
            return TRADES.arrow_schema.empty_table()
        keep = _Keep(ids)
        rewriter = Rewriter(TRADES, pinned.metadata, pinned.io, 0, edit=keep)
        chunks = list(rewriter.chunks(file.path))
        return pa.concat_tables(chunks).select(TRADES.arrow_schema.names)

    def _apply(
        self,
        pinned: Pinned,
        found: _Found,
        asked: Sequence[Correction],
        reason: str,
        done: Corrected,
    ) -> Corrected:
        now_us = self._clock.now_us()
        done.tag = self._tag(pinned, now_us // 1_000)
        self._note(pinned, found.rows, asked, reason, now_us)
        added = self._rewrite(pinned, found, asked)
        removed = {file.path: file.day for file, _ in found.files}
        change = ReplaceFiles(TRADES, added, removed, Operation.OVERWRITE)
        change.notes = {"k2.correction": f"{len(asked)} trades: {reason}"[:500]}
        done.rows_rewritten = sum(file.record_count for file in added)
        done.snapshot = str(self._loop.run(change).snapshot.snapshot_id)
        return done

    def _tag(self, pinned: Pinned, now_ms: int) -> str:
        """Name the snapshot that has the old values, for as long as history is kept."""
        name, snapshot = refs.corrected_tag(now_ms), pinned.snapshot
        assert snapshot is not None  # it has the trades
        keep_ms = self._retention.days * 86_400_000
        alter(
            self._catalog,
            TRADES,
            lambda metadata: (
                [] if name in metadata.refs else [refs.tag_update(name, snapshot, keep_ms)]
            ),
            self._wait,
        )
        return name

    def _note(
        self,
        pinned: Pinned,
        rows: pa.Table,
        asked: Sequence[Correction],
        reason: str,
        now_us: int,
    ) -> None:
        noted = corrections.known(self._catalog, [one.correction_id for one in asked])
        left = [one for one in asked if one.correction_id not in noted]
        if left:
            codec = pinned.metadata.properties.get("write.parquet.compression-codec", "zstd")
            corrections.note(self._catalog, _notes(rows, left, reason, now_us), codec)

    def _rewrite(
        self, pinned: Pinned, found: _Found, asked: Sequence[Correction]
    ) -> list[DataFile]:
        """Each file anew; what was written is deleted when it does not come to a commit."""
        target = CompactionPolicy().target_bytes
        rewriter = Rewriter(TRADES, pinned.metadata, pinned.io, target, edit=_Edit(asked))
        added: list[DataFile] = []
        run = uuid.uuid4()
        try:
            for number, (file, cancelled) in enumerate(found.files):
                made = rewriter.rewrite(_alone(file), f"x-{run}-{number:04d}")
                added += made
                _demand(file, made, cancelled)
        except BaseException:
            delete_files(pinned.io, [one.file_path for one in added])
            raise
        return added


def _alone(file: LakeFile) -> Group:
    assert file.day is not None
    assert file.bucket is not None
    return Group(file.day, file.bucket, (file,))


def _demand(file: LakeFile, made: Sequence[DataFile], cancelled: int) -> None:
    written = sum(one.record_count for one in made)
    if written + cancelled != file.rows:
        raise LakeError(
            f"correction of {TRADES} read {file.rows} rows of {file.path} and wrote {written}, "
            f"with {cancelled} cancelled; nothing was changed",
            path=file.path,
        )


def _check(asked: Sequence[Correction], reason: str) -> None:
    if not asked:
        raise LakeError("no trade is named; give its message_id")
    if not reason.strip():
        raise LakeError("a correction needs a reason (--reason): it is kept with the trade")
    if len(asked) > MOST:
        raise LakeError(f"{len(asked)} corrections at once; allowed: {MOST}, so do them in parts")
    for one in asked:
        one.check()
    ((most, times),) = Counter(one.message_id for one in asked).most_common(1)
    if times > 1:
        raise LakeError(f"{most!r} is named {times} times; a trade is corrected one way at a time")


class _Keep:
    """Only the rows of `ids`."""

    def __init__(self, ids: pa.Array) -> None:
        self._ids = ids

    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows.filter(pc.is_in(rows["message_id"], value_set=self._ids))


class _Edit:
    """Takes cancelled rows out and gives replaced ones their new values."""

    def __init__(self, asked: Sequence[Correction]) -> None:
        self._cancelled = pa.array([one.message_id for one in asked if not one.values], pa.string())
        self._values = {one.message_id: one.values for one in asked if one.values}

    def __call__(self, rows: pa.Table) -> pa.Table:
        gone = pc.is_in(rows["message_id"], value_set=self._cancelled)
        return self._replaced(rows.filter(pc.invert(gone)))

    def _replaced(self, rows: pa.Table) -> pa.Table:
        ids = pa.array(list(self._values), pa.string())
        index = pc.index_in(rows["message_id"], value_set=ids).combine_chunks()
        if index.null_count == len(index):
            return rows
        for name in _VALUES:
            column = rows.schema.get_field_index(name)
            kind = rows.schema.field(column).type
            new = _typed([values.get(name) for values in self._values.values()], kind)
            taken = new.take(index)
            merged = pc.coalesce(taken, rows.column(column).combine_chunks())
            rows = rows.set_column(column, rows.schema.field(column), merged)
        return rows


def _typed(texts: list[str | None], kind: pa.DataType) -> pa.Array:
    if pa.types.is_decimal(kind):
        return pa.array([None if text is None else Decimal(text) for text in texts], kind)
    return pa.array(texts, kind)


def _described(rows: pa.Table, asked: Sequence[Correction]) -> list[dict[str, Any]]:
    """Each row that is corrected: what it says now and what it will say."""
    wanted = {one.message_id: one for one in asked}
    found = []
    for row in rows.select(["message_id", *_VALUES]).to_pylist():
        one = wanted[row["message_id"]]
        found.append(
            {
                "message_id": row["message_id"],
                "action": one.action,
                "old": {name: str(row[name]) for name in _VALUES},
                "new": dict(one.values),
            }
        )
    return found


def _notes(rows: pa.Table, asked: Sequence[Correction], reason: str, now_us: int) -> pa.Table:
    """Rows of `market_data.corrections`, one for each row of a trade."""
    wanted = {one.message_id: one for one in asked}
    made = []
    for row in rows.to_pylist():
        one = wanted.get(row["message_id"])
        if one is None:
            continue
        new = {name: row[name] for name in _VALUES} | dict(one.values)
        made.append(
            {name: row[name] for name in CORRECTIONS.arrow_schema.names if name in row}
            | {f"old_{name}": row[name] for name in _VALUES}
            | {f"new_{name}": _new(new[name], name) if one.values else None for name in _VALUES}
            | {
                "correction_id": one.correction_id,
                "corrected_at": now_us,
                "action": one.action,
                "reason": reason,
            }
        )
    return pa.Table.from_pylist(made, schema=CORRECTIONS.arrow_schema)


def _new(value: Any, name: str) -> Any:
    return value if name == "side" else Decimal(value)
