"""Source: an exchange's frames into the log, on the workers that own the sessions."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from k2.clock import SYSTEM_CLOCK, SystemClock
from k2.codecs import Codecs
from k2.errors import LogError
from k2.exchange.capture import Frame
from k2.exchange.server import ExchangeServer
from k2.setting_feeds import Binance
from k2.sources.binance import BinanceExchange
from k2.steps.dead_letters import DeadLetters
from k2.steps.publish import SESSION_HEADER, Partitioner, Publisher, partition_of
from k2.steps.raw import RawFrames
from k2.steps.source import SourceFeed, SourceStep
from k2.testing.clock import eventually
from k2.testing.log import MemoryLog
from tests.exchange.feeds import ListFeed, book, serving, trade
from tests.steps.parts import QUOTES, TRADES, dead_letters

PARTITIONS = 16
EVERY = range(PARTITIONS)


@dataclass
class Source:
    """A source step on a log in memory, and what it complained of."""

    step: SourceStep
    log: MemoryLog
    codecs: Codecs
    errors: list[BaseException] = field(default_factory=list)

    def ids(self, topic: Any = TRADES) -> dict[str, list[int]]:
        """Ids by symbol, in log order."""
        found: dict[str, list[int]] = {}
        for partition in self.log.partitions(topic.log):
            rows = self.codecs.of(topic.log).decode(self.log.values(topic.log, partition)).batch
            for row in rows.to_pylist():
                found.setdefault(row["symbol"], []).append(row["source_sequence"])
        return found

    def refused(self) -> list[str]:
        rows = dead_letters(self.codecs, self.log.values(TRADES.dlq))
        return [row["reason"] for row in rows]

    @property
    def sessions(self) -> list[str]:
        return [str(session["session"]) for session in self.step.sessions()]


@asynccontextmanager
async def source(codecs: Codecs, log: MemoryLog, url: str, **options: Any) -> AsyncIterator[Source]:
    max_record_bytes = options.pop("max_record_bytes", 500_000)
    behind = options.pop("behind", lambda: False)
    clock = options.pop("clock", SYSTEM_CLOCK)
    binance = Binance(
        _env_file=None,
        **{
            "url": url,
            "failover_urls": (),
            "symbols": ("BTCUSDT",),
            "reconnect_initial_s": 0.01,
            **options,
        },
    )
    errors: list[BaseException] = []
    publishers = {
        topic.data_type: Publisher(
            topic, log, codecs.of(topic.log), Partitioner(PARTITIONS), SYSTEM_CLOCK, 500_000
        )
        for topic in (TRADES, QUOTES)
    }
    step = SourceStep(
        [
            SourceFeed(
                BinanceExchange(),
                binance,
                publishers,
                DeadLetters(TRADES, log, codecs.of(TRADES.dlq), 500_000),
                RawFrames(TRADES, log, Partitioner(PARTITIONS), 5_000) if binance.raw else None,
            )
        ],
        clock,
        partitions=PARTITIONS,
        max_record_bytes=max_record_bytes,
        on_error=errors.append,
        behind=behind,
    )
    try:
        yield Source(step, log, codecs, errors)
    finally:
        await step.stop()


async def fault(server: ExchangeServer, **body: object) -> None:
    url = f"http://127.0.0.1:{server.port}/k2/fault"
    async with aiohttp.ClientSession() as http, http.post(url, json=body) as answer:
        assert answer.status == 200, await answer.text()


async def until(condition: Callable[[], object]) -> None:
    await eventually(condition, limit_s=20.0)


async def test_every_frame_is_in_the_log_once_and_in_order(codecs: Codecs, log: MemoryLog) -> None:
    frames = [f for i in range(1, 400) for f in (trade(i), book(10 * i))]
    async with serving(ListFeed(frames)) as server, source(codecs, log, server.url) as made:
        await made.step.own(EVERY)
        await until(lambda: made.step.counts.frames == len(frames))
        await made.step.stop()
        assert made.ids() == {"BTCUSDT": list(range(1, 400))}
        assert made.ids(QUOTES) == {"BTCUSDT": [10 * i for i in range(1, 400)]}
        counts = made.step.counts
        assert (counts.trades, counts.quotes, counts.refused) == (399, 399, 0)
    assert made.errors == []
    assert log.partitions(TRADES.log) == [partition_of(b"BTCUSDT", PARTITIONS)]


async def test_a_stop_returns_when_the_log_has_what_was_received(
    codecs: Codecs, log: MemoryLog
) -> None:
    async with (
        serving(ListFeed([trade(i) for i in range(1, 50)])) as server,
        source(codecs, log, server.url) as made,
    ):
        log.hold()
        await made.step.own(EVERY)
        await until(lambda: made.step.counts.frames == 49)
        assert made.step.in_flight == log.held > 0
        stopping = asyncio.ensure_future(made.step.stop())
        await until(lambda: made.sessions == [] or made.step.queued == 0)
        assert not stopping.done()
        log.release()
        await stopping
        assert made.sessions == []
        assert made.step.in_flight == 0


async def test_sessions_run_where_their_partition_is_owned(codecs: Codecs, log: MemoryLog) -> None:
    symbols = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
    frames = [trade(i, symbol) for i in range(1, 20) for symbol in symbols]
    async with (
        serving(ListFeed(frames)) as server,
        source(codecs, log, server.url, symbols=symbols, symbols_per_session=1) as made,
    ):
        homes = {
            spec.key: partition_of(spec.key.encode(), PARTITIONS) for spec in made.step.specs()
        }
        # The first two share a partition, as sessions do when there are more of them.
        assert homes == {"binance-0": 5, "binance-1": 5, "binance-2": 13}
        await made.step.own([5])
        await until(lambda: made.step.counts.trades == 2 * 19)
        assert made.sessions == ["binance-0", "binance-1"]
        assert made.ids() == {key: list(range(1, 20)) for key in symbols[:2]}
        await made.step.own([5, 13, 14])
        await until(lambda: made.step.counts.trades == 3 * 19)
        assert made.sessions == ["binance-0", "binance-1", "binance-2"]
        assert made.ids()["ETHUSDT"] == list(range(1, 20)), "a session that stays goes on"
        await made.step.own([13])
        assert made.sessions == ["binance-2"]
        await made.step.own([])
        assert made.sessions == []


async def test_a_run_of_a_session_is_named_so_that_continuity_can_tell(
    codecs: Codecs, log: MemoryLog
) -> None:
    async with (
        serving(ListFeed([trade(i) for i in range(1, 10)])) as server,
        source(codecs, log, server.url) as made,
    ):
        await made.step.own(EVERY)
        await until(lambda: made.step.counts.frames == 9)
        await fault(server, kind="disconnect")
        await until(lambda: made.step.counts.frames == 18)
        await made.step.stop()
        await made.step.own(EVERY)
        await until(lambda: made.step.counts.frames == 27)
    names = {dict(batch.headers)[SESSION_HEADER] for batch in log.sent}
    assert len(names) == 3, "a reconnection and a restart are runs of their own"


async def test_a_disabled_feed_has_no_sessions(codecs: Codecs, log: MemoryLog) -> None:
    async with source(codecs, log, "ws://127.0.0.1:1", enabled=False) as made:
        await made.step.own(EVERY)
        assert made.step.specs() == []
        assert made.sessions == []


BAD = {
    "bad_json": b"{not json",
    "bad_fields": b'{"stream":"btcusdt@trade","data":{"e":"trade","s":"BTCUSDT"}}',
    "unknown_symbol": b'{"stream":"xyzusdt@trade","data":{"e":"trade","s":"XYZUSDT"}}',
    "unknown_frame": b"[1,2,3]",
    "exchange_error": b'{"code":2,"msg":"Invalid request"}',
}


async def test_refused_frames_become_dead_letters_and_the_stream_goes_on(
    codecs: Codecs, log: MemoryLog
) -> None:
    feed = ListFeed([trade(i) for i in range(1, 100)])
    async with (
        serving(feed, mode="by-clock") as server,
        source(codecs, log, server.url) as made,
    ):
        await made.step.own(EVERY)
        await until(lambda: made.step.counts.trades == 99)
        for raw in BAD.values():
            await fault(server, kind="raw", hex=raw.hex())
        await until(lambda: made.step.counts.refused == len(BAD))
        await fault(server, kind="raw", hex=trade(100).data.hex())
        await until(lambda: made.step.counts.trades == 100)
        await made.step.stop()
    assert made.errors == []
    rows = dead_letters(codecs, log.values(TRADES.dlq))
    assert {row["reason"]: row["value"] for row in rows} == BAD
    assert made.ids() == {"BTCUSDT": list(range(1, 101))}


async def test_a_frame_that_no_batch_could_hold_is_refused_not_fatal(
    codecs: Codecs, log: MemoryLog
) -> None:
    price = "1" * 30_000
    feed = ListFeed([trade(1)])
    async with (
        serving(feed, mode="by-clock") as server,
        source(codecs, log, server.url, max_record_bytes=20_000) as made,
    ):
        await made.step.own(EVERY)
        await until(lambda: made.step.counts.trades == 1)
        raw = trade(2).data.replace(b"61837.63000000", price.encode())
        await fault(server, kind="raw", hex=raw.hex())
        await fault(server, kind="raw", hex=trade(3).data.hex())
        await until(lambda: made.step.counts.trades == 2)
        await made.step.stop()
    (letter,) = dead_letters(codecs, log.values(TRADES.dlq))
    assert (letter["reason"], letter["value"]) == ("frame_too_large", raw)
    assert made.ids() == {"BTCUSDT": [1, 3]}


async def test_a_batch_the_log_refuses_is_reported_to_the_worker(
    codecs: Codecs, log: MemoryLog
) -> None:
    async with (
        serving(ListFeed([trade(i) for i in range(1, 10)]), mode="by-clock") as server,
        source(codecs, log, server.url) as made,
    ):
        await made.step.own(EVERY)
        await until(lambda: made.step.counts.trades == 9)
        log.refuse(LogError("the disk is full"))
        await fault(server, kind="raw", hex=trade(10).data.hex())
        await fault(server, kind="raw", hex=trade(11).data.hex())
        await until(lambda: made.errors)
        assert "disk is full" in str(made.errors[0])


async def test_no_more_frames_are_taken_while_too_much_is_on_its_way(
    codecs: Codecs, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("k2.steps.source._IN_FLIGHT", 4)
    monkeypatch.setattr("k2.steps.source._FRAMES", 10)
    async with (
        serving(ListFeed([trade(i) for i in range(1, 1_001)])) as server,
        source(codecs, log, server.url, queue_frames=100) as made,
    ):
        log.hold()
        await made.step.own(EVERY)
        await until(lambda: made.step.queued >= 100)
        assert log.held <= 5
        log.release()
        await until(lambda: made.step.counts.frames == 1_000)
    assert made.ids() == {"BTCUSDT": list(range(1, 1_001))}


async def test_an_exchange_that_is_away_is_waited_for(codecs: Codecs, log: MemoryLog) -> None:
    async with source(codecs, log, "ws://127.0.0.1:1") as made:
        await made.step.own(EVERY)
        await until(lambda: made.step.sessions()[0]["reconnects"])
        (session,) = made.step.sessions()
        assert session["reconnects"]["connect_failed"] >= 1
        assert "127.0.0.1:1" in str(session["last_error"])
        assert made.errors == [], "an exchange that is away is waited for"


async def test_raw_frames_are_kept_as_they_came_where_asked_for(
    codecs: Codecs, log: MemoryLog
) -> None:
    # One that is no record is a frame all the same; small batches, so that there are several.
    frames = [trade(i) for i in range(1, 200)]
    broken = Frame(frames[-1].recv_ns, "btcusdt@trade", b'{"stream":"btcusdt@trade","data":{}}')
    feed = ListFeed([*frames, broken])
    async with serving(feed) as server, source(codecs, log, server.url, raw=True) as made:
        await made.step.own(EVERY)
        await until(lambda: made.step.counts.frames == len(frames) + 1)
        await made.step.stop()
    (partition,) = log.partitions(TRADES.raw)
    assert partition == partition_of(b"binance-0", PARTITIONS)
    assert log.values(TRADES.raw, partition) == [f.data for f in (*frames, broken)]
    assert made.refused() == ["bad_fields"]


async def test_a_full_queue_leaves_the_loop_to_others(codecs: Codecs, log: MemoryLog) -> None:
    frames = [trade(i) for i in range(1, 12_001)]
    seen = [0]

    async def watch(made: Source) -> None:
        while made.step.counts.frames < len(frames):
            seen.append(made.step.counts.frames)
            await asyncio.sleep(0)
        seen.append(made.step.counts.frames)

    async with serving(ListFeed(frames)) as server, source(codecs, log, server.url) as made:
        settle = made.step._settle

        async def held(pending: Any) -> Any:
            # Until the whole feed is in the queue nothing more is taken from it.
            (running,) = made.step._running.values()
            await until(lambda: running.session.stats.frames == len(frames))
            return await settle(pending)

        made.step._settle = held  # type: ignore[method-assign]
        await made.step.own(EVERY)
        await until(lambda: made.step.queued > 10_000)
        await watch(made)
    steps = [after - before for before, after in itertools.pairwise(seen)]
    assert max(steps) <= 1_000


class _Noting(SystemClock):
    """Notes how long the task that hands frames on slept by it."""

    def __init__(self) -> None:
        self.given_s: list[float] = []

    async def sleep(self, seconds: float) -> None:
        task = asyncio.current_task()
        if task is not None and task.get_coro().__qualname__ == "SourceStep._pump":
            self.given_s.append(seconds)
        await super().sleep(seconds)


@pytest.mark.parametrize("behind", [True, False])
async def test_who_is_behind_gets_turns_while_more_frames_wait(
    codecs: Codecs, log: MemoryLog, monkeypatch: pytest.MonkeyPatch, behind: bool
) -> None:
    """A feed above what the worker can take must leave time to the steps after it."""
    monkeypatch.setattr("k2.steps.source._FEW_FRAMES", 1)
    clock = _Noting()
    frames = [trade(i) for i in range(1, 2_001)]
    async with (
        serving(ListFeed(frames)) as server,
        source(codecs, log, server.url, behind=lambda: behind, clock=clock) as made,
    ):
        await made.step.own(EVERY)
        await until(lambda: made.step.counts.frames == len(frames))
        assert made.ids() == {"BTCUSDT": list(range(1, 2_001))}
    assert bool(clock.given_s) is behind
    assert all(0 < given_s <= 0.25 for given_s in clock.given_s)
