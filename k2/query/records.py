"""The first records of one table in time order, from hot and cold rows, from few files.

Newest first (or oldest first): files are read in the order of their nearest timestamp. Once `limit`
rows are known, a file whose nearest timestamp is beyond the limit-th of them cannot change the
answer, nor can any after it: the usual question ("the last hundred trades of X") is answered from
memory, and late rows in old files are still found when they belong to the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2 import metrics
from k2.lake.reader import LakeFile
from k2.query.asked import RecordsQuery, beyond, narrowed, near, nth_of
from k2.query.bounds import Bounds
from k2.query.cold import TIE_BREAK, ColdSnapshot, column_list, identifier
from k2.query.cold_rows import ColdRows, Looked, Opened
from k2.query.data_file import RowGroup
from k2.query.filters import after_key, all_of, key_sql
from k2.query.hot_rows import HotRows, hot_rows
from k2.query.near_rows import NearRows
from k2.query.seam import Pin

#: A read takes files until they have this many rows per row asked for, at most so many files; each
#: further read takes four times as much.
_ROWS_PER_ROW: Final = 10
_FILES: Final = 16
#: From here on the time column is read alone first: decoding all columns of all rows costs more
#: than a second look (8,000 rows: 19 ms at once, 10 ms in two).
_NARROW_FIRST_ROWS: Final = 2_000


_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Found:
    """`rows` in order; `files_read` of `files_total` data files were opened.

    `cut_short`: the deadline came before all files that matter were read.
    """

    rows: pa.Table
    files_read: int
    files_total: int
    cut_short: bool = False


def find(
    cursor: duckdb.DuckDBPyConnection,
    pinned: Pin[ColdSnapshot],
    query: RecordsQuery,
    kept: NearRows | None = None,
) -> Found:
    """The first rows of the union of hot and cold, in a total order.

    `kept`: rows of the table's files that were read before; None: all are read. At the deadline:
    what is known so far; raises as DuckDB does when that is nothing.
    """
    snapshot = pinned.snapshot
    best = hot_rows(pinned, query).table(snapshot.columns)
    files = _nearest_first(snapshot.select(query.bounds), query)
    if kept is not None and not kept.takes(snapshot, query):
        kept = None
    read, opened, number, cut_short = 0, 0, 0, False
    while read < len(files):
        edge = _edge(best, query)
        wanted = _next_wanted(files[read:], number, edge, query)
        if not wanted:
            break
        known = None if kept is None else kept.get(query, number, wanted, edge)
        try:
            if known is not None:
                rows = known.table(snapshot.columns)
            else:
                rows = _cold(cursor, snapshot, wanted, query, edge)
                if kept is not None:
                    kept.keep(query, number, wanted, edge, _top([rows], query))
        except duckdb.InterruptException:
            if not best.num_rows:
                raise
            cut_short = True
            break
        # iceberg_scan reads the whole snapshot, whatever files were named.
        taken = len(files) - read if snapshot.metadata_location else len(wanted)
        read, opened = read + taken, opened + (0 if known is not None else taken)
        number += 1
        best = _top([best, rows], query)
    return Found(best, opened, len(snapshot.files), cut_short)


def find_hot(pinned: Pin[ColdSnapshot], query: RecordsQuery, kept: NearRows) -> HotRows | None:
    """The same when memory can be proven to have all `query.limit` rows, without I/O; else None."""
    found = hot_rows(pinned, query)
    may_help = kept.takes(pinned.snapshot, query)
    if len(found) < query.limit and not may_help:
        return None
    files, number = _nearest_first(pinned.snapshot.select(query.bounds), query), 0
    while files:
        edge = found.edge_us(query)
        wanted = _next_wanted(files, number, edge, query)
        if not wanted:
            break
        known = kept.get(query, number, wanted, edge) if may_help else None
        if known is None:
            if may_help:
                metrics.QUERY_CACHE_MISSES.labels("near_rows").inc()
            return None
        found = found.with_chunks(known.chunks, query)
        files, number = files[len(wanted) :], number + 1
    if len(found) < query.limit:
        return None
    if number:
        metrics.QUERY_CACHE_HITS.labels("near_rows").inc()
    return found


def _next_wanted(
    files: list[LakeFile], number: int, edge: int | None, query: RecordsQuery
) -> list[LakeFile]:
    """Of the files that are left the ones to read next, as their group `number`."""
    group = _next_group(files, 4**number, query)
    return [file for file in group if _may_change(file, edge, query)]


def _nearest_first(files: list[LakeFile], query: RecordsQuery) -> list[LakeFile]:
    """`files` come latest first; a file without bounds may hold anything and stays in front."""
    if query.newest_first:
        return files
    return sorted(
        files, key=lambda file: (False, 0) if not file.times_us else (True, file.times_us[0])
    )


def _next_group(files: list[LakeFile], scale: int, query: RecordsQuery) -> list[LakeFile]:
    """The first files that have enough rows together, and those of the same time.

    The buckets of one day hold the same hours: read one after the other, what the first gives
    would mostly be thrown away again.
    """
    wanted, most = query.limit * _ROWS_PER_ROW * scale, _FILES * scale
    edge = _far_end(files[0], query)
    rows = count = 0
    for file in files[:most]:
        if rows >= wanted and not _may_change(file, edge, query):
            break
        rows, count = rows + file.rows, count + 1
    return files[:count]


def _far_end(file: LakeFile, query: RecordsQuery) -> int | None:
    """Where a file ends, seen in the order of the query; None: not known."""
    if file.times_us is None:
        return None
    return file.times_us[0] if query.newest_first else file.times_us[1]


def _mask(rows: pa.Table, query: RecordsQuery) -> Any:
    """Which rows the query wants; None: all."""
    start, end = query.times
    times = rows[query.time_column]
    tests = [test.mask(rows) for test in query.tests]
    if start is not None:
        tests.append(pc.greater_equal(times, _time(start)))
    if end is not None:
        tests.append(pc.less(times, _time(end)))
    if query.after is not None:
        tests.append(
            after_key(rows, query.time_column, query.after, newest_first=query.newest_first)
        )
    return all_of(tests)


def _time(us: int) -> pa.Scalar:
    return pa.scalar(us, pa.timestamp("us", "UTC"))


def _top(tables: list[pa.Table], query: RecordsQuery) -> pa.Table:
    rows = pa.concat_tables([table for table in tables if table.num_rows] or tables[:1])
    rows = rows.combine_chunks()
    if rows.num_rows > 4 * query.limit:
        # Only what is as near as the limit-th row needs the full sort.
        edge, times = _time(_nth(rows, query)), rows[query.time_column]
        near = pc.greater_equal if query.newest_first else pc.less_equal
        rows = rows.filter(near(times, edge))
    order = pc.sort_indices(rows, sort_keys=query.order)
    return rows.take(order.slice(0, query.limit))


def _edge(rows: pa.Table, query: RecordsQuery) -> int | None:
    """The limit-th timestamp so far; None while there are fewer rows."""
    return _nth(rows, query) if rows.num_rows >= query.limit else None


def _nth(rows: pa.Table, query: RecordsQuery) -> int:
    return nth_of(rows[query.time_column].cast(pa.int64()).to_numpy(), query)


def _may_change(part: LakeFile | RowGroup, edge: int | None, query: RecordsQuery) -> bool:
    return edge is None or part.times_us is None or not beyond(part.times_us, edge, query)


def _cold(
    cursor: duckdb.DuckDBPyConnection,
    snapshot: ColdSnapshot,
    files: list[LakeFile],
    query: RecordsQuery,
    edge: int | None,
) -> pa.Table:
    """The rows of `files` that may be among the first `limit`, in any order."""
    query = narrowed(query, edge)
    reader = snapshot.reader(files)
    if reader is not None:
        return _nearest(reader, files, query)
    scan = snapshot.scan(files)
    if sum(file.rows for file in files) > _NARROW_FIRST_ROWS:
        query = narrowed(query, _nth_cold(cursor, scan, query))
    where, values = _where(query)
    direction = "DESC" if query.newest_first else "ASC"
    order = ", ".join(f"{identifier(name)} {direction}" for name, _ in query.order)
    sql = (
        f"SELECT {column_list(snapshot.columns.names)} FROM {scan}{where} "  # noqa: S608
        f"ORDER BY {order} LIMIT {int(query.limit)}"
    )
    return cursor.execute(sql, values).to_arrow_table().cast(snapshot.columns)


def _nearest(reader: ColdRows, files: list[LakeFile], query: RecordsQuery) -> pa.Table:
    """The rows of `files` that may be among the first `limit`, ties included, in any order.

    As files are, row groups are looked at from the nearest on until no other can matter.
    """
    asked = _Asked(query)
    left = reader.groups(files, asked)
    left.sort(key=lambda group: _nearness(group, query))
    opened: Opened = {}
    looks: list[Looked] = []
    times: list[_Ints] = []
    edge: int | None = None
    scale = 1
    while left:
        count = _next_groups(left, scale, query)
        scale *= 4
        looked = reader.look(left[:count], asked, opened)
        looks.append(looked)
        stamps = looked.keys[query.time_column].cast(pa.int64()).to_numpy()
        times.append(stamps[looked.places])
        together = np.concatenate(times)
        if len(together) >= query.limit:
            edge = nth_of(together, query)
        left = [group for group in left[count:] if _may_change(group, edge, query)]
    found = [reader.nothing]
    for looked, own in zip(looks, times, strict=True):
        places = looked.places if edge is None else looked.places[near(own, edge, query)]
        found.append(reader.take(looked, places))
    return pa.concat_tables(found)


def _nearness(group: RowGroup, query: RecordsQuery) -> int:
    """Rises from the nearest on; all that reach beyond where the query begins are alike."""
    if group.times_us is None:
        return -(2**63)
    start, end = query.times
    if query.newest_first:
        last = group.times_us[1]
        return -(last if end is None else min(last, end - 1))
    first = group.times_us[0]
    return first if start is None else max(first, start)


def _next_groups(groups: list[RowGroup], scale: int, query: RecordsQuery) -> int:
    """How many of the first to look at: enough rows, and whatever is as near as the last."""
    wanted = query.limit * _ROWS_PER_ROW * scale
    rows = 0
    for count, group in enumerate(groups):
        if rows >= wanted and _nearness(group, query) > _nearness(groups[count - 1], query):
            return count
        rows += group.rows
    return len(groups)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The rows of a query, for `ColdRows`."""

    query: RecordsQuery

    @property
    def columns(self) -> list[str]:
        behind = () if self.query.after is None else TIE_BREAK
        tests = (test.column for test in self.query.tests)
        return list(dict.fromkeys((self.query.time_column, *tests, *behind)))

    @property
    def bounds(self) -> Bounds:
        return self.query.bounds

    def rows(self, keys: pa.Table) -> _Ints:
        mask = _mask(keys, self.query)
        if mask is None:
            return np.arange(keys.num_rows)
        return np.flatnonzero(mask.to_numpy())


def _nth_cold(
    cursor: duckdb.DuckDBPyConnection, scan: str | None, query: RecordsQuery
) -> int | None:
    """The limit-th timestamp of `scan`; None when it has fewer rows."""
    where, values = _where(query)
    time = identifier(query.time_column)
    direction = "DESC" if query.newest_first else "ASC"
    row = cursor.execute(
        f"SELECT epoch_us({time}) FROM {scan}{where} "  # noqa: S608
        f"ORDER BY {time} {direction} LIMIT 1 OFFSET {int(query.limit) - 1}",
        values,
    ).fetchone()
    return None if row is None else int(row[0])


def _where(query: RecordsQuery) -> tuple[str, list[Any]]:
    time = identifier(query.time_column)
    start, end = query.times
    parts = [test.sql() for test in query.tests]
    if start is not None:
        parts.append((f"{time} >= make_timestamptz(?::BIGINT)", [start]))
    if end is not None:
        parts.append((f"{time} < make_timestamptz(?::BIGINT)", [end]))
    if query.after is not None:
        parts.append(key_sql(query.time_column, query.after, newest_first=query.newest_first))
    where = f" WHERE {' AND '.join(text for text, _ in parts)}" if parts else ""
    return where, [value for _, values in parts for value in values]
