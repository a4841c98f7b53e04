"""Candles in the lake: the fold of exactly the trades their vector covers, whoever writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from k2.candles.fold import KEYS
from k2.candles.rebuild import compare, pair, write
from k2.candles.versions import lake_rows
from k2.candles.writer import CandleWriter
from k2.clock import SYSTEM_CLOCK
from k2.errors import LakeError, StaleBasisError, StaleWriterError
from k2.lake.reader import LakeReader
from k2.lake.tables import CANDLES, TRADES
from k2.lake.writer import LakeWriter
from k2.maintenance.keeper import Keeper, KeeperOptions
from k2.testing.catalog import Fault, FaultyCatalog
from k2.testing.clock import ManualClock
from tests.candles import plain
from tests.candles.lakes import CandleLake
from tests.lake.conftest import catalog, lake_settings  # noqa: F401 - fixtures
from tests.query.rows import OTHER_EPOCH, T0_US, place, rows, upto

SECOND = 1_000_000


@pytest.fixture
def lake(catalog: Catalog) -> Iterator[CandleLake]:  # noqa: F811
    made = CandleLake(catalog)
    yield made
    made.close()


def trades(first: int, count: int, *, step_s: float = 10, **more) -> pa.Table:
    """Rising sequences from `first`, prices up and down, two symbols in turn."""
    sequences = range(first, first + count)
    return rows(
        sequences,
        [T0_US + int(s * step_s * SECOND) for s in sequences],
        symbols=[("BTCUSDT", "ETHUSDT")[s % 2] for s in sequences],
        prices=[Decimal(100 + (s * 7) % 13) for s in sequences],
        quantities=[Decimal(1 + s % 3) / 8 for s in sequences],
        **more,
    )


def shown(lake: CandleLake) -> dict:
    found = lake.stored()
    return plain.table(lake_rows(found, 0))


def test_commits_add_up_to_the_plain_answer(lake: CandleLake) -> None:
    for first in range(0, 60, 7):
        lake.add(trades(first, 7))
        assert shown(lake) == lake.expected()
    versions = {tuple(r[k] for k in KEYS): r["version"] for r in lake.stored().to_pylist()}
    assert min(versions.values()) == 1
    assert max(versions.values()) > 3, "a day's candle changes with every commit"


def test_another_process_goes_on_where_the_first_was(lake: CandleLake) -> None:
    lake.add(trades(0, 9))
    lake.candles = lake.candle_writer()
    lake.add(trades(9, 9))
    first, second = lake.candles, lake.candle_writer()
    for number in range(2, 8):
        lake.candles = (first, second)[number % 2]
        lake.add(trades(9 * number, 9, step_s=1))
    assert shown(lake) == lake.expected()


def test_late_trades_correct_candles_of_long_ago(lake: CandleLake) -> None:
    lake.add(trades(0, 40, step_s=300))
    lake.candles = lake.candle_writer()
    late = rows([41, 42], [T0_US, T0_US + 90 * SECOND], prices=[Decimal(1), Decimal(999)])
    lake.add(late)
    assert shown(lake) == lake.expected()
    assert min(row["low"] for row in lake.stored().to_pylist()) == 1


def test_a_new_incarnation_of_the_log_goes_on_with_the_same_candles(lake: CandleLake) -> None:
    lake.add(trades(0, 9))
    lake.add(trades(0, 9, epoch=OTHER_EPOCH, partition=3))
    assert shown(lake) == lake.expected()
    (report,) = [compare(lake.reader, pair(lake.reader), lake.exclude)]
    assert (report.different, report.trades, report.behind) == (0, 18, 0)


def test_trades_that_were_stored_are_not_stored_again(lake: CandleLake) -> None:
    lake.add(trades(0, 9))
    with pytest.raises(StaleWriterError):
        lake.candle_writer().commit(trades(0, 9), {place(): None}, {place(): upto(8)})
    assert shown(lake) == lake.expected()


def test_a_lost_answer_counts_once(lake: CandleLake, catalog: Catalog) -> None:  # noqa: F811
    lake.add(trades(0, 9))
    faulty = FaultyCatalog(catalog, [Fault.LOST_REPLY])
    lake.candles = CandleLake(faulty).candles
    lake.add(trades(9, 9))
    assert shown(lake) == lake.expected()


def test_versions_made_of_what_has_changed_are_made_again(lake: CandleLake) -> None:
    """Two partitions' writers of one process generation: the slower one must not undo the other."""
    lake.add(trades(0, 4))
    slow, fast = lake.candle_writer(), lake.candle_writer()
    fresh = trades(4, 4)
    known, basis = slow._states.of(fold(fresh), frozenset({0}))
    # Records put off come by another topic but on the same partition.
    other = place()._replace(topic=place().topic.replace(".validated", ".deferred"))
    late = trades(20, 4)
    fast.commit(late, {other: None}, {other: upto(23)})
    with pytest.raises(StaleBasisError):
        slow._writer.commit(None, {place(): upto(3)}, {place(): upto(7)}, basis=basis)
    slow.commit(fresh, {place(): upto(3)}, {place(): upto(7)})
    lake.all += [fresh, late]
    assert shown(lake) == lake.expected()
    assert known.num_rows


