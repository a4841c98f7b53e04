from decimal import Decimal

import pyarrow as pa
import pytest
from pyiceberg.transforms import BucketTransform, DayTransform

from k2.codec.evolution import Step
from k2.errors import LakeError
from k2.lake.added import apply, arrow_fields
from k2.lake.reader import LakeReader
from k2.lake.tables import BUCKETS, TRADES
from k2.lake.writer import LakeWriter
from k2.maintenance.compact import Compactor
from k2.maintenance.plan import CompactionPolicy
from tests.lake.rows import place, trades, upto
from tests.maintenance.lakes import fill, live_files, stored

ADD = Step("add", "fee", kind="decimal", doc="venue's fee")


def fields(catalog):
    return arrow_fields(TRADES, catalog.load_table(TRADES.identifier).schema())


def column(catalog, name, **scan):
    table = catalog.load_table(TRADES.identifier)
    rows = table.scan(selected_fields=("platform_sequence", name), **scan).to_arrow()
    return rows.sort_by("platform_sequence")[name].to_pylist()


def with_columns(rows, found, **values):
    for one in found:
        rows = rows.append_column(one, pa.array(values[one.name], one.type))
    return rows


def test_added_columns_are_stored_renamed_widened_and_dropped_under_a_running_sink(catalog):
    end = fill(catalog, 1, rows=3)
    assert apply(catalog, TRADES, ADD)
    assert apply(catalog, TRADES, Step("add", "hops", kind="int"))
    # A sink that started before goes on.
    end = fill(catalog, 1, rows=3, start=end)
    running, writer = fields(catalog), LakeWriter(catalog, TRADES)

    def commit(start, fees, hops):
        rows = with_columns(trades(range(start, start + 3)), running, fee=fees, hops=hops)
        writer.commit(rows, {place(): upto(start)}, {place(): upto(start + 3)})

    fees = [Decimal("0.5"), None, Decimal("0.0000000001")]
    commit(6, fees, [1, 2, None])
    before = catalog.load_table(TRADES.identifier).current_snapshot().snapshot_id
    assert apply(catalog, TRADES, Step("rename", "fee", to="venue_fee"))
    assert apply(catalog, TRADES, Step("widen", "hops", kind="long"))
    # The same sink, that knows neither the new name nor the new type.
    commit(9, fees, [3, 4, 5])
    assert column(catalog, "venue_fee") == [None] * 6 + fees * 2
    assert column(catalog, "hops") == [None] * 6 + [1, 2, None, 3, 4, 5]
    assert column(catalog, "fee", snapshot_id=before) == [None] * 6 + fees
    # Compaction carries them on, and one that started later writes the wider type.
    assert Compactor(catalog, TRADES, policy=CompactionPolicy(min_files=2)).run().commits
    assert column(catalog, "venue_fee") == [None] * 6 + fees * 2
    running = fields(catalog)
    assert {one.name: str(one.type) for one in running} == {
        "venue_fee": "decimal128(28, 10)",
        "hops": "int64",
    }
    rows = with_columns(trades(range(12, 13)), running, venue_fee=[None], hops=[2**40])
    writer.commit(rows, {place(): upto(12)}, {place(): upto(13)})
    assert column(catalog, "hops")[-1] == 2**40
    # Dropped softly: nothing is filled any more, what is there stays.
    assert apply(catalog, TRADES, Step("drop", "venue_fee"))
    assert [one.name for one in fields(catalog)] == ["hops"]
    assert column(catalog, "venue_fee")[6:9] == fees
    assert apply(catalog, TRADES, Step("add", "venue_fee", kind="decimal"))
    assert {one.name for one in fields(catalog)} == {"venue_fee", "hops"}


def test_a_step_taken_before_changes_nothing(catalog):
    for step in (
        ADD,
        Step("add", "hops", kind="int"),
        Step("widen", "hops", kind="long"),
        Step("rename", "fee", to="venue_fee"),
        Step("drop", "venue_fee"),
    ):
        assert apply(catalog, TRADES, step)
        location = catalog.load_table(TRADES.identifier).metadata_location
        assert not apply(catalog, TRADES, step)
        assert catalog.load_table(TRADES.identifier).metadata_location == location


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Step("widen", "fee", kind="long"), "no added column 'fee'"),
        (Step("drop", "price"), "no added column 'price'"),
    ],
)
def test_what_is_not_there_is_told(catalog, step, words):
    with pytest.raises(LakeError, match=words):
        apply(catalog, TRADES, step)


def test_a_column_of_another_type_is_refused(catalog):
    apply(catalog, TRADES, ADD)
    with pytest.raises(LakeError, match="is there already as decimal"):
        apply(catalog, TRADES, Step("add", "fee", kind="string"))


def test_files_of_another_partitioning_are_read_and_kept(catalog):
    """The partitioning evolves: K2 reads what any spec wrote, and says which it writes by."""
    end = fill(catalog, 2)
    table = catalog.load_table(TRADES.identifier)
    with table.update_spec() as update:
        update.remove_field("timestamp_day")
        update.remove_field("symbol_bucket")
    foreign = trades(range(end, end + 5))
    with table.transaction() as change:
        change.append(foreign.cast(table.schema().as_arrow()))
    assert len(stored(catalog)) == end + 5
    reader = LakeReader(catalog)
    files = reader.files(reader.current(TRADES))
    assert {file.day is None for file in files} == {True, False}
    symbol = {"BTCUSDT"}
    unknown = {file.path for file in files if file.day is None}
    assert unknown <= {file.path for file in reader.files_for(reader.current(TRADES), symbol)}
    with pytest.raises(LakeError, match="restore the partition spec"):
        fill(catalog, 1, start=end)
    table = catalog.load_table(TRADES.identifier)
    with table.update_spec() as update:
        update.add_field("timestamp", DayTransform(), "timestamp_day")
        update.add_field("symbol", BucketTransform(BUCKETS), "symbol_bucket")
    # The old spec again: the sink goes on, and files of both stay readable.
    fill(catalog, 1, start=end)
    assert len(stored(catalog)) == end + 5 + 48
    Compactor(catalog, TRADES, policy=CompactionPolicy(min_files=2)).run()
    assert len(stored(catalog)) == end + 5 + 48
    assert unknown <= {f"file://{path}" for path in live_files(catalog)}
