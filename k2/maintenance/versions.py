"""Take out what newer versions have replaced, in bounded memory: pure, over Arrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def newest_only(
    tables: Iterable[pa.Table], order: Sequence[str], keys: Sequence[str]
) -> Iterator[pa.Table]:
    """Of the rows with the same `keys` the last one, in the order they come in.

    The tables are sorted by `order` (symbol, time, version), also across tables; `keys` has symbol
    and time in it. Holds one table, and one row for each of the `keys` of a symbol's moment.
    """
    held: pa.Table | None = None
    for rows in tables:
        if not rows.num_rows:
            continue
        known = rows if held is None else pa.concat_tables([held, rows])
        # Versions of the last moment may still come.
        start = _last_moment(known, order)
        if start:
            yield _last_of_each(known.slice(0, start), keys)
        held = _last_of_each(known.slice(start), keys)
    if held is not None:
        yield held


def _last_moment(rows: pa.Table, order: Sequence[str]) -> int:
    """Where the rows of the last symbol's last moment begin."""
    last = rows.slice(rows.num_rows - 1)
    symbol, time = (pc.equal(rows[name], last[name][0]) for name in order[:2])
    return int(np.argmax(pc.and_(symbol, time).to_numpy()))


def _last_of_each(rows: pa.Table, keys: Sequence[str]) -> pa.Table:
    numbered = rows.select(list(keys)).append_column("row", pa.array(np.arange(rows.num_rows)))
    last = numbered.group_by(list(keys), use_threads=False).aggregate([("row", "max")])["row_max"]
    if len(last) == rows.num_rows:
        return rows
    return rows.take(last.sort())
