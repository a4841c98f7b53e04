import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.transforms import BucketTransform, DayTransform
from pyiceberg.types import StringType, TimestamptzType

from k2.errors import LakeError
from k2.lake.files import day_of, symbol_bucket, write_files
from k2.lake.tables import QUOTES, TRADES
from tests.lake.rows import trades

SYMBOLS = ("BTCUSDT", "ETHUSDT", "PEPEUSDT", "SOLUSDT", "ADAUSDT")


@given(st.text(min_size=1))
def test_bucket_is_icebergs(symbol):
    assert symbol_bucket(symbol) == BucketTransform(16).transform(StringType())(symbol)


@given(st.integers(-(2**50), 2**50))
def test_day_is_icebergs(us):
    assert day_of(us) == DayTransform().transform(TimestamptzType())(us)


@pytest.mark.parametrize("table", [TRADES, QUOTES], ids=str)
def test_files_are_partitioned_sorted_and_bounded(catalog, table):
    loaded = catalog.load_table(table.identifier)
    rows = trades(list(range(399, -1, -1)), symbols=SYMBOLS, table=table)
    files = write_files(table, loaded.metadata, loaded.io, rows)
    assert len(files) == 2 * len({symbol_bucket(symbol) for symbol in SYMBOLS})
    seen = []
    for file in files:
        part = pq.read_table(file.file_path.removeprefix("file://"), partitioning=None)
        keys = list(zip(*(part[name].to_pylist() for name in table.sort_columns), strict=True))
        assert keys == sorted(keys)
        days = {day_of(us) for us in part["timestamp"].cast(pa.int64()).to_pylist()}
        buckets = {symbol_bucket(symbol) for symbol in part["symbol"].to_pylist()}
        assert (days, buckets) == ({file.partition[0]}, {file.partition[1]})
        field = table.schema.find_field("symbol").field_id
        assert file.lower_bounds[field].decode() == min(part["symbol"].to_pylist())
        assert file.upper_bounds[field].decode() == max(part["symbol"].to_pylist())
        assert file.record_count == part.num_rows
        seen += part["platform_sequence"].to_pylist()
    assert sorted(seen) == list(range(400))


def test_parquet_carries_field_ids_and_exact_decimals(catalog):
    loaded = catalog.load_table(TRADES.identifier)
    rows = trades(range(3), symbols=("BTCUSDT",))
    (file,) = write_files(TRADES, loaded.metadata, loaded.io, rows)
    path = file.file_path.removeprefix("file://")
    assert pq.read_table(path, partitioning=None).to_pylist() == rows.to_pylist()
    fields = pq.read_schema(path)
    ids = [int(field.metadata[b"PARQUET:field_id"]) for field in fields]
    assert ids == list(range(1, 21))


def test_what_codes_make_small_is_not_compressed_again(catalog):
    with catalog.load_table(TRADES.identifier).update_schema() as update:
        update.add_column("note", StringType())
    loaded = catalog.load_table(TRADES.identifier)
    ident = str(loaded.schema().find_field("note").field_id).encode()
    note = pa.field("note", pa.string(), metadata={b"PARQUET:field_id": ident})
    rows = trades(range(3), symbols=("BTCUSDT",))
    rows = rows.append_column(note, pa.array(["a", None, "b"]))
    (file,) = write_files(TRADES, loaded.metadata, loaded.io, rows)
    group = pq.read_metadata(file.file_path.removeprefix("file://")).row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    compressed = {one.path_in_schema for one in columns if one.compression == "ZSTD"}
    texts = {"message_id", "trade_id", "vendor_data", "note"}
    times = {"timestamp", "receive_timestamp", "ingestion_timestamp"}
    assert compressed == {*texts, *times, "price", "quantity"}
    assert {one.compression for one in columns} == {"UNCOMPRESSED", "ZSTD"}


def test_no_rows_no_files(catalog):
    loaded = catalog.load_table(TRADES.identifier)
    assert write_files(TRADES, loaded.metadata, loaded.io, trades([])) == []


def test_a_null_in_a_required_column_is_refused(catalog):
    loaded = catalog.load_table(TRADES.identifier)
    rows = trades(range(2))
    index = rows.schema.get_field_index("side")
    rows = rows.set_column(index, "side", pa.array(["BUY", None]))
    with pytest.raises(LakeError, match="1 nulls in the required column 'side'"):
        write_files(TRADES, loaded.metadata, loaded.io, rows)


def test_a_missing_column_is_refused(catalog):
    loaded = catalog.load_table(TRADES.identifier)
    with pytest.raises(LakeError, match=r"do not have its columns.*price"):
        write_files(TRADES, loaded.metadata, loaded.io, trades(range(2)).drop(["price"]))


def test_a_failed_write_leaves_no_file(catalog, tmp_path):
    loaded = catalog.load_table(TRADES.identifier)

    class FullDisk:
        written = 0

        def new_output(self, location):
            self.written += 1
            if self.written == 3:
                raise OSError("no space left on device")
            return loaded.io.new_output(location)

        def delete(self, location):
            loaded.io.delete(location)

    rows = trades(range(200), symbols=SYMBOLS)
    with pytest.raises(OSError, match="no space left"):
        write_files(TRADES, loaded.metadata, FullDisk(), rows)
    assert not list(tmp_path.rglob("*.parquet"))
