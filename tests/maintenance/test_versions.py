"""Candles of a day that is over: the newest version of each window stays, the others go."""

from __future__ import annotations

from decimal import Decimal
from itertools import groupby

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.catalog import Catalog
from pyiceberg.table.snapshots import Operation

from k2.candles.versions import lake_rows
from k2.lake.history import vector_at
from k2.lake.reader import LakeReader, Pinned
from k2.lake.tables import CANDLES
from k2.maintenance.keeper import Keeper, KeeperOptions
from k2.maintenance.plan import CompactionPolicy
from k2.maintenance.versions import newest_only
from tests.candles import plain
from tests.candles.lakes import CandleLake
from tests.query.rows import T0_US, rows

DAY_US = 86_400_000_000
ORDER = ("symbol", "window_start", "version")
ROWS = st.lists(
    st.tuples(st.sampled_from("AB"), st.integers(0, 3), st.integers(0, 9), st.sampled_from("mh")),
    max_size=40,
    unique=True,
)


@given(ROWS, st.lists(st.integers(1, 7), min_size=1))
def test_the_last_of_each_stays_however_the_rows_are_cut(
    made: list[tuple[str, int, int, str]], cuts: list[int]
) -> None:
    made = sorted(made)
    columns = [*ORDER, "timeframe"]
    table = pa.Table.from_pylist(
        [dict(zip(columns, row, strict=True)) for row in made],
        pa.schema(
            [(n, pa.string() if n in ("symbol", "timeframe") else pa.int64()) for n in columns]
        ),
    )
    parts, at = [], 0
    while at < len(made):
        size = cuts[len(parts) % len(cuts)]
        parts.append(table.slice(at, size))
        at += size
    kept = newest_only(parts, ORDER, ("symbol", "timeframe", "window_start"))
    found = sorted(tuple(row.values()) for part in kept for row in part.to_pylist())
    by_key = sorted(made, key=lambda row: (row[0], row[3], row[1], row[2]))
    windows = groupby(by_key, key=lambda row: (row[0], row[3], row[1]))
    assert found == sorted(list(versions)[-1] for _, versions in windows)


def keeper(catalog: Catalog) -> Keeper:
    return Keeper(catalog, CANDLES, KeeperOptions(policy=CompactionPolicy(min_files=3)))


def trades(first: int, count: int, day: int) -> pa.Table:
    sequences = range(first, first + count)
    return rows(
        sequences,
        [T0_US + day * DAY_US + s * 1_000_000 for s in sequences],
        symbols=[("BTCUSDT", "ETHUSDT")[s % 2] for s in sequences],
        prices=[Decimal(100 + (s * 7) % 13) for s in sequences],
        quantities=[Decimal(1)] * count,
    )


def versions(reader: LakeReader, pinned: Pinned, day: int) -> int:
    start_us = (T0_US // DAY_US + day) * DAY_US
    return sum(f.rows for f in reader.files_for(pinned, None, start_us, start_us + DAY_US))


@pytest.fixture
def lake(catalog: Catalog) -> CandleLake:
    """Five commits of one day, three of the next, which is still open."""
    made = CandleLake(catalog)
    for number in range(5):
        made.add(trades(number * 10, 10, 0))
    for number in range(5, 8):
        made.add(trades(number * 10, 10, 1))
    return made


def test_a_closed_day_keeps_the_newest_versions_only(lake: CandleLake, catalog: Catalog) -> None:
    reader = lake.reader
    before, shown = reader.current(CANDLES), lake.stored()
    all_of_yesterday, all_of_today = (versions(reader, before, day) for day in (0, 1))
    report = keeper(catalog).compact()
    after = reader.current(CANDLES)
    windows = sum(
        row["window_start"].timestamp() * 1e6 // DAY_US == T0_US // DAY_US
        for row in shown.to_pylist()
    )
    assert versions(reader, after, 0) == windows < all_of_yesterday
    assert versions(reader, after, 1) == all_of_today
    assert report.rows_replaced == all_of_yesterday - windows
    assert lake.stored() == shown
    snapshot = after.snapshot
    assert snapshot is not None
    assert snapshot.summary is not None
    assert snapshot.summary.operation == Operation.OVERWRITE
    assert snapshot.summary["total-records"] == str(windows + all_of_today)
    assert after.vector == vector_at(after.metadata, snapshot) == before.vector
    # The past is as it was.
    past = reader.by_id(CANDLES, before.snapshot_id or 0)
    assert versions(reader, past, 0) == all_of_yesterday
    scan = catalog.load_table(CANDLES.identifier).scan(snapshot_id=past.snapshot_id)
    assert scan.to_arrow().num_rows == all_of_yesterday + all_of_today


def test_a_late_trade_goes_on_from_what_was_kept(lake: CandleLake, catalog: Catalog) -> None:
    highest = max(lake.stored()["version"].to_pylist())
    keeper(catalog).compact()
    # By the writer that remembers the versions of before, and by one that does not.
    for number, writer in enumerate((lake.candles, lake.candle_writer())):
        lake.candles = writer
        lake.add(trades(80 + 10 * number, 10, 0))
        found = {row["version"] for row in lake.stored().to_pylist()}
        assert max(found) == highest + number + 1
    assert plain.table(lake_rows(lake.stored(), 0)) == lake.expected()


def test_what_is_closed_is_not_closed_again(lake: CandleLake, catalog: Catalog) -> None:
    assert keeper(catalog).compact().commits == 1
    again = keeper(catalog).compact()
    assert (again.commits, again.rows_replaced) == (0, 0)
