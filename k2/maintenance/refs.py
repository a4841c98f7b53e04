"""Tags for time travel: the last snapshot of each hour and day, and what the operator names.

A tag keeps its snapshot from expiry, by K2 and by any other engine. `due_tags` is pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import MAIN_BRANCH, SnapshotRefType
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.update import (
    RemoveSnapshotRefUpdate,
    SetSnapshotRefUpdate,
    TableUpdate,
)

from k2.errors import LakeError
from k2.lake.history import ancestors
from k2.lake.snapshot import VECTOR_TAG

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class _Kind:
    """Tags of one period: their name's begin, their clock's form, and how long they stay."""

    prefix: str
    form: str
    period_ms: int
    keep_ms: int

    def name(self, at_ms: int) -> str:
        start = datetime.fromtimestamp(at_ms // self.period_ms * self.period_ms / 1000, UTC)
        return self.prefix + start.strftime(self.form)


def kinds(days: int = 90) -> tuple[_Kind, _Kind]:
    """Hourly tags for two days, daily ones for `days`."""
    return (
        _Kind("hourly-", "%Y-%m-%dT%H", _HOUR_MS, 2 * _DAY_MS),
        _Kind("daily-", "%Y-%m-%d", _DAY_MS, days * _DAY_MS),
    )


#: Tags of what a table held before a correction; named by its time.
CORRECTED_PREFIX: Final = "corrected-"
_RESERVED: Final = (*(kind.prefix for kind in kinds()), CORRECTED_PREFIX)


def due_tags(metadata: TableMetadata, now_ms: int, days: int = 90) -> list[TableUpdate]:
    """Tags to set on the last snapshot of each full hour and day, and outlived ones to remove."""
    changes: list[TableUpdate] = []
    chain = list(ancestors(metadata, metadata.current_snapshot()))
    for kind in kinds(days):
        wanted = dict(_lasts(chain, kind, now_ms))
        changes += [
            tag_update(name, snapshot, kind.keep_ms)
            for name, snapshot in wanted.items()
            if name not in metadata.refs
        ]
        oldest = kind.name(now_ms - kind.keep_ms)
        changes += [
            RemoveSnapshotRefUpdate(ref_name=name)
            for name in metadata.refs
            # The names' order is the clock's.
            if name.startswith(kind.prefix) and name < oldest
        ]
    oldest = corrected_tag(now_ms - days * _DAY_MS)
    changes += [
        RemoveSnapshotRefUpdate(ref_name=name)
        for name in metadata.refs
        if name.startswith(CORRECTED_PREFIX) and name < oldest
    ]
    return changes


def corrected_tag(at_ms: int) -> str:
    """Name of the tag of what a table held before a correction at this time."""
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return CORRECTED_PREFIX + at.strftime("%Y-%m-%dT%H-%M-%S-%f")


def _lasts(chain: list[Snapshot], kind: _Kind, now_ms: int) -> Iterator[tuple[str, Snapshot]]:
    """(name, last snapshot) of every full period within the time kept; `chain` newest first."""
    seen = {now_ms // kind.period_ms}
    for snapshot in chain:
        period = snapshot.timestamp_ms // kind.period_ms
        if period not in seen and now_ms - snapshot.timestamp_ms < kind.keep_ms:
            seen.add(period)
            yield kind.name(snapshot.timestamp_ms), snapshot


def tag_update(name: str, snapshot: Snapshot, keep_ms: int | None) -> SetSnapshotRefUpdate:
    """Set a tag. `keep_ms`: other engines' expiry may remove it when it is older."""
    return SetSnapshotRefUpdate(
        snapshot_id=snapshot.snapshot_id,
        ref_name=name,
        type=SnapshotRefType.TAG,
        max_ref_age_ms=keep_ms,
        max_snapshot_age_ms=None,
        min_snapshots_to_keep=None,
    )


def check_new_tag(metadata: TableMetadata, name: str) -> None:
    """Raise `LakeError` for a name that is taken, reserved or no name."""
    _check_name(name)
    if name in metadata.refs:
        raise LakeError(
            f"tag {name!r} names snapshot {metadata.refs[name].snapshot_id} already; remove it "
            "first (--delete) or choose another name",
            tag=name,
        )


def check_old_tag(metadata: TableMetadata, name: str) -> None:
    """Raise `LakeError` for a tag that is not there or not the operator's to remove."""
    _check_name(name)
    ref = metadata.refs.get(name)
    if ref is None or ref.snapshot_ref_type != SnapshotRefType.TAG:
        tags = ", ".join(sorted(set(metadata.refs) - {MAIN_BRANCH, VECTOR_TAG})) or "(none)"
        raise LakeError(f"there is no tag {name!r}; there are: {tags}", tag=name)


def _check_name(name: str) -> None:
    if name in (MAIN_BRANCH, VECTOR_TAG) or name.startswith(_RESERVED):
        raise LakeError(
            f"tag {name!r} is K2's own; reserved: {MAIN_BRANCH}, {VECTOR_TAG}, "
            f"{', '.join(prefix + '…' for prefix in _RESERVED)}",
            tag=name,
        )
    if not _NAME.fullmatch(name):
        raise LakeError(
            f"tag {name!r} is not a name; allowed: letters, digits, '.', '_' and '-', at most 100",
            tag=name,
        )


def snapshot_named(metadata: TableMetadata, text: str) -> Snapshot:
    """A snapshot by id, tag or time (ISO 8601, UTC unless it says otherwise).

    Raises `LakeError` when none is meant.
    """
    ref = metadata.refs.get(text)
    wanted = ref.snapshot_id if ref else int(text) if text.isdecimal() else None
    known = wanted is not None
    found = metadata.snapshot_by_id(wanted or 0) if known else _snapshot_at(metadata, text)
    if found is None:
        raise LakeError(
            f"there is no snapshot {text!r}; give an id, a tag or a time that "
            "`k2 lake status` shows",
            snapshot=text,
        )
    return found


def _snapshot_at(metadata: TableMetadata, text: str) -> Snapshot | None:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    at_ms = int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    chain = ancestors(metadata, metadata.current_snapshot())
    return next((one for one in chain if one.timestamp_ms <= at_ms), None)
