"""Lanes: validators with what the lake knows of their symbols."""

from __future__ import annotations

import numpy as np
import pytest
from faust.types import TP

from k2.codecs import Codecs
from k2.errors import ConfigError, LakeError
from k2.lake.vector import Position
from k2.lakehouse import Lakehouse
from k2.pipeline.validate import Validator
from k2.settings import Settings
from k2.steps.lanes import LakeSeeder, Lanes
from k2.testing.clock import ManualClock
from k2.testing.log import MemoryLog
from tests.lake.rows import place, trades, upto
from tests.steps.parts import EPOCH, OTHER_EPOCH, QUOTES, TRADES, Record, out_of

HOME = TP(TRADES.log, 0)


@pytest.fixture
def pending() -> dict[TP, int]:
    return {}


@pytest.fixture
def lanes(
    settings: Settings,
    codecs: Codecs,
    lake: Lakehouse,
    clock: ManualClock,
    pending: dict[TP, int],
) -> Lanes:
    return Lanes(settings, codecs, lake, lambda _topic: EPOCH, clock, first_pending=pending.get)


def store(lake: Lakehouse, ids: range, epoch: str, base: Position | None = None) -> None:
    """Trades of BTCUSDT whose ids are their offsets in the log."""
    where = place(epoch=epoch)
    lake.writers["trades"].commit(
        trades(ids, symbols=("BTCUSDT",), epoch=epoch), {where: base}, {where: upto(ids[-1] + 1)}
    )
    lake.pinned["trades"].refresh()


async def judged(lanes: Lanes, codecs: Codecs, *records: Record) -> tuple[Validator, list[int]]:
    """A new validator, and the offsets it lets through."""
    log = MemoryLog()
    await log.send_batch(out_of(codecs, records))
    validator = lanes.make(TRADES, 0)
    outcome = validator.apply(log.batch(TRADES.log))
    kept = [
        value for out in outcome.outputs if out.topic == TRADES.validated for value in out.values
    ]
    values = log.values(TRADES.log)
    return validator, [values.index(value) for value in kept if value is not None]


def btc(*ids: int) -> list[Record]:
    return [("BTCUSDT", ident) for ident in ids]


async def test_an_empty_lake_is_not_asked(lanes: Lanes, codecs: Codecs) -> None:
    validator, kept = await judged(lanes, codecs, *btc(1, 2, 3))
    assert kept == [0, 1, 2]
    assert not lanes.may_block(validator)


async def test_ids_of_another_incarnation_are_duplicates(
    lanes: Lanes, codecs: Codecs, lake: Lakehouse
) -> None:
    store(lake, range(2, 5), OTHER_EPOCH)
    validator, kept = await judged(lanes, codecs, *btc(1, 2, 3, 4, 5), ("ETHUSDT", 3))
    assert kept == [0, 4, 5]
    assert lanes.may_block(validator), "it reads the lake for symbols it has not seen"
    quotes = lanes.make(QUOTES, 0)
    assert not lanes.may_block(quotes), "the lake has none of this log"


async def test_ids_of_the_same_incarnation_are_the_checkpoints_business(
    lanes: Lanes, codecs: Codecs, lake: Lakehouse
) -> None:
    store(lake, range(2, 5), EPOCH)
    validator, kept = await judged(lanes, codecs, *btc(1, 2, 3, 4, 5))
    assert kept == [0, 1, 2, 3, 4], "readers drop what they have by its place"
    assert not lanes.may_block(validator)


async def test_a_symbol_that_was_let_go_is_looked_up_in_its_own_incarnation_too(
    lanes: Lanes, codecs: Codecs, lake: Lakehouse
) -> None:
    store(lake, range(2, 5), EPOCH)
    log = MemoryLog()
    await log.send_batch(out_of(codecs, btc(1, 2, 3, 4, 5)))
    validator = lanes.make(TRADES, 0)
    validator.continuity.evicted = True
    assert lanes.may_block(validator)
    validator.apply(log.batch(TRADES.log))
    assert validator.continuity.tracks["BTCUSDT"].own


