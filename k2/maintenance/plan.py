"""Which files to merge: pure planning over the live files of a snapshot.

Merging whenever small files add up to the next larger one keeps a partition at a few files (each
larger than all smaller ones together) and rewrites a row about as often as its file doubles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from k2.lake.files import day_of
from k2.lake.reader import LakeFile

_MB = 1024 * 1024
#: How long after midnight a day still gets the rows that were on their way.
_SETTLE_US = 300 * 1_000_000
#: (days since 1970, bucket)
Partition = tuple[int, int]


@dataclass(frozen=True, slots=True)
class CompactionPolicy:
    """When files of one (day, bucket) are merged.

    `target_bytes`: size of a finished file; one of three quarters of it is finished. `min_files`:
    files that make an open day due. `growth`: how many times larger than all smaller files together
    a file may be to be merged with them; more on a closed day, where this happens once.
    `max_files`: most files in one merge, which all are open at once.
    """

    target_bytes: int = 128 * _MB
    min_files: int = 12
    min_files_closed: int = 2
    growth: float = 1.0
    growth_closed: float = 8.0
    max_files: int = 128

    @property
    def finished_bytes(self) -> int:
        return self.target_bytes * 3 // 4


@dataclass(frozen=True, slots=True)
class Group:
    """Files of one partition to be merged into one, or a few of the target size.

    `closed`: the day is over, so of rows that are versions only the newest stay.
    """

    day: int
    bucket: int
    files: tuple[LakeFile, ...]
    closed: bool = False

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def plan(
    files: Iterable[LakeFile],
    policy: CompactionPolicy,
    *,
    open_day: int | None = None,
    quiet: Collection[Partition] = (),
) -> list[Group]:
    """Groups that are due, those with the most files first.

    `open_day`: days since 1970 from which on days still grow; None: the newest day of the files.
    `quiet`: partitions of that day and later which grow no more all the same. Files of another
    partitioning are left alone.
    """
    partitions: dict[Partition, list[LakeFile]] = {}
    for file in files:
        if file.day is not None and file.bucket is not None:
            partitions.setdefault((file.day, file.bucket), []).append(file)
    newest = max((day for day, _ in partitions), default=0) if open_day is None else open_day
    over = {at: at[0] < newest or at in quiet for at in partitions}
    groups = [
        Group(*at, tuple(pack), over[at])
        for at, members in partitions.items()
        for pack in _due(members, policy, closed=over[at])
    ]
    groups.sort(key=lambda group: (-len(group.files), group.day, group.bucket))
    return groups


def rows_of(files: Iterable[LakeFile]) -> Mapping[Partition, int]:
    """Rows of every partition: as long as they are the same nothing came."""
    rows: Counter[Partition] = Counter()
    for file in files:
        if file.day is not None and file.bucket is not None:
            rows[file.day, file.bucket] += file.rows
    return rows


def quiet_partitions(
    now: Mapping[Partition, int], before: Mapping[Partition, int], now_us: int
) -> set[Partition]:
    """Partitions of days that are over and that hold what they held `before`.

    The clock alone does not close a day: a tape of last year is still being loaded into its days.
    """
    today = day_of(now_us - _SETTLE_US)
    return {
        partition
        for partition, rows in now.items()
        if partition[0] < today and before.get(partition) == rows
    }


def _due(files: list[LakeFile], policy: CompactionPolicy, *, closed: bool) -> list[list[LakeFile]]:
    """The packs of one partition that are worth merging now."""
    growth = policy.growth_closed if closed else policy.growth
    fewest = policy.min_files_closed if closed else policy.min_files
    small = sorted(
        (file for file in files if file.bytes < policy.finished_bytes),
        key=lambda file: (file.bytes, file.path),
    )
    count, below = 0, 0
    for index, file in enumerate(small):
        if index and file.bytes <= growth * below:
            count = index + 1
        below += file.bytes
    if count < fewest:
        return []
    return [pack for pack in _packs(small[:count], policy) if len(pack) > 1]


def _packs(files: list[LakeFile], policy: CompactionPolicy) -> list[list[LakeFile]]:
    """First fit in rising size: packs of at most the target's bytes and the number of files."""
    packs: list[list[LakeFile]] = [[]]
    room = policy.target_bytes
    for file in files:
        if packs[-1] and (file.bytes > room or len(packs[-1]) >= policy.max_files):
            packs.append([])
            room = policy.target_bytes
        packs[-1].append(file)
        room -= file.bytes
    return packs
