"""The behaviour every exchange has, over all of them; and what is particular to each."""

from __future__ import annotations

import json
import re
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k2.errors import ConfigError
from k2.pipeline import rules
from k2.pipeline.numbering import POLICIES
from k2.records import WIRE_QUOTES, WIRE_TRADES
from k2.setting_feeds import Coinbase, Kraken
from k2.settings import Validate
from k2.sources.contract import FrameMapper, Mapped
from k2.sources.exchanges import EXCHANGES
from k2.sources.kraken import pair_of
from k2.sources.kraken_v2 import digits
from k2.topics import FEED_TOPICS
from tests.sources.cases import (
    CASES,
    PRODUCTS,
    V1_PAIRS,
    Case,
    kraken_rest,
    kraken_v2_frames,
)

RECV_US = 1_762_820_036_000_000


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def mapper_of(case: Case) -> FrameMapper:
    (spec,) = case.exchange.sessions(case.settings)
    return case.exchange.mapper(spec, case.settings)


def mapped(case: Case, frames: list[bytes]) -> Mapped:
    received = [(RECV_US + n, frame) for n, frame in enumerate(frames)]
    return mapper_of(case).map(received, ingestion_us=RECV_US)


def test_recorded_frames_become_records_that_the_rules_let_pass(case: Case) -> None:
    found = mapped(case, case.frames())
    assert found.refused == []
    assert found.trades.schema == WIRE_TRADES
    if case.trades:
        assert found.trades.num_rows == case.trades
        assert (found.quotes.num_rows if found.quotes else 0) == case.quotes
    options = Validate(_env_file=None, max_age_days=36_500)  # type: ignore[call-arg]
    for data_type, batch in found.batches():
        assert rules.check(data_type, batch, options).reasons == []
        names = set(batch["exchange"].to_pylist())
        assert names == {case.exchange.name.upper()}
        assert all(re.fullmatch("[A-Z0-9]+", symbol) for symbol in batch["symbol"].to_pylist())
        assert batch["is_backfill"].to_pylist() == [False] * batch.num_rows
    if found.quotes is not None:
        assert found.quotes.schema == WIRE_QUOTES


def test_the_same_frames_give_the_same_ids_and_no_two_trades_share_one(case: Case) -> None:
    frames = case.frames()
    first, again = mapped(case, frames).trades, mapped(case, frames).trades
    assert first["message_id"].to_pylist() == again["message_id"].to_pylist()
    keys = list(zip(first["symbol"].to_pylist(), first["trade_id"].to_pylist(), strict=True))
    assert len(set(keys)) == len(keys)


def test_frames_one_by_one_give_what_they_give_together(case: Case) -> None:
    frames, mapper = case.frames()[:600], mapper_of(case)
    together = mapper.map([(RECV_US, frame) for frame in frames], ingestion_us=0).trades
    apart = [mapper.map([(RECV_US, frame)], ingestion_us=0).trades for frame in frames]
    rows = [row for batch in apart if batch is not None for row in batch.to_pylist()]
    assert rows == ([] if together is None else together.to_pylist())


def test_numbered_trades_run_without_a_hole(case: Case) -> None:
    trades = mapped(case, case.frames()).trades
    policy = POLICIES[(case.exchange.name, "trades")]
    assert policy == "contiguous"
    runs: dict[str, list[int]] = {}
    for symbol, ident in zip(
        trades["symbol"].to_pylist(), trades["trade_id"].to_pylist(), strict=True
    ):
        assert ident.isdigit() == case.numbered
        if case.numbered:
            runs.setdefault(symbol, []).append(int(ident))
    for ids in runs.values():
        assert ids == list(range(ids[0], ids[0] + len(ids)))


def test_what_the_exchange_complains_of_is_refused_with_its_words(case: Case) -> None:
    (refused,) = mapped(case, [case.refusals]).refused
    assert refused.reason == "exchange_error"
    assert refused.raw == case.refusals


@pytest.mark.parametrize(
    "frame", [b"", b"<html><body>502</body></html>", b"{", b"[]", b"\xff\xfe", b"[" * 5_000, b"1"]
)
def test_what_is_no_frame_is_refused_and_the_rest_goes_on(case: Case, frame: bytes) -> None:
    good = next(f for f in case.frames() if mapped(case, [f]).trades is not None)
    found = mapped(case, [frame, good])
    assert [refused.raw for refused in found.refused] == [frame]
    assert found.trades.num_rows >= 1


@given(data=st.data())
@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_no_damage_makes_a_mapper_raise(case: Case, data: st.DataObject) -> None:
    frames = [f for f in case.frames()[:200] if len(f) < 2_000]
    frame = bytearray(data.draw(st.sampled_from(frames)))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    mapped(case, [bytes(frame)])


def test_heartbeats_and_answers_are_neither_records_nor_refused() -> None:
    frames = CASES["kraken-v1"].frames()
    found = mapped(CASES["kraken-v1"], frames)
    assert found.control == sum(frame.startswith(b"{") for frame in frames) == 41
    assert mapped(CASES["coinbase"], CASES["coinbase"].frames()).control == 3