def test_the_seeder_asks_only_for_what_can_be_there(lake: Lakehouse) -> None:
    store(lake, range(2, 5), EPOCH)
    store(lake, range(10, 12), OTHER_EPOCH)
    symbols = ["BTCUSDT", "XYZUSDT"]
    alone = LakeSeeder(lake, TRADES, EPOCH, other_epochs=False)
    assert alone(symbols, None) == {}
    others = LakeSeeder(lake, TRADES, EPOCH, other_epochs=True)
    found = others(symbols, None)
    assert {s: (seed.starts.tolist(), seed.ends.tolist()) for s, seed in found.items()} == {
        "BTCUSDT": ([10], [11])
    }
    own = alone(symbols, 100)
    assert (own["BTCUSDT"].starts.tolist(), own["BTCUSDT"].ends.tolist()) == ([2, 10], [4, 11])
    assert np.all(own["BTCUSDT"].last_timestamp_us > 0)
    before = alone(symbols, 4)
    assert (before["BTCUSDT"].starts.tolist(), before["BTCUSDT"].ends.tolist()) == (
        [2, 10],
        [3, 11],
    ), "what comes again from offset 4 on is judged again as it was"


def test_what_the_lake_has_stored_is_known_by_its_vector(
    lanes: Lanes, lake: Lakehouse, pending: dict[TP, int]
) -> None:
    assert lanes.stored_through(HOME) == -1
    store(lake, range(5), OTHER_EPOCH)
    assert lanes.stored_through(HOME) == -1
    store(lake, range(7), EPOCH)
    assert lanes.stored_through(HOME) == 6
    assert lanes.stored_through(TP(TRADES.log, 1)) == -1
    pending[HOME] = 4
    assert lanes.stored_through(HOME) == 3, "what was put off is not there yet"


def test_a_tiers_file_that_is_not_there_is_told(
    settings: Settings, codecs: Codecs, lake: Lakehouse, clock: ManualClock
) -> None:
    degradation = settings.degradation.model_copy(update={"tiers_file": "/nowhere/tiers.json"})
    other = settings.model_copy(update={"degradation": degradation})
    with pytest.raises(ConfigError, match="K2_DEGRADATION_TIERS_FILE='/nowhere"):
        Lanes(other, codecs, lake, lambda _t: EPOCH, clock, first_pending=lambda _tp: None)


async def test_a_lane_that_let_ids_go_may_ask_the_lake(
    lanes: Lanes, codecs: Codecs, lake: Lakehouse
) -> None:
    validator, _ = await judged(lanes, codecs, *btc(*range(1, 40, 2)))
    validator.continuity.max_runs = 4
    validator.trim(stored_through=100)
    assert validator.continuity.tracks["BTCUSDT"].forgotten > 0
    assert lanes.may_block(validator), "it must be judged in a thread"
    again = lanes.make(TRADES, 0)
    again.restore(validator.checkpoint()[0])
    assert lanes.may_block(again)


@pytest.mark.parametrize("failures", [2, 100])
async def test_a_lake_that_is_away_is_asked_again_for_a_while(
    lake: Lakehouse, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    store(lake, range(2, 5), OTHER_EPOCH)
    left, waits = [failures], []
    current = lake.reader.current

    def away(table: str) -> object:
        left[0] -= 1
        if left[0] >= 0:
            raise LakeError("the catalog does not answer", table=table)
        return current(table)

    def wait(seconds: float) -> None:
        waits.append(seconds)
        clock._now_s += seconds

    monkeypatch.setattr(type(lake.reader), "current", lambda _self, table: away(table))
    seeder = LakeSeeder(lake, TRADES, EPOCH, other_epochs=True, wait=wait)
    if failures == 2:
        assert list(seeder(["BTCUSDT"], None)) == ["BTCUSDT"]
        assert waits == [0.1, 0.2]
    else:
        with pytest.raises(LakeError, match="does not answer"):
            seeder(["BTCUSDT"], None)
        assert sum(waits) >= lake.settings.iceberg.commit_retry_s
