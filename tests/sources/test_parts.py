"""The session's parts: delay, buffer, plan, protocol, symbols."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2.errors import ConfigError
from k2.sources.backoff import Backoff
from k2.sources.binance_protocol import MAX_PARAMS, BinanceProtocol
from k2.sources.buffer import FrameBuffer
from k2.sources.connector import AiohttpConnector
from k2.sources.plan import SessionSpec, plan_sessions
from k2.sources.session import SessionConfig
from k2.sources.symbols import QUOTE_SUFFIXES, split_symbol
from tests import data

# Backoff


@given(st.integers(0, 2**32), st.floats(0.01, 10), st.floats(0.01, 1_000), st.integers(1, 2_000))
def test_delays_stay_below_the_cap(seed: int, initial: float, cap: float, failures: int) -> None:
    backoff = Backoff(initial, cap, random.Random(seed))
    for failure in range(min(failures, 40)):
        assert 0 <= backoff.next_s() <= min(cap, initial * 2**failure)
    backoff.failures = failures
    assert 0 <= backoff.next_s() <= cap


def test_delays_are_jittered_over_their_whole_range_and_begin_anew() -> None:
    class Top(random.Random):
        def uniform(self, a: float, b: float) -> float:
            assert a == 0
            return b

    backoff = Backoff(1.0, 5.0, Top())
    assert [backoff.next_s() for _ in range(5)] == [1, 2, 4, 5, 5]
    backoff.reset()
    assert backoff.next_s() == 1


# Buffer


async def test_the_buffer_gives_batches_in_order() -> None:
    buffer = FrameBuffer(10)
    for number in range(5):
        assert buffer.add((number, b"x"))
    assert [at for at, _ in await buffer.take(3)] == [0, 1, 2]
    assert [at for at, _ in await buffer.take(10)] == [3, 4]


@pytest.mark.parametrize(("frames", "size"), [(3, 1), (100, 40)])
async def test_without_room_the_reader_waits_and_nothing_is_dropped(frames: int, size: int) -> None:
    buffer = FrameBuffer(frames, max_bytes=100)
    added = 0
    while buffer.add((added, b"x" * size)):
        added += 1
    waiting = asyncio.ensure_future(buffer.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    assert len(await buffer.take(1)) == 1
    await waiting
    assert len(buffer) == added


async def test_a_closed_buffer_drains_and_then_says_so() -> None:
    buffer = FrameBuffer(10)
    buffer.add((1, b"x"))
    taker = asyncio.ensure_future(buffer.take(5))
    assert await taker == [(1, b"x")]
    taker = asyncio.ensure_future(buffer.take(5))
    await asyncio.sleep(0)
    buffer.close()
    assert await taker == []


# Symbols


@pytest.mark.parametrize(
    ("symbol", "base", "quote"),
    [
        ("BTCUSDT", "BTC", "USDT"),
        ("ETHBTC", "ETH", "BTC"),
        ("BNBETH", "BNB", "ETH"),
        ("BTCUSD", "BTC", "USD"),
        ("1INCHTRY", "1INCH", "TRY"),
        ("USDTNGN", "USDT", "NGN"),
        ("BTCBRL", "BT", "CBRL"),  # the fallback: no suffix of the list
        ("USDT", "", "USDT"),
        ("ABC", "", "ABC"),
    ],
)
def test_symbols_split(symbol: str, base: str, quote: str) -> None:
    assert split_symbol(symbol) == (base, quote)


@given(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", max_size=12))
def test_parts_always_make_the_symbol(symbol: str) -> None:
    base, quote = split_symbol(symbol)
    assert base + quote == symbol
    assert not symbol or quote


@given(st.text("ABCDXYZ019", min_size=1, max_size=6), st.sampled_from(QUOTE_SUFFIXES))
def test_a_known_suffix_is_the_quote(base: str, suffix: str) -> None:
    found_base, quote = split_symbol(base + suffix)
    # An earlier suffix of the list wins, and it can only be one that also ends the symbol.
    first = next(s for s in QUOTE_SUFFIXES if (base + suffix).endswith(s) and s != base + suffix)
    assert quote == first
    assert found_base


def test_recorded_symbols_split_as_the_exchange_says() -> None:
    path = data.SHARED / "binance" / "exchangeInfo_20211011.json.gz"
    data.require(path)
    answer = gzip.decompress(path.read_bytes()).splitlines()[0]
    symbols = json.loads(answer)["symbols"]
    wrong = {
        s["symbol"]
        for s in symbols
        if s["quoteAsset"] in QUOTE_SUFFIXES
        and split_symbol(s["symbol"]) != (s["baseAsset"], s["quoteAsset"])
    }
    assert len(symbols) > 1_500
    assert wrong == set()


# Plan


def test_symbols_are_spread_over_sessions_with_stable_keys() -> None:
    specs = plan_sessions(["BTCUSDT", "ethusdt", "BNBUSDT", "BTCUSDT"], per_session=2)
    assert specs == [
        SessionSpec(
            "BINANCE",
            ("BTCUSDT", "ETHUSDT"),
            ("btcusdt@trade", "btcusdt@bookTicker", "ethusdt@trade", "ethusdt@bookTicker"),
            "binance-0",
        ),
        SessionSpec("BINANCE", ("BNBUSDT",), ("bnbusdt@trade", "bnbusdt@bookTicker"), "binance-1"),
    ]
    assert [SessionSpec.decode(spec.encode()) for spec in specs] == specs


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 30))
def test_appending_symbols_moves_nobody(count: int, more: int, per_session: int) -> None:
    names = [f"S{n}USDT" for n in range(count + more)]
    before = {s: spec.key for spec in plan_sessions(names[:count], per_session=per_session)
              for s in spec.symbols}  # fmt: skip
    after = {s: spec.key for spec in plan_sessions(names, per_session=per_session)
             for s in spec.symbols}  # fmt: skip
    assert list(after) == names
    assert before.items() <= after.items()


@pytest.mark.parametrize(
    ("symbols", "channels", "per_session", "word"),
    [
        (["BTC/USDT"], ("trade",), 1, "K2_BINANCE_SYMBOLS"),
        ([""], ("trade",), 1, "K2_BINANCE_SYMBOLS"),
        (["BTCUSDT"], ("depth",), 1, "K2_BINANCE_STREAMS"),
        (["BTCUSDT"], (), 1, "Binance allows 1"),
        (["BTCUSDT"], ("trade", "bookTicker"), 600, "1200 streams"),
    ],
)
def test_impossible_plans_are_refused(
    symbols: list[str], channels: tuple[str, ...], per_session: int, word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        plan_sessions(symbols, channels, per_session=per_session)


# Protocol


@pytest.mark.parametrize("base", ["ws://x:1", "ws://x:1/", "ws://x:1/stream"])
def test_streams_go_into_the_address(base: str) -> None:
    protocol = BinanceProtocol(("a@trade", "b@trade"))
    assert protocol.url(base) == "ws://x:1/stream?streams=a@trade/b@trade"
    assert protocol.messages() == []


@given(st.integers(0, 1_024))
def test_every_stream_is_asked_for_once(count: int) -> None:
    streams = tuple(f"symbol{n}usdt@bookTicker" for n in range(count))
    protocol = BinanceProtocol(streams)
    url = protocol.url("ws://x")
    asked = [name for name in url.partition("streams=")[2].split("/") if name]
    messages = [json.loads(message) for message in protocol.messages()]
    for message in messages:
        assert message["method"] == "SUBSCRIBE"
        assert 0 < len(message["params"]) <= MAX_PARAMS
        asked += message["params"]
    assert len(url) < 7_000
    assert tuple(asked) == streams
    assert len({message["id"] for message in messages}) == len(messages)


def test_answers_are_not_data() -> None:
    protocol = BinanceProtocol(())
    assert protocol.is_data(b'{"stream":"a"}')
    assert not protocol.is_data(b'{"result":null,"id":1}')
    assert not protocol.is_data(b'{"code":2,"msg":"x"}')


# Configuration


def test_certificates_that_cannot_be_used_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        AiohttpConnector(ca_bundle=str(tmp_path / "missing.pem"))
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    with pytest.raises(ConfigError, match="no usable certificates"):
        AiohttpConnector(ca_bundle=str(bad))
    AiohttpConnector(ssl_verify=False, ca_bundle=str(bad))


def test_a_session_needs_an_address() -> None:
    with pytest.raises(ConfigError, match="K2_BINANCE_URL"):
        SessionConfig(())
