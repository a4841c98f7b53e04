"""Columns that were added to a table are in its view, in stored and hot rows alike."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa

from k2.codec.evolution import Step
from k2.lake.added import apply, arrow_fields
from k2.lake.tables import TRADES
from k2.query.lake_table import AsOf
from k2.query.tail import Tail
from tests.query.conftest import Platform
from tests.query.rows import T0_US, place, rows

ALL = "SELECT * FROM trades ORDER BY platform_sequence"


def added(platform: Platform) -> list[pa.Field]:
    table = platform.catalog.load_table(TRADES.identifier)
    return arrow_fields(TRADES, table.schema())


def grown(platform: Platform, *steps: Step) -> None:
    for step in steps:
        assert apply(platform.catalog, TRADES, step)
    platform.refresh()


def some(sequences: range, fields: list[pa.Field] = [], **values: list[Any]) -> pa.Table:  # noqa: B006
    made = rows(sequences, [T0_US + one for one in sequences])
    for one in fields:
        made = made.append_column(one, pa.array(values[one.name], one.type))
    return made


async def asked(platform: Platform, sql: str = ALL, **options: Any) -> pa.Table:
    return (await platform.engine.sql(sql, limit=100, **options)).rows


async def test_a_view_has_the_columns_of_its_table(platform: Platform) -> None:
    platform.commit(some(range(2)), place())
    before = (await asked(platform)).column_names
    grown(platform, Step("add", "fee", kind="decimal"), Step("add", "hops", kind="int"))
    # Without a commit since.
    found = await asked(platform)
    assert found.column_names == [*before, "fee", "hops"]
    assert found["fee"].to_pylist() == [None, None]
    fees = [Decimal("0.25"), Decimal("1.5")]
    platform.commit(some(range(2, 4), added(platform), fee=fees, hops=[1, 2]), place())
    grown(
        platform,
        Step("widen", "hops", kind="long"),
        Step("rename", "fee", to="venue_fee"),
    )
    wide = [2**40, None]
    platform.commit(some(range(4, 6), added(platform), venue_fee=fees, hops=wide), place())
    platform.refresh()
    found = await asked(platform)
    assert found["venue_fee"].to_pylist() == [None, None, *fees, *fees]
    assert found["hops"].to_pylist() == [None, None, 1, 2, *wide]
    summed = "SELECT sum(venue_fee) AS fees FROM trades WHERE hops > 1"
    assert (await asked(platform, summed))["fees"].to_pylist() == [Decimal("1.75")]
    # Older snapshots have the columns of their time.
    history = platform.tables["trades"].history(10)
    then = await asked(platform, at=AsOf(history[1].snapshot_id))
    assert then.column_names == [*before, "fee", "hops"]
    assert then["hops"].to_pylist() == [None, None, 1, 2]
    grown(platform, Step("drop", "hops"))
    assert (await asked(platform)).column_names == [*before, "venue_fee"]


async def test_hot_rows_have_them_too(platform: Platform) -> None:
    grown(platform, Step("add", "fee", kind="decimal"))
    platform.commit(some(range(2), added(platform), fee=[Decimal(1), None]), place())
    platform.tails["trades"] = Tail(TRADES.arrow_schema, added(platform))
    platform.engine.close()
    platform.engine = platform.make_engine()
    platform.refresh()
    hot = some(range(2, 4), added(platform), fee=[Decimal(2), Decimal("2.5")])
    platform.produce(hot.slice(0, 1), place())
    platform.produce(hot.slice(1, 1), place())
    found = await asked(platform)
    assert found["fee"].to_pylist() == [Decimal(1), None, Decimal(2), Decimal("2.5")]
    # What is stored says what was hot.
    platform.commit(hot, place())
    platform.refresh()
    assert (await asked(platform)).to_pylist() == found.to_pylist()


async def test_a_worker_that_started_before_goes_on_without_them(platform: Platform) -> None:
    platform.commit(some(range(1)), place())
    grown(platform, Step("add", "fee", kind="decimal"))
    platform.produce(some(range(1, 3)), place())
    found = await asked(platform)
    assert found["fee"].to_pylist() == [None] * 3
    candles = "SELECT count(*) AS n FROM market_data"
    assert (await asked(platform, candles))["n"].to_pylist() == [3]
