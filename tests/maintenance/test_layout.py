"""What a query reads, taken from plans: its own bucket, its own day, and sorted files."""

import pytest

from k2.lake.files import day_of, symbol_bucket
from k2.lake.reader import LakeReader
from k2.lake.tables import TRADES
from k2.maintenance.keeper import Keeper, KeeperOptions
from k2.maintenance.plan import CompactionPolicy
from k2.query.bounds import Bounds
from k2.query.cold import ColdSnapshot
from tests.lake.rows import T0_US
from tests.maintenance.lakes import fill

SYMBOLS = tuple(f"S{i:04d}USDT" for i in range(1_000))
ROWS = 4_000
MIDNIGHT_US = (day_of(T0_US) + 1) * 86_400_000_000


@pytest.fixture(params=["as committed", "compacted"])
def snapshot(catalog, request):
    fill(catalog, 4, rows=ROWS, symbols=SYMBOLS)
    if request.param == "compacted":
        options = KeeperOptions(CompactionPolicy(min_files=2))
        assert Keeper(catalog, TRADES, options).compact().commits == 1
    reader = LakeReader(catalog)
    pinned = reader.current(TRADES)
    return ColdSnapshot(
        snapshot_id=pinned.snapshot_id,
        vector=pinned.vector,
        columns=TRADES.arrow_schema,
        files=reader.files(pinned),
    )


def size(files):
    return sum(file.bytes for file in files)


def test_a_symbol_query_reads_its_own_buckets_files_only(snapshot):
    total, shares = size(snapshot.files), []
    for symbol in SYMBOLS:
        chosen = snapshot.select(Bounds(symbols=frozenset([symbol])))
        assert {file.bucket for file in chosen} == {symbol_bucket(symbol)}
        shares.append(size(chosen) / total)
    assert sum(shares) / len(shares) <= 1.2 / 16


def test_a_day_query_reads_its_day_only(snapshot):
    days = {file.day for file in snapshot.files}
    assert days == {day_of(T0_US), day_of(T0_US) + 1}
    before = snapshot.select(Bounds(end_us=MIDNIGHT_US))
    after = snapshot.select(Bounds(start_us=MIDNIGHT_US))
    assert {file.day for file in before} == {day_of(T0_US)}
    assert {file.day for file in after} == {day_of(T0_US) + 1}
    assert size(before) + size(after) == size(snapshot.files)


def test_another_engine_prunes_alike(snapshot, catalog):
    """The partition values and bounds are Iceberg's own, so PyIceberg's plan agrees."""
    table = catalog.load_table(TRADES.identifier)
    for symbol in SYMBOLS[::200]:
        tasks = table.scan(row_filter=f"symbol = '{symbol}'").plan_files()
        ours = snapshot.select(Bounds(symbols=frozenset([symbol])))
        assert {task.file.file_path for task in tasks} == {file.path for file in ours}
