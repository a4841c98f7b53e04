"""Validate, shed and sink together: whatever is put off or dies, all is in the lake once."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from faust.types import TP
from prometheus_client import REGISTRY

from k2.catalogue import topic_specs
from k2.codecs import Codecs
from k2.degradation.ledger import LogPlace
from k2.degradation.levels import Level
from k2.errors import LogError
from k2.lake.vector import Place
from k2.testing.clock import ManualClock
from tests.steps.parts import TRADES, Record, ids_stored, settings_in, stored
from tests.steps.pipeline import PARTITIONS, Pipeline, pipeline

#: Tiers 1, 2 and 3 of K2's own list; both partitions have some of each.
SYMBOLS = ("BTCUSDT", "ETHUSDT", "UNIUSDT", "OPUSDT", "XYZUSDT", "AAAUSDT", "BBBUSDT")

LOST = ("k2_messages_shed_lost_total", {"topic": TRADES.log})


@pytest.fixture
async def made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codecs: Codecs, clock: ManualClock
) -> AsyncIterator[Pipeline]:
    settings = settings_in(
        tmp_path / "data",
        monkeypatch,
        KAFKA_PARTITIONS=PARTITIONS,
        KAFKA_FSYNC_S=3_600,
        KAFKA_BATCH_RECORDS=10,
        VALIDATE_GROUP_RECORDS=7,
    )
    async with pipeline(settings, codecs, clock) as started:
        yield started


def market(first: int, count: int) -> list[Record]:
    return [(symbol, first + i) for i in range(count) for symbol in SYMBOLS]


def by_symbol(records: list[Record]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for symbol, ident in records:
        found.setdefault(symbol, []).append(ident)
    return {symbol: sorted(ids) for symbol, ids in found.items()}


def symbols_in(made: Pipeline) -> set[str]:
    return {symbol for symbol, _ in ids_stored(made.lake)}


async def test_all_is_stored_once_with_its_place(made: Pipeline) -> None:
    records = market(1, 20)
    await made.publish(*records)
    await made.settle()
    assert by_symbol(ids_stored(made.lake)) == by_symbol(records)
    rows = stored(made.lake)
    places = {(row["log_partition"], row["platform_sequence"]) for row in rows}
    assert len(places) == len(rows) == len(records)
    assert {row["log_epoch"] for row in rows} == {made.epoch_of(TRADES.log)}
    assert set(made.tokens.acked) == {1}


async def test_what_is_put_off_is_brought_at_normal_once(made: Pipeline) -> None:
    await made.publish(*market(1, 10))
    await made.settle()
    made.level = Level.AGGRESSIVE
    await made.publish(*market(11, 10))
    await made.settle()
    assert len(ids_stored(made.lake)) == 10 * len(SYMBOLS) + 10 * 2, "tier 1 only"
    assert made.shed.pending() == {2: 20, 3: 30}
    assert made.shed.brought == 0
    made.level = Level.GRACEFUL
    await made.publish(*market(21, 10))
    await made.settle()
    assert made.shed.pending() == {2: 20, 3: 60}, "not before NORMAL"
    made.level = Level.NORMAL
    await made.settle()
    assert made.shed.pending() == {}
    assert made.shed.brought == 80
    assert by_symbol(ids_stored(made.lake)) == by_symbol(market(1, 30))
    assert len(ids_stored(made.lake, "trades")) == 30 * len(SYMBOLS)
    assert made.validate.counts.missing_ids == 0
    await made.settle()
    assert made.shed.brought == 80
    # A record put off and sent again meanwhile is a duplicate, not a second row.
    await made.publish(*market(15, 10))
    await made.settle()
    assert len(ids_stored(made.lake)) == 30 * len(SYMBOLS)


async def test_the_ledger_is_told_by_headers_and_survives_a_restart(made: Pipeline) -> None:
    made.level = Level.GRACEFUL
    await made.publish(*market(1, 5))
    await made.settle()
    await made.publish(*market(6, 5))
    await made.validate_some()  # noted by nobody yet
    await made.crash()
    await made.start()
    assert made.shed.pending() == {3: 15}
    await made.settle()
    assert made.shed.pending() == {3: 30}
    made.level = Level.NORMAL
    await made.settle()
    assert by_symbol(ids_stored(made.lake)) == by_symbol(market(1, 10))
    assert len(ids_stored(made.lake)) == 10 * len(SYMBOLS)


async def test_a_crash_while_it_is_brought_brings_nothing_twice(
    made: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.level = Level.GRACEFUL
    for at in range(0, 30, 5):
        await made.publish(*market(1 + at, 5))
        await made.settle()
    made.level = Level.NORMAL

    async def die(*_: object) -> None:
        raise ConnectionAbortedError("injected: dead before the ledger is written")

    # The first groups are in the deferred topic, and nobody has noted it.
    with monkeypatch.context() as patch:
        patch.setattr(made.shed, "_store", die)
        with pytest.raises(ConnectionAbortedError):
            await made.shed._bring()
    await made.sink_rest()
    await made.sink.flush()
    assert 0 < len(ids_stored(made.lake)) < 30 * len(SYMBOLS)
    await made.crash()
    await made.start()
    await made.settle()
    assert by_symbol(ids_stored(made.lake)) == by_symbol(market(1, 30))
    assert len(ids_stored(made.lake)) == 30 * len(SYMBOLS)
    assert made.shed.pending() == {}


async def test_no_position_passes_what_the_ledger_could_not_keep(
    made: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log may take the small position and refuse the entries it is after: on a full disk."""
    made.level = Level.GRACEFUL
    store, tp = made.ledger.store, TP(TRADES.validated, 0)

    async def full(tp: TP, entries: Sequence[tuple[bytes, bytes | None]]) -> None:
        await store(tp, [entry for entry in entries if entry[0] == b"position"])
        if [entry for entry in entries if entry[0] != b"position"]:
            raise LogError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(made.ledger, "store", full)
        await made.publish(*market(1, 10))
        with pytest.raises(LogError):
            await made.settle()
    assert b"position" not in made.ledger.load(tp)
    await made.crash()
    await made.start()
    await made.settle()
    assert made.shed.pending() == {3: 30}
    made.level = Level.NORMAL
    await made.settle()
    assert by_symbol(ids_stored(made.lake)) == by_symbol(market(1, 10))


