"""The query side: a tail whose log fails reads again instead of stopping the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from decimal import Decimal

import pyarrow as pa
import pytest
from aiokafka.errors import KafkaConnectionError
from faust.types import TP

from k2.codecs import Codecs
from k2.errors import CoverHoleError
from k2.hot import HotSide
from k2.lake.tables import TRADES
from k2.lake.vector import Place
from k2.lakehouse import Lakehouse
from k2.settings import Settings
from k2.testing.clock import ManualClock, eventually
from k2.topics import MARKET_TOPICS
from k2.transport.batch import LogBatch
from tests.steps.conftest import clock, codecs, lake, registered, settings
from tests.steps.parts import EPOCH

__all__ = ["clock", "codecs", "lake", "registered", "settings"]


class Log:
    """A transport and its readers; the first reading fails."""

    def __init__(self, failure: BaseException) -> None:
        self.failure = failure
        self.started = 0
        self.stopped = 0

    def create_reader(self) -> Log:
        return self

    async def bounds(self, tps: Collection[TP]) -> dict[TP, tuple[int, int]]:
        return dict.fromkeys(tps, (0, 0))

    async def start(self, _positions: Mapping[TP, int]) -> None:
        self.started += 1
        if self.started <= 2:  # one for each tail
            raise self.failure

    async def getmany(self, _timeout_s: float) -> list[LogBatch]:
        await asyncio.Event().wait()
        raise AssertionError

    def position(self, tp: TP) -> int:
        if self.started <= 2:
            raise KeyError(tp)
        return 4

    def highwater(self, _tp: TP) -> int:
        return 5

    async def stop(self) -> None:
        self.stopped += 1


@pytest.mark.parametrize(
    "failure",
    [
        KafkaConnectionError("no broker"),
        OSError("no disk"),
        pa.ArrowInvalid("no rows"),
        CoverHoleError("no records", table="market", error="theirs"),
    ],
)
async def test_a_tail_whose_log_fails_starts_again(
    settings: Settings, codecs: Codecs, lake: Lakehouse, clock: ManualClock, failure: Exception
) -> None:
    transport = Log(failure)
    hot = HotSide(settings, transport, lake, codecs, clock)
    running = asyncio.ensure_future(hot.run({topic.log: EPOCH for topic in MARKET_TOPICS}))
    await eventually(lambda: transport.started == 2)
    assert not running.done()
    assert hot.read_to() == {}, "a reader that does not read has no position"
    await clock.advance(1.0)
    await eventually(lambda: transport.started == 4)
    await eventually(lambda: len(hot.read_to()) == 2)
    assert min(hot.read_to().values()) > 0
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert transport.stopped == 4
    await hot.close()


async def test_what_nobody_expects_stops_the_worker(
    settings: Settings, codecs: Codecs, lake: Lakehouse, clock: ManualClock
) -> None:
    transport = Log(TypeError("a mistake of ours"))
    hot = HotSide(settings, transport, lake, codecs, clock)
    with pytest.raises(TypeError, match="a mistake of ours"):
        await hot.run({topic.log: EPOCH for topic in MARKET_TOPICS})
    await hot.close()


async def test_one_bound_holds_for_the_hot_rows_of_all_tables(
    settings: Settings, codecs: Codecs, lake: Lakehouse, clock: ManualClock
) -> None:
    total = 16 * 2**20
    bounded = settings.query.model_copy(update={"tail_max_mb": 16})
    hot = HotSide(
        settings.model_copy(update={"query": bounded}), Log(OSError()), lake, codecs, clock
    )
    assert hot._room("trades") == hot._room("quotes") == total
    place, rows = Place(EPOCH, "market.crypto.trades.binance.validated", 0), 1
    trades = hot.tails["trades"]
    while trades.stats().nbytes < total // 4:
        more = trade_batch(rows, trades.stats().rows)
        trades.add(place, more, last=trades.stats().rows + rows - 1, now_s=0.0)
        rows *= 2
    held = trades.stats().nbytes
    # What one holds the other cannot, but each may always hold its even share.
    assert hot._room("trades") == total
    assert hot._room("quotes") == max(total // 2, total - held)
    await hot.close()


def trade_batch(rows: int, first: int) -> pa.RecordBatch:
    """Rows of the lake's trades, of which only size and place count here."""
    columns = [
        pa.array(range(first, first + rows), pa.int64())
        if field.name == "platform_sequence"
        else _filled(field, rows)
        for field in TRADES.arrow_schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=TRADES.arrow_schema)


def _filled(field: pa.Field, rows: int) -> pa.Array:
    if field.nullable:
        return pa.nulls(rows, field.type)
    if pa.types.is_string(field.type):
        return pa.array(["x" * 40] * rows)
    if pa.types.is_decimal(field.type):
        return pa.array([Decimal(0)] * rows, field.type)
    return pa.array([0] * rows).cast(field.type)