def test_every_exchange_has_topics_settings_and_a_name() -> None:
    assert set(EXCHANGES) == set(FEED_TOPICS)
    for name, exchange in EXCHANGES.items():
        assert exchange.name == name
        assert {topic.exchange for topic in FEED_TOPICS[name]} == {name}


def test_coinbase_names_the_aggressor_not_the_maker() -> None:
    found = mapped(CASES["coinbase"], CASES["coinbase"].frames())
    takers = {}  # the ticker of the same trade names the taker's side
    for frame in CASES["coinbase"].frames():
        content = json.loads(frame)
        if content["type"] == "ticker":
            takers[(content["product_id"].replace("-", ""), content["sequence"])] = content["side"]
    rows = found.trades.to_pylist()
    assert {
        takers[(row["symbol"], row["source_sequence"])].upper() == row["side"] for row in rows
    } == {True}
    assert {row["symbol"] for row in rows} == {name.replace("-", "") for name in PRODUCTS}


def test_coinbase_says_that_old_tickers_have_no_sizes() -> None:
    rows = mapped(CASES["coinbase"], CASES["coinbase"].frames()).quotes.to_pylist()
    assert {row["bid_quantity"] for row in rows} == {"0"}
    assert {dict(row["vendor_data"])["quantity_source"] for row in rows} == {"absent"}


def test_kraken_keeps_every_digit_of_its_numbers() -> None:
    trades = mapped(CASES["kraken-v2"], kraken_v2_frames()).trades.to_pylist()
    for row, (price, volume, time, side, _, _, ident) in zip(trades, kraken_rest(), strict=True):
        assert (row["price"], row["quantity"], row["trade_id"]) == (price, volume, str(ident))
        assert row["side"] == {"b": "BUY", "s": "SELL"}[side]
        whole, _, fraction = str(time).partition(".")
        micros = int(whole) * 1_000_000 + int(fraction[:6].ljust(6, "0"))
        assert int(row["timestamp"].timestamp()) == int(whole)
        assert row["timestamp"].microsecond == micros % 1_000_000


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"105944.20", "105944.20"),
        (b"0.00027625", "0.00027625"),
        (b"8.1e-06", "0.0000081"),
        (b"1E3", "1000"),
        (b"0.1000000000", "0.1000000000"),
    ],
)
def test_numbers_are_plain_text_with_every_digit(raw: bytes, text: str) -> None:
    import msgspec

    assert digits(msgspec.Raw(raw)) == text
    assert Decimal(text) == Decimal(raw.decode())


@pytest.mark.parametrize("raw", [b'"1.5"', b"null", b"true", b"[1]", b"{}"])
def test_what_is_no_number_is_refused(raw: bytes) -> None:
    frame = kraken_v2_frames()[0].replace(b"105433.60000", raw)
    (refused,) = mapped(CASES["kraken-v2"], [frame]).refused
    assert refused.reason == "bad_fields"


def test_kraken_v1_takes_every_trade_of_an_array_and_keeps_equal_ones_apart() -> None:
    fill = '["354.04000000","0.5","1618678150.826417","s","m",""]'
    frame = f'[993,[{fill},{fill},{fill}],"trade","XMR/USD"]'.encode()
    case = CASES["kraken-v1"]
    ids = mapped(case, [frame, frame]).trades["trade_id"].to_pylist()
    assert len(ids) == 6
    assert ids[:3] == ids[3:]
    assert len(set(ids)) == 3


@pytest.mark.parametrize(
    ("name", "symbol"), [("XBT/USD", "BTCUSD"), ("XDG/XBT", "DOGEBTC"), ("ETH/EUR", "ETHEUR")]
)
def test_kraken_names_assets_as_everybody_else_does(name: str, symbol: str) -> None:
    assert pair_of(name).symbol == symbol


def test_kraken_pairs_are_known_by_both_of_their_names() -> None:
    frames = [f.replace(b"BTC/USDT", b"XBT/USDT") for f in kraken_v2_frames()[:2]]
    assert mapped(CASES["kraken-v2"], frames).trades["symbol"].to_pylist() == ["BTCUSDT"] * 2
    assert len(V1_PAIRS) == 10


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (Kraken, {"symbols": ("BTCUSD",)}, "K2_KRAKEN_SYMBOLS has 'BTCUSD'"),
        (Kraken, {"streams": ("matches",)}, "K2_KRAKEN_STREAMS has 'matches'; allowed: trade"),
        (Coinbase, {"symbols": ("BTC/USD",)}, "K2_COINBASE_SYMBOLS has 'BTC/USD'"),
        (Coinbase, {"streams": ("trade",)}, "K2_COINBASE_STREAMS has 'trade'; allowed: matches"),
    ],
)
def test_impossible_settings_name_the_variable(
    kind: type[Kraken | Coinbase], values: dict[str, tuple[str, ...]], words: str
) -> None:
    made = kind(_env_file=None, **values)  # type: ignore[call-arg]
    name = kind.__name__.lower()
    with pytest.raises(ConfigError, match=re.escape(words)):
        EXCHANGES[name].sessions(made)