async def test_entries_not_known_to_be_there_are_written_again(
    made: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.level = Level.GRACEFUL

    async def cut_short(*_: object) -> None:
        raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(made.ledger, "store", cut_short)
        await made.publish(*market(1, 10))
        with pytest.raises(TimeoutError):
            await made.settle()
    await made.publish(*market(11, 10))
    await made.settle()
    await made.crash()
    await made.start()
    await made.settle()
    assert made.shed.pending() == {3: 60}


async def test_a_level_that_rises_again_interrupts_what_is_brought(
    made: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.level = Level.GRACEFUL
    await made.publish(*market(1, 10))
    await made.settle()
    made.level = Level.NORMAL
    emit = made.shed._emit

    async def emit_then_overload(*args: object) -> None:
        await emit(*args)  # type: ignore[arg-type]
        made.level = Level.SOFT

    with monkeypatch.context() as patch:
        patch.setattr(made.shed, "_emit", emit_then_overload)
        await made.shed._bring()
    half = made.shed.brought
    assert 0 < half < 30
    await made.bring()
    assert made.shed.brought == half
    made.level = Level.NORMAL
    await made.settle()
    assert by_symbol(ids_stored(made.lake)) == by_symbol(market(1, 10))
    assert len(ids_stored(made.lake)) == 10 * len(SYMBOLS)


async def test_a_partition_that_left_is_brought_by_its_new_owner_only(made: Pipeline) -> None:
    made.level = Level.GRACEFUL
    await made.publish(*market(1, 5))
    await made.settle()
    made.shed.keep(())
    assert made.shed.pending() == {}
    made.level = Level.NORMAL
    await made.bring()
    assert made.shed.brought == 0
    await made.crash()
    await made.start()
    await made.settle()
    assert made.shed.brought == 15


async def test_what_was_put_off_in_a_log_made_anew_is_not_waited_for(made: Pipeline) -> None:
    made.level = Level.GRACEFUL
    await made.publish(*market(1, 5))
    await made.settle()
    await made.crash()
    store = made.app.transport.store(made.app.transport)
    for name in TRADES.all_names:
        store.delete_topic(name)
    await made.app.transport.ensure_topics(topic_specs(made.settings))
    await made.start()
    assert made.shed.pending() == {}
    made.level = Level.NORMAL
    await made.publish(*market(6, 5))
    await made.settle()
    assert made.shed.brought == 0
    assert by_symbol(ids_stored(made.lake))["BTCUSDT"] == list(range(1, 11))
    assert by_symbol(ids_stored(made.lake))["XYZUSDT"] == list(range(6, 11))


@pytest.mark.parametrize("keep", [0, 12])
async def test_what_retention_took_before_it_was_brought_is_told_and_not_waited_for(
    made: Pipeline, keep: int
) -> None:
    def lost() -> float:
        return float(REGISTRY.get_sample_value(*LOST) or 0.0)

    before = lost()
    made.level = Level.GRACEFUL
    await made.publish(*market(1, 20))
    await made.settle()
    assert made.shed.pending() == {3: 60}
    logs = made.app.transport.store(made.app.transport).topic(TRADES.log).partitions
    for log in logs:
        log.delete_below(log.end_offset - keep)
    left = [
        int(offset)
        for n, log in enumerate(logs)
        for shed in made.shed._lanes[TP(TRADES.validated, n)].ledger.pending(
            LogPlace(made.epoch_of(TRADES.log), TRADES.log, n)
        )
        for offset in shed.offsets()
        if offset >= log.start_offset
    ]
    assert bool(left) == bool(keep)
    made.level = Level.NORMAL
    await made.settle()
    await made.settle()
    assert made.shed.pending() == {}
    assert lost() - before == 60 - len(left)
    assert len(ids_stored(made.lake)) == 20 * len(SYMBOLS) - 60 + len(left)
    # What is put off afterwards comes as ever: the groups of the deferred topic abut.
    made.level = Level.GRACEFUL
    await made.publish(*market(21, 5))
    await made.settle()
    made.level = Level.NORMAL
    await made.settle()
    assert made.shed.pending() == {}
    assert len(ids_stored(made.lake)) == 25 * len(SYMBOLS) - 60 + len(left)


@pytest.mark.parametrize("seed", range(20))
async def test_any_interleaving_with_crashes_ends_with_every_record_once(
    made: Pipeline, seed: int
) -> None:
    rng = random.Random(seed)
    sent: list[Record] = []
    next_id = 1

    async def publish() -> None:
        nonlocal next_id
        records = market(next_id, rng.randrange(1, 6))
        repeats = rng.sample(sent, min(len(sent), rng.randrange(0, 4)))
        next_id += len(records) // len(SYMBOLS)
        sent.extend(records)
        await made.publish(*records, *repeats)

    async def change_level() -> None:
        made.level = Level(rng.choice([0, 0, 0, 2, 3, 4]))

    async def checkpoint() -> None:
        await made.validate.checkpoint_all()

    async def commit() -> None:
        await made.sink.flush()

    async def crash() -> None:
        await made.crash()
        await made.start()

    async def reassign() -> None:
        await made.reassign(in_time=rng.random() < 0.5)

    actions = [publish] * 5 + [change_level] * 2 + [made.validate_some] * 4
    actions += [made.sink_some, made.sink_rest] * 3 + [made.bring] * 3
    actions += [checkpoint, commit, commit, crash, reassign]
    for _ in range(120):
        await rng.choice(actions)()
    made.level = Level.NORMAL
    await made.settle()
    assert by_symbol(ids_stored(made.lake)) == by_symbol(sent)
    assert made.shed.pending() == {}
    assert stored(made.lake, "gaps") == [], "what is put off is no gap"
    for place in made.sink.read_to():
        ceiling = made.sink.ceiling(place)
        vector = made.lake.writers["gaps" if place.topic == TRADES.gaps else "trades"].vector()
        held = vector.get(Place(made.epoch_of(TRADES.log), place.topic, place.partition))
        assert ceiling == (held.next_offset if held else None)
    vector = made.lake.writers["trades"].vector()
    ends = await made.app.transport.bounds(
        [place for place in made.sink.read_to() if place.topic == TRADES.validated]
    )
    for place, (_, end) in ends.items():
        stored_to = vector.get(Place(made.epoch_of(TRADES.log), place.topic, place.partition))
        assert stored_to is None or stored_to.next_offset <= end
