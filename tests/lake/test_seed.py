import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k2.errors import LakeError
from k2.lake.reader import LakeReader
from k2.lake.seed import Known, LakeSeeds
from k2.lake.tables import QUOTES, TRADES
from k2.lake.writer import LakeWriter
from tests.lake.rows import EPOCH, LOG, T0_US, place, trades, upto

OLD = "00000000-0000-0000-0000-000000000001"
NEW = "ffffffff-ffff-ffff-ffff-fffffffffff2"


def stored(catalog, *batches, table=TRADES):
    writer = LakeWriter(catalog, table)
    for number, rows in enumerate(batches):
        writer.commit(rows, {place(number): None}, {place(number): upto(1)})
    reader = LakeReader(catalog)
    return LakeSeeds(reader, reader.current(table))


def islands(seed):
    return list(zip(seed.starts.tolist(), seed.ends.tolist(), strict=True))


@pytest.mark.parametrize("table", [TRADES, QUOTES], ids=str)
def test_islands_are_joined_over_files(catalog, table):
    one = {"symbols": ("BTCUSDT",), "epoch": OLD, "table": table}
    seeds = stored(
        catalog,
        trades([1, 2, 3, 9], **one),
        trades([5, 4], **one),
        trades([8, 20], **one),
        table=table,
    )
    found = seeds.seed_intervals("BINANCE", ["BTCUSDT", "ETHUSDT"], Known(NEW))
    assert list(found) == ["BTCUSDT"]
    seed = found["BTCUSDT"]
    assert islands(seed) == [(1, 5), (8, 9), (20, 20)]
    assert (seed.last_id, seed.last_timestamp_us) == (20, T0_US + 20 * 1_000_000)
    assert seed.starts.dtype == seed.ends.dtype == np.int64


def test_rows_of_the_epoch_itself_are_left_out(catalog):
    seeds = stored(
        catalog, trades([1, 2], symbols=("A",), epoch=OLD), trades([3], symbols=("A",), epoch=NEW)
    )
    assert islands(seeds.seed_intervals("BINANCE", ["A"], Known(NEW))["A"]) == [(1, 2)]
    assert islands(seeds.seed_intervals("BINANCE", ["A"], Known(OLD))["A"]) == [(3, 3)]
    assert islands(seeds.seed_intervals("BINANCE", ["A"], Known(EPOCH))["A"]) == [(1, 3)]
    assert seeds.seed_intervals("KRAKEN", ["A"], Known(EPOCH)) == {}


def test_rows_of_the_epoch_itself_count_up_to_an_offset(catalog):
    seeds = stored(
        catalog,
        trades([1, 2], symbols=("A",), epoch=OLD),
        trades([5, 6, 7], symbols=("A",), epoch=NEW),
        trades([20], symbols=("A",), epoch=NEW),
    )
    assert islands(seeds.seed_intervals("BINANCE", ["A"], Known(NEW, 7))["A"]) == [(1, 2), (5, 6)]
    assert islands(seeds.seed_intervals("BINANCE", ["A"], Known(NEW, 8))["A"]) == [(1, 2), (5, 7)]
    assert islands(seeds.seed_intervals("BINANCE", ["A"], Known(OLD, 0))["A"]) == [(5, 7), (20, 20)]


def test_ids_that_started_over_are_told_apart_by_time(catalog):
    def at(ids, hours):
        rows = trades(ids, symbols=("A",), epoch=OLD, step_us=1)
        index = rows.schema.get_field_index("timestamp")
        times = [T0_US + hours * 3_600_000_000 + n for n in range(len(ids))]
        column = pa.array(times, pa.timestamp("us", tz="UTC"))
        return rows.set_column(index, "timestamp", column)

    seeds = stored(
        catalog,
        at(range(1_000, 1_010), 0),
        at(range(1_010, 1_015), 5),  # a pause alone is none
        pa.concat_tables([at(range(1, 6), 10), at(range(1_015, 1_020), 6)]),
        at(range(6, 9), 10),
        at(range(3), 30),
    )
    seed = seeds.seed_intervals("BINANCE", ["A"], Known(NEW))["A"]
    assert [islands(one) for one in (*seed.older, seed)] == [[(1_000, 1_019)], [(1, 8)], [(0, 2)]]
    assert seed.older[0].last_timestamp_us == T0_US + 6 * 3_600_000_000 + 4


def test_other_epochs_of_a_topic(catalog):
    seeds = stored(catalog, trades([1, 2], epoch=OLD))
    assert seeds.has_other_epochs(NEW, LOG)
    assert not seeds.has_other_epochs(OLD, LOG)
    assert not seeds.has_other_epochs(NEW, "market.crypto.trades.kraken")


def test_other_epochs_in_a_file_of_several_topics(catalog):
    mine = trades([1], epoch=OLD, symbols=("A",))
    other = trades([2], epoch=NEW, symbols=("A",))
    index = other.schema.get_field_index("log_topic")
    other = other.set_column(index, "log_topic", pa.array(["market.crypto.trades.kraken"]))
    seeds = stored(catalog, pa.concat_tables([mine, other]))
    assert not seeds.has_other_epochs(OLD, LOG)
    assert seeds.has_other_epochs(NEW, LOG)
    assert seeds.has_other_epochs(OLD, "market.crypto.trades.kraken")


def test_a_table_without_ids_is_refused(catalog):
    reader = LakeReader(catalog)
    with pytest.raises(LakeError, match="no exchange ids"):
        LakeSeeds(reader, reader.current("gaps"))


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(batches=st.lists(st.sets(st.integers(0, 40), min_size=1), min_size=1, max_size=4))
def test_seeds_are_the_set_of_ids(lake_settings, tmp_path_factory, batches):
    from k2.lake.catalog import open_catalog
    from k2.lake.tables import ensure_tables

    core = lake_settings.core.model_copy(update={"data_dir": tmp_path_factory.mktemp("lake")})
    catalog = open_catalog(lake_settings.model_copy(update={"core": core}))
    ensure_tables(catalog, "zstd")
    rows = [trades(sorted(ids), symbols=("A",), epoch=OLD) for ids in batches]
    seed = stored(catalog, *rows).seed_intervals("BINANCE", ["A"], Known(NEW))["A"]
    catalog.close()
    ids = {i for start, end in islands(seed) for i in range(start, end + 1)}
    assert ids == set().union(*batches)
    assert seed.last_id == max(ids)
    assert seed.last_timestamp_us == T0_US + max(ids) * 1_000_000
    gaps = seed.starts[1:] - seed.ends[:-1]
    assert (gaps > 1).all()