def fold(made: pa.Table) -> pa.Table:
    from k2.candles.fold import of_trades, roll_up

    return roll_up(of_trades(made))


def test_excluded_trades_move_the_position_only(catalog: Catalog) -> None:  # noqa: F811
    lake = CandleLake(catalog, frozenset({"XT"}))
    made = trades(0, 6)
    at = made.column_names.index("trade_conditions")
    off = made.set_column(at, made.field(at), pa.array([["XT"]] * 6, pa.list_(pa.string())))
    lake.add(off)
    assert lake.stored().num_rows == 0
    assert lake.candles.vector().get(place()) == upto(5)
    lake.close()


def test_rebuild_finds_what_somebody_broke_and_mends_it(lake: CandleLake) -> None:
    lake.add(trades(0, 30))
    inner = LakeWriter(lake.catalog, CANDLES)
    assert compare(lake.reader, pair(lake.reader), lake.exclude).different == 0
    wrong = lake.stored().slice(0, 2)
    high = pa.array([Decimal(7777)] * 2, wrong["high"].type)
    number = pa.array([99, 99], pa.int64())
    broken = wrong.set_column(5, wrong.field(5), high).set_column(15, wrong.field(15), number)
    ghost = wrong.slice(0, 1).set_column(0, wrong.field(0), pa.array(["GHOST"]))
    inner.commit(lake_rows(pa.concat_tables([broken, ghost]), 0), {}, {})
    found = pair(lake.reader)
    report = compare(lake.reader, found, lake.exclude)
    assert report.different == 3
    assert {str(one["lake_and_right"].get("high", [""])[0]) for one in report.examples} >= {
        "7777.0000000000"
    }
    landed = write(inner, found, report, 0)
    assert landed is not None
    assert landed.rows == 3
    assert shown(lake) == lake.expected()
    # The worker that ran all the while goes on from what is right.
    lake.add(trades(30, 10))
    assert shown(lake) == lake.expected()
    assert compare(lake.reader, pair(lake.reader), lake.exclude).different == 0
    inner.close()


def test_a_lake_older_than_its_candles_is_folded_in(lake: CandleLake) -> None:
    lake.add(trades(0, 30), [lake.trades])
    lake.add(trades(0, 8, partition=5), [lake.trades])
    report = compare(lake.reader, pair(lake.reader), lake.exclude)
    assert (report.different, report.behind) == (0, 38)
    found = pair(lake.reader)
    report = compare(lake.reader, found, lake.exclude, add=True)
    write(LakeWriter(lake.catalog, CANDLES), found, report, 0)
    assert shown(lake) == lake.expected()
    assert lake.candles.vector() == lake.trades.vector()
    lake.add(trades(30, 5))
    assert shown(lake) == lake.expected()


def test_candles_outlive_their_trades(lake: CandleLake) -> None:
    lake.add(trades(0, 4))
    lake.add(rows([4], [T0_US + 86_400 * SECOND]))
    in_two_days = ManualClock(T0_US + 90_000 * SECOND)
    keeper = Keeper(lake.catalog, TRADES, KeeperOptions(rows_days=1), clock=in_two_days)
    assert keeper.drop_old_rows() > 0
    report = compare(lake.reader, pair(lake.reader), lake.exclude)
    assert (report.windows, report.different, report.outlived) == (6, 0, 12)


def test_candles_ahead_of_the_trades_are_not_compared(lake: CandleLake) -> None:
    lake.add(trades(0, 6), [lake.candles])
    waits: list[float] = []
    with pytest.raises(LakeError, match="do not meet"):
        pair(lake.reader, waits.append, 3)
    assert len(waits) == 2


def data_of_candles(lake: CandleLake) -> Path:
    """The directory of the table's data files."""
    files = lake.reader.files(lake.reader.current(CANDLES))
    path = Path(urlsplit(files[0].path).path)
    return next(above for above in path.parents if above.name == "data")


def test_candles_that_cannot_be_read_are_waited_for(lake: CandleLake) -> None:
    """A store that is away stops no worker before a commit's own time is over."""
    lake.add(trades(0, 8))
    here = data_of_candles(lake)
    away = here.rename(here.with_name("away"))
    waited = []

    def come_back(seconds: float) -> None:
        waited.append(seconds)
        away.rename(here)

    inner = LakeWriter(lake.catalog, CANDLES, wait=come_back)
    again = CandleWriter(inner, LakeReader(lake.catalog), SYSTEM_CLOCK, lake.exclude)
    lake.add(trades(8, 8), (lake.trades, again))
    again.close()
    assert len(waited) == 1
    assert shown(lake) == lake.expected()


def test_candles_that_stay_away_are_an_error_with_nothing_written(lake: CandleLake) -> None:
    lake.add(trades(0, 8))
    shutil.rmtree(data_of_candles(lake))
    inner = LakeWriter(lake.catalog, CANDLES, retry_s=0.0)
    again = CandleWriter(inner, LakeReader(lake.catalog), SYSTEM_CLOCK, lake.exclude)
    with pytest.raises(LakeError) as raised:
        lake.add(trades(8, 8), (again,))
    again.close()
    assert raised.value.details["outcome"] == "absent"
