import importlib
from pathlib import Path

import duckdb
import pytest
from pyiceberg.catalog import load_catalog

from k2.errors import LakeError
from k2.lake.files import symbol_bucket
from k2.lake.reader import LakeReader
from k2.lake.tables import TRADES
from k2.lake.vector import Vector
from k2.lake.writer import LakeWriter
from tests.lake.rows import T0_US, place, trades, upto

SECOND = 1_000_000
DAY_1, DAY_2 = 19_943, 19_944


@pytest.fixture
def writer(catalog):
    return LakeWriter(catalog, TRADES)


@pytest.fixture
def reader(catalog):
    return LakeReader(catalog)


def append(writer, ids, base=None, **options):
    return writer.commit(trades(ids, **options), {place(): base}, {place(): upto(ids[-1] + 1)})


def test_an_empty_table_has_no_snapshot(reader):
    pinned = reader.current("trades")
    assert (pinned.snapshot_id, pinned.timestamp_ms) == (None, 0)
    assert pinned.vector == Vector.empty()
    assert reader.files(pinned) == []
    assert not reader.has_deletes(pinned)


def test_current_follows_commits_and_a_pin_stays(reader, writer):
    append(writer, range(10))
    first = reader.current(TRADES)
    append(writer, range(10, 20), upto(10))
    second = reader.current(TRADES)
    assert second.vector == Vector({place(): upto(20)})
    assert first.vector == Vector({place(): upto(10)})
    assert sum(file.rows for file in reader.files(first)) == 10
    assert sum(file.rows for file in reader.files(second)) == 20


def test_pruning_keeps_exactly_what_may_match(reader, writer):
    append(writer, range(200))  # 100 seconds before midnight, 100 after
    pinned = reader.current(TRADES)
    every = reader.files(pinned)
    assert {(file.day, file.bucket) for file in every} == {
        (day, symbol_bucket(s)) for day in (DAY_1, DAY_2) for s in ("BTCUSDT", "ETHUSDT")
    }
    midnight = DAY_2 * 86_400 * SECOND
    btc = reader.files_for(pinned, {"BTCUSDT"})
    assert {file.bucket for file in btc} == {symbol_bucket("BTCUSDT")}
    assert [file.day for file in btc] == [DAY_2, DAY_1]
    assert {file.day for file in reader.files_for(pinned, None, midnight)} == {DAY_2}
    assert {file.day for file in reader.files_for(pinned, None, None, midnight)} == {DAY_1}
    assert reader.files_for(pinned, {"BTCUSDT"}, T0_US + 200 * SECOND) == []
    assert reader.files_for(pinned, None, midnight, midnight) == []
    # XRPUSDT shares BTCUSDT's bucket, but is beyond the bounds of its files.
    assert symbol_bucket("XRPUSDT") == symbol_bucket("BTCUSDT")
    assert reader.files_for(pinned, {"XRPUSDT"}) == []


def test_a_new_snapshot_reads_only_its_new_manifest(reader, writer, monkeypatch):
    append(writer, range(10))
    reader.files(reader.current(TRADES))
    append(writer, range(10, 20), upto(10))
    from pyiceberg.manifest import ManifestFile

    read = []
    original = ManifestFile.fetch_manifest_entry

    def counted(self, *args, **options):
        read.append(self.manifest_path)
        return original(self, *args, **options)

    monkeypatch.setattr(ManifestFile, "fetch_manifest_entry", counted)
    pinned = reader.current(TRADES)
    reader.files(pinned)
    reader.files(pinned)
    assert len(read) == 1


def test_manifests_no_plan_needs_any_more_are_forgotten(reader, writer, monkeypatch):
    monkeypatch.setattr("k2.lake.reader._PLANS_KEPT", 5)
    for step in range(25):
        append(writer, range(step * 4, step * 4 + 4), upto(step * 4) if step else None)
        reader.files(reader.current(TRADES))
    live = len(reader.current(TRADES).snapshot.manifests(reader.current(TRADES).io))
    kept = len(reader._manifests["market_data.trades"])
    assert live <= kept <= live + 5 + 10  # what was merged lately is not forgotten yet
    assert sum(file.rows for file in reader.files(reader.current(TRADES))) == 100


def test_time_travel_by_time_and_by_id(reader, writer):
    first = append(writer, range(5))
    append(writer, range(5, 9), upto(5))
    at_ms = first.metadata.current_snapshot().timestamp_ms
    newest = reader.current(TRADES)
    assert reader.at(TRADES, at_ms).snapshot_id in {first.snapshot_id, newest.snapshot_id}
    assert reader.by_id(TRADES, first.snapshot_id).vector == Vector({place(): upto(5)})
    with pytest.raises(LakeError, match="no snapshot at or before"):
        reader.at(TRADES, at_ms - 1)
    with pytest.raises(LakeError, match="may have expired"):
        reader.by_id(TRADES, 12345)


def test_unknown_and_missing_tables_are_named(reader, catalog):
    with pytest.raises(LakeError, match="'trade' is unknown; allowed: trades, quotes"):
        reader.current("trade")
    catalog.drop_table(TRADES.identifier)
    with pytest.raises(LakeError, match=r"market_data\.trades is not in the catalog"):
        reader.current(TRADES)


def test_another_process_sees_the_commits(reader, writer, lake_settings):
    append(writer, range(7))
    uri = f"sqlite:///{lake_settings.core.data_dir.absolute()}/catalog.db"
    plain = load_catalog("k2", type="sql", uri=uri)
    rows = plain.load_table("market_data.trades").scan("symbol = 'BTCUSDT'").to_arrow()
    assert sorted(rows["platform_sequence"].to_pylist()) == [0, 3, 6]
    plain.close()


def test_duckdb_reads_the_table(reader, writer):
    append(writer, range(200))
    database = duckdb.connect(
        config={"autoinstall_known_extensions": False, "autoload_known_extensions": False}
    )
    for name in ("avro", "httpfs", "iceberg"):
        home = Path(importlib.import_module(f"duckdb_extension_{name}").__file__).parent
        file = home / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
        database.execute(f"LOAD '{file}'")
    pinned = reader.current(TRADES)
    scan = f"iceberg_scan('{pinned.metadata_location}')"
    query = f"select count(*), sum(price)::varchar, min(trade_conditions)::varchar from {scan}"
    wanted = (200, "19900.0000000200", "[x, NULL]")
    assert database.execute(query).fetchone() == wanted
    paths = [file.path for file in reader.files(pinned)]
    query = query.replace(scan, f"read_parquet({paths})")
    assert database.execute(query).fetchone() == wanted
    count = f"select count(*) from {scan} where symbol = 'BTCUSDT'"
    assert database.execute(count).fetchone() == (67,)
    database.close()
