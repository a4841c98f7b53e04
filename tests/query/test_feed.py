"""The feed over real codecs and covers; the log is a list of batches."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pytest
from faust.types import TP

from k2.codec.avro import Codec
from k2.codec.registry import FileRegistry
from k2.codec.schemas import kind_of, schema_text, subject_of
from k2.errors import CoverHoleError, DecodeError
from k2.lake.tables import TRADES
from k2.lake.vector import Position, Vector
from k2.pipeline.cover import COVER_HEADER, Cover
from k2.query.feed import TailFeed
from k2.query.tail import Tail
from k2.records import build
from k2.steps.row_cache import RowCache
from k2.steps.rows import RowReader
from k2.topics import BINANCE_TRADES
from k2.transport.batch import LogBatch
from tests.query.rows import EPOCH, OTHER_EPOCH, T0_US, place

TOPIC = BINANCE_TRADES.validated
READ = TP(TOPIC, 0)


class ListReader:
    """A `LogReader` over prepared batches; waits for ever when they are used up."""

    def __init__(self, batches: list[LogBatch], at_once: int = 1) -> None:
        self._left = list(batches)
        self._at_once = at_once
        self._at: dict[TP, int] = {}
        self.drained = asyncio.Event()

    async def start(self, positions: Mapping[TP, int]) -> None:
        self._at = dict(positions)

    async def getmany(self, timeout_s: float) -> list[LogBatch]:
        while self._left:
            found, self._left = self._left[: self._at_once], self._left[self._at_once :]
            found = [batch for batch in found if batch.last_offset >= self._at[_tp(batch)]]
            self._at |= {_tp(batch): batch.last_offset + 1 for batch in found}
            if found:
                return found
        self.drained.set()
        await asyncio.Event().wait()
        return []

    def position(self, tp: TP) -> int:
        return self._at[tp]

    def highwater(self, tp: TP) -> int | None:
        return self._at[tp] + sum(len(batch) for batch in self._left)

    async def stop(self) -> None:
        self._left.clear()


def _tp(batch: LogBatch) -> TP:
    return TP(batch.topic, batch.partition)


class StoppedClock:
    def now_us(self) -> int:
        return T0_US

    def monotonic_s(self) -> float:
        return 1_000.0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory):
    registry = FileRegistry(tmp_path_factory.mktemp("registry"))
    return Codec.open(registry, subject_of(TOPIC), schema_text(kind_of(TOPIC)))


def wire(codec, sequences: list[int]) -> list[bytes]:
    n = len(sequences)
    text = [f"{s}.5" for s in sequences]
    ids = [str(s) for s in sequences]
    times = np.array([T0_US + s for s in sequences], np.int64)
    given = {
        "message_id": ids, "trade_id": ids, "symbol": "BTCUSDT", "exchange": "BINANCE",
        "asset_class": "crypto", "timestamp": times, "receive_timestamp": times,
        "ingestion_timestamp": times, "price": text, "quantity": text, "currency": "USDT",
        "side": "BUY", "is_backfill": False,
    }  # fmt: skip
    return codec.encode(build("trades", n, given))


def group(
    codec, offset: int, first: int, last: int, kept: list[int], epoch: str = EPOCH, partition=0
):
    values = wire(codec, kept) if kept else [None]
    cover = Cover(epoch, first, last, np.array(kept, np.int64))
    n = len(values)
    return LogBatch(
        topic=TOPIC,
        partition=partition,
        offsets=np.arange(offset, offset + n),
        timestamps_ms=np.zeros(n, np.int64),
        keys=[b"BTCUSDT"] * n,
        values=values,
        headers={0: ((COVER_HEADER, cover.to_bytes()),)},
        first_offset=offset,
        last_offset=offset + n - 1,
        highwater=offset + n,
    )


async def fed(
    codec, batches, *, vector=None, earliest: int = 0, epoch: str = EPOCH, at_once=1, **options
):
    reader = ListReader(batches, at_once)
    tail = Tail(TRADES.arrow_schema)
    feed = TailFeed(
        reader,
        tail,
        RowReader("trades", codec, RowCache()),
        StoppedClock(),
        committed=Vector.empty,
        max_minutes=15,
        max_bytes=lambda: 10**9,
        **options,
    )
    await feed.start(
        vector or Vector.empty(),
        {BINANCE_TRADES.log: epoch},
        dict.fromkeys({READ} | {_tp(b) for b in batches}, earliest),
    )
    running = asyncio.create_task(feed.run())
    drained = asyncio.create_task(reader.drained.wait())
    await asyncio.wait({running, drained}, return_when=asyncio.FIRST_COMPLETED)
    drained.cancel()
    if running.done():
        running.result()
    running.cancel()
    await asyncio.wait({running})
    return tail, feed


def held(tail: Tail, vector: Vector | None = None) -> list[int]:
    return tail.view().rows_above(vector or Vector.empty())["platform_sequence"].to_pylist()


async def test_groups_become_rows_with_their_sequences(codec) -> None:
    tail, feed = await fed(codec, [group(codec, 0, 0, 9, [0, 3, 7]), group(codec, 3, 10, 12, [11])])
    assert sorted(held(tail)) == [0, 3, 7, 11]
    assert tail.view().places[place()].high == 12
    assert tail.view().covers(Vector.empty())
    found = tail.view().rows_above(Vector.empty()).to_pylist()
    row = next(row for row in found if row["platform_sequence"] == 3)
    assert (str(row["price"]), row["log_topic"], row["log_epoch"]) == (
        "3.5000000000",
        BINANCE_TRADES.log,
        EPOCH,
    )
    assert feed.lag() == 0


async def test_groups_emitted_again_count_once(codec) -> None:
    again = [group(codec, 0, 0, 4, [0, 1, 4]), group(codec, 3, 0, 4, [0, 1, 4])]
    tail, _ = await fed(codec, [*again, group(codec, 6, 3, 8, [4, 6, 8])])
    assert sorted(held(tail)) == [0, 1, 4, 6, 8]


async def test_rows_are_observed_on_the_event_loop_also_those_read_in_a_thread(codec) -> None:
    seen = []

    def observe(rows):
        asyncio.get_running_loop()  # raises anywhere else
        seen.append(rows.num_rows)

    many = list(range(3, 2_503))
    batches = [group(codec, 0, 0, 2, [0, 2]), group(codec, 2, 3, 2_502, many)]
    tail, _ = await fed(codec, batches, observe=observe)
    assert seen == [2, 2_500]
    assert len(held(tail)) == 2_502


async def test_reading_begins_at_the_lakes_position(codec) -> None:
    batches = [group(codec, 0, 0, 4, [0, 1, 4]), group(codec, 3, 5, 9, [5, 9])]
    vector = Vector({place(): Position(3, 4)})
    tail, _ = await fed(codec, batches, vector=vector)
    assert held(tail) == [5, 9]
    assert tail.view().covers(vector)
    assert not tail.view().covers(Vector.empty())


async def test_what_retention_took_is_not_claimed(codec) -> None:
    tail, _ = await fed(codec, [group(codec, 40, 50, 59, [52, 59])], earliest=40)
    assert not tail.view().covers(Vector.empty())
    assert tail.view().covers(Vector({place(): Position(0, 51)}))


async def test_a_new_epoch_begins_from_its_first_record(codec) -> None:
    batches = [
        group(codec, 0, 0, 4, [0, 4]),
        group(codec, 2, 0, 2, [], OTHER_EPOCH),
        group(codec, 3, 3, 4, [3, 4], OTHER_EPOCH),
    ]
    tail, _ = await fed(codec, batches)
    assert sorted(held(tail)) == [0, 3, 4, 4]
    assert held(tail, Vector({place(): Position(2, 4)})) == [3, 4]
    assert tail.view().covers(Vector({place(): Position(2, 4)}))


async def test_a_hole_stops_the_feed(codec) -> None:
    with pytest.raises(CoverHoleError):
        await fed(codec, [group(codec, 0, 0, 4, [0]), group(codec, 1, 9, 9, [9])])


async def test_a_record_that_does_not_decode_stops_the_feed(codec) -> None:
    bad = group(codec, 0, 0, 1, [0, 1])
    bad.values[1] = b"\x00nonsense"
    with pytest.raises(DecodeError, match="log offset 1"):
        await fed(codec, [bad])


async def test_a_large_group_is_decoded_in_a_thread(codec) -> None:
    many = list(range(3_000))
    tail, _ = await fed(codec, [group(codec, 0, 0, 2_999, many)])
    assert held(tail) == many


async def test_batches_of_several_partitions_are_decoded_and_shown_in_one_go(
    codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    decode = codec.decode_fast
    monkeypatch.setattr(
        codec, "decode_fast", lambda values: decoded.append(len(values)) or decode(values)
    )
    batches = [
        group(codec, 0, 0, 2, [0, 2]),
        group(codec, 0, 0, 0, [0], partition=1),
        group(codec, 0, 0, 9, [], partition=2),
        group(codec, 2, 3, 5, [3, 4, 5]),
        group(codec, 0, 0, 1, [1], OTHER_EPOCH, partition=3),
    ]
    seen: list[int] = []
    tail, _ = await fed(codec, batches, at_once=5, observe=lambda rows: seen.append(rows.num_rows))
    # The group without records has none to decode.
    assert (decoded, seen) == ([7, 0], [7])
    apart, _ = await fed(codec, batches)
    assert tail.view().places.keys() == apart.view().places.keys()
    for where, hot in apart.view().places.items():
        again = tail.view().places[where]
        assert (again.low, again.high) == (hot.low, hot.high)
        found, wanted = (
            pa.concat_tables(
                [chunk.rows for chunk in one.chunks] or [TRADES.arrow_schema.empty_table()]
            )
            for one in (again, hot)
        )
        assert found.equals(wanted)
