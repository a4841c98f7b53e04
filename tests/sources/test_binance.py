"""Frames to columns: exact values, every refusal, never an exception."""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k2.exchange.capture import read_capture
from k2.records import WIRE_AGG_TRADES, WIRE_QUOTES, WIRE_TRADES
from k2.sources.binance import BinanceMapper, Mapped
from tests import data

RECV = 1_723_161_254_087_896
TRADE = (
    b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1723161255343,"s":"BTCUSDT",'
    b'"t":3735683259,"p":"61837.63000000","q":"0.02000000","T":1723161255342,"m":true,"M":true}}'
)
BOOK = (
    b'{"stream":"btcusdt@bookTicker","data":{"u":50093239212,"s":"BTCUSDT","b":"61837.63000000",'
    b'"B":"3.78826000","a":"61837.64000000","A":"1.54698000"}}'
)


def mapped(*frames: bytes, symbols: tuple[str, ...] = ("BTCUSDT",), **options: Any) -> Mapped:
    mapper = BinanceMapper(symbols, **options)
    return mapper.map([(RECV, frame) for frame in frames], ingestion_us=RECV + 5)


def changed(frame: bytes, **fields: Any) -> bytes:
    """`frame` with data fields set, or removed when None is given."""
    content = json.loads(frame)
    content["data"] |= fields
    content["data"] = {k: v for k, v in content["data"].items() if v is not None}
    return json.dumps(content, separators=(",", ":")).encode()


def row(batch: Any, index: int = 0) -> dict[str, Any]:
    """One row with times as integer microseconds and the map as a dictionary."""
    values = batch.slice(index, 1)
    made = {}
    for name in batch.schema.names:
        column = values[name]
        is_time = str(column.type).startswith("timestamp")
        made[name] = column.cast("int64")[0].as_py() if is_time else column[0].as_py()
    made["vendor_data"] = dict(made["vendor_data"])
    return made


def test_a_trade_is_mapped_exactly() -> None:
    result = mapped(TRADE)
    assert result.trades.schema.equals(WIRE_TRADES)
    assert row(result.trades) == {
        "message_id": "BINANCE:1723161255342:BTCUSDT:3735683259",
        "trade_id": "3735683259",
        "symbol": "BTCUSDT",
        "exchange": "BINANCE",
        "asset_class": "crypto",
        "timestamp": 1_723_161_255_342_000,
        "receive_timestamp": RECV,
        "ingestion_timestamp": RECV + 5,
        "price": "61837.63000000",
        "quantity": "0.02000000",
        "currency": "USDT",
        "side": "SELL",
        "trade_conditions": [],
        "source_sequence": 3_735_683_259,
        "vendor_data": {
            "is_buyer_maker": "true",
            "event_type": "trade",
            "event_time": "1723161255343",
            "trade_time": "1723161255342",
            "base_asset": "BTC",
            "quote_asset": "USDT",
            "is_best_match": "true",
        },
        "is_backfill": False,
    }
    assert result.delay_us == RECV - 1_723_161_255_342_000
    assert (result.quotes, result.refused, result.control) == (None, [], 0)


def test_a_quote_is_mapped_exactly() -> None:
    result = mapped(BOOK)
    assert result.quotes.schema.equals(WIRE_QUOTES)
    assert row(result.quotes) == {
        "message_id": "BINANCE:1723161254087:BTCUSDT:50093239212",
        "quote_id": "50093239212",
        "symbol": "BTCUSDT",
        "exchange": "BINANCE",
        "asset_class": "crypto",
        "timestamp": RECV,
        "receive_timestamp": RECV,
        "ingestion_timestamp": RECV + 5,
        "bid_price": "61837.63000000",
        "bid_quantity": "3.78826000",
        "ask_price": "61837.64000000",
        "ask_quantity": "1.54698000",
        "currency": "USDT",
        "source_sequence": 50_093_239_212,
        "vendor_data": {
            "base_asset": "BTC",
            "quote_asset": "USDT",
            "timestamp_source": "receive",
        },
        "is_backfill": False,
    }


def test_side_is_the_aggressors() -> None:
    assert row(mapped(changed(TRADE, m=False)).trades)["side"] == "BUY"


def test_is_best_match_only_where_it_was_sent() -> None:
    frames = [TRADE, changed(TRADE, M=None, t=2), changed(TRADE, M=False, t=3)]
    trades = mapped(*frames).trades
    assert trades["trade_id"].to_pylist() == ["3735683259", "2", "3"]
    found = [row(trades, n)["vendor_data"].get("is_best_match") for n in range(3)]
    assert found == ["true", None, "false"]
    assert "is_best_match" not in row(mapped(frames[1]).trades)["vendor_data"]


def test_backfilled_trades_are_marked() -> None:
    mapper = BinanceMapper(["BTCUSDT"])
    result = mapper.map([(RECV, TRADE), (RECV, BOOK)], ingestion_us=0, is_backfill=True)
    assert result.trades["is_backfill"].to_pylist() == [True]
    assert result.quotes["is_backfill"].to_pylist() == [True]


def test_recorded_captures_have_the_counts_and_sums_of_the_oracle() -> None:
    data.require(data.BTC_0808, data.BTC_0809)
    oracle = data.btc_oracle()
    mapper = BinanceMapper(["btcusdt"])
    ids: list[int] = []
    volume, quotes, seen = Decimal(0), 0, Counter[str]()
    for path in (data.BTC_0808, data.BTC_0809):
        frames = [(f.recv_ns // 1_000, f.data) for f in read_capture(path)]
        for at in range(0, len(frames), 5_000):
            result = mapper.map(frames[at : at + 5_000], ingestion_us=0)
            ids += result.trades["source_sequence"].to_pylist()
            volume += sum(map(Decimal, result.trades["quantity"].to_pylist()))
            quotes += result.quotes.num_rows
            seen.update(result.ignored)
            seen.update(refusal.reason for refusal in result.refused)
    assert ids == list(range(data.FIRST_TRADE, data.LAST_TRADE + 1))
    assert quotes == data.QUOTES
    assert volume == Decimal(oracle["volume"])
    assert seen == {"depth@100ms": 6_495, "unknown_frame": 1}  # the REST snapshot line


def test_channels_not_asked_for_are_counted_not_mapped() -> None:
    path = data.SHARED / "binance" / "binance_multi_20211011.gz"
    data.require(path)
    frames = [f.data for f in read_capture(path)]
    result = mapped(*frames, symbols=("NKNUSDT", "BLZETH", "LRCBTC", "RUNEEUR"))
    assert result.trades is None
    assert set(result.ignored) == {"aggTrade", "depth@100ms", "kline_1m"}
    assert result.quotes.num_rows + sum(result.ignored.values()) == len(frames)
    assert set(result.quotes["currency"].to_pylist()) <= {"USDT", "ETH", "BTC", "EUR"}
    only_trades = mapped(BOOK, TRADE, channels=("trade",))
    assert only_trades.quotes is None
    assert only_trades.ignored == {"bookTicker": 1}


@pytest.mark.parametrize(
    ("frame", "reason", "word"),
    [
        (b"", "bad_json", ""),
        (b"{not json", "bad_json", ""),
        (TRADE[:-1], "bad_json", ""),
        (TRADE + b"x", "bad_json", "trailing"),
        (TRADE.replace(b"61837", b"\xff1837"), "bad_json", ""),
        (TRADE.replace(b"61837", b"\\ud800"), "bad_json", ""),
        (b"[" * 100_000, "bad_json", ""),
        (b"[1]", "unknown_frame", "object"),
        (b"null", "unknown_frame", "object"),
        (b"{}", "unknown_frame", "neither"),
        (b'{"stream":"btcusdt@trade"}', "bad_fields", "data"),
        (b'{"stream":7,"data":{}}', "unknown_frame", ""),
        (b'{"stream":"","data":{}}', "unknown_frame", ""),
        (b'{"stream":"btcusdt@trade","data":[]}', "bad_fields", "object"),
        (changed(TRADE, t=None), "bad_fields", "`t`"),
        (changed(TRADE, e=None), "bad_fields", "`e`"),
        (changed(TRADE, T=None), "bad_fields", "`T`"),
        (changed(TRADE, m=None), "bad_fields", "`m`"),
        (changed(TRADE, e="aggTrade"), "bad_fields", "$.data.e"),
        (changed(TRADE, p=61837.63), "bad_fields", "$.data.p"),
        (changed(TRADE, q=1), "bad_fields", "$.data.q"),
        (changed(TRADE, t="3735683259"), "bad_fields", "$.data.t"),
        (changed(TRADE, t=1.5), "bad_fields", "$.data.t"),
        (changed(TRADE, t=2**63), "bad_fields", "$.data.t"),
        (changed(TRADE, T="1723161255342"), "bad_fields", "$.data.T"),
        (changed(TRADE, T=10**30), "bad_fields", "$.data.T"),
        (changed(TRADE, T=9_999_999_999_999_999), "bad_fields", "$.data.T"),
        (changed(TRADE, m="true"), "bad_fields", "$.data.m"),
        (changed(TRADE, m=1), "bad_fields", "$.data.m"),
        (changed(TRADE, s=["BTCUSDT"]), "bad_fields", "$.data.s"),
        (changed(TRADE, s="ETHUSDT"), "symbol_mismatch", "ETHUSDT"),
        (TRADE.replace(b"btcusdt@", b"ethusdt@"), "unknown_symbol", "ETHUSDT"),
        (changed(BOOK, u=None), "bad_fields", "`u`"),
        (changed(BOOK, u="1"), "bad_fields", "$.data.u"),
        (changed(BOOK, a=1.5), "bad_fields", "$.data.a"),
        (changed(BOOK, s="ETHUSDT"), "symbol_mismatch", "ETHUSDT"),
        (b'{"code":2,"msg":"Invalid request: x","id":1}', "exchange_error", "Invalid request"),
        (b'{"error":{"code":1,"msg":"no"},"id":1}', "exchange_error", "no"),
    ],
)
def test_what_cannot_be_mapped_is_refused_with_its_bytes(
    frame: bytes, reason: str, word: str
) -> None:
    result = mapped(TRADE, frame, BOOK)
    (refused,) = result.refused
    assert (refused.reason, refused.raw, refused.recv_us) == (reason, frame, RECV)
    assert word in refused.detail
    assert result.trades.num_rows == result.quotes.num_rows == 1


def test_absurd_numbers_as_text_are_left_to_the_rules() -> None:
    frames = [
        changed(TRADE, p="-1", t=1),
        changed(TRADE, p="0.-10000", q="", t=2),
        changed(TRADE, p="1e400", q="NaN", t=3),
        changed(TRADE, T=0, t=-4),
    ]
    trades = mapped(*frames).trades
    assert trades["price"].to_pylist() == ["-1", "0.-10000", "1e400", "61837.63000000"]
    assert trades["trade_id"].to_pylist() == ["1", "2", "3", "-4"]


def test_answers_to_our_own_messages_are_not_refused() -> None:
    result = mapped(b'{"result":null,"id":1}', b'{"result":["btcusdt@trade"],"id":2}')
    assert (result.control, result.refused) == (2, [])


def test_raw_streams_and_other_spacing_are_understood() -> None:
    bare_trade = json.dumps(json.loads(TRADE)["data"]).encode()
    bare_book = json.dumps(json.loads(BOOK)["data"]).encode()
    spaced = json.dumps(json.loads(TRADE), indent=1).encode()
    turned = json.dumps(dict(reversed(json.loads(TRADE).items()))).encode()
    result = mapped(bare_trade, spaced, turned, bare_book)
    assert result.refused == []
    plain = mapped(TRADE, TRADE, TRADE, BOOK)
    assert result.trades.equals(plain.trades)
    assert result.quotes.equals(plain.quotes)
    event = mapped(b'{"e":"serverShutdown","E":1}', b'{"e":"trade","s":"ETHUSDT"}')
    assert event.ignored == {"serverShutdown": 1}
    assert [refused.reason for refused in event.refused] == ["unknown_symbol"]


def test_no_frames_no_batches() -> None:
    assert mapped() == Mapped()


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_no_bytes_make_it_raise(frames: list[bytes]) -> None:
    result = mapped(*frames)
    assert len(result.refused) + sum(result.ignored.values()) + result.control == len(frames)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(st.sampled_from([TRADE, BOOK]), st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_no_damage_to_a_frame_makes_it_raise(frame: bytes, draw: st.DataObject) -> None:
    content = json.loads(frame)
    inner = content["data"]
    for key in draw.draw(st.lists(st.sampled_from(sorted(inner)), max_size=3)):
        inner[key] = draw.draw(_json)
    damaged = json.dumps(content, separators=(",", ":")).encode()
    result = mapped(damaged)
    rows = sum(batch.num_rows for batch in (result.trades, result.quotes) if batch)
    assert rows + len(result.refused) == 1
    for batch in (result.trades, result.quotes):
        if batch is not None:
            batch.validate(full=True)


AGG = (
    b'{"stream":"nknusdt@aggTrade","data":{"e":"aggTrade","E":1633998523963,"s":"NKNUSDT",'
    b'"a":15683430,"p":"0.35280000","q":"58.00000000","f":19862790,"l":19862792,'
    b'"T":1633998523963,"m":false,"M":true}}'
)


def test_an_aggregated_trade_is_mapped_exactly_and_is_no_trade() -> None:
    result = mapped(AGG, TRADE, symbols=("NKNUSDT", "BTCUSDT"), channels=("trade", "aggTrade"))
    assert result.trades.num_rows == 1
    assert result.agg_trades.schema.equals(WIRE_AGG_TRADES)
    found = row(result.agg_trades)
    assert found["message_id"] == "BINANCE:1633998523963:NKNUSDT:15683430"
    assert (found["trade_id"], found["first_trade_id"], found["last_trade_id"]) == (
        "15683430",
        19_862_790,
        19_862_792,
    )
    assert (found["price"], found["quantity"], found["side"]) == (
        "0.35280000",
        "58.00000000",
        "BUY",
    )
    assert found["vendor_data"]["event_type"] == "aggTrade"
    assert [name for name, _ in result.batches()] == ["trades", "agg_trades"]


def test_aggregates_not_asked_for_are_left_aside() -> None:
    result = mapped(AGG, symbols=("NKNUSDT",))
    assert (result.agg_trades, result.ignored) == (None, Counter(aggTrade=1))


@pytest.mark.parametrize(
    "frame",
    [changed(AGG, a=None), changed(AGG, f="1"), changed(AGG, s="BTCUSDT"), changed(AGG, p=0.35)],
)
def test_an_aggregate_of_another_shape_is_refused(frame: bytes) -> None:
    result = mapped(frame, symbols=("NKNUSDT",), channels=("aggTrade",))
    assert result.agg_trades is None
    assert len(result.refused) == 1


def test_futures_say_when_a_quote_was_and_what_an_unusual_fill_is() -> None:
    fill = changed(TRADE, X="MARKET", M=None)
    insurance = changed(TRADE, X="INSURANCE_FUND", M=None, t=3735683260)
    book = changed(BOOK, e="bookTicker", E=1723161255350, T=1723161255344)
    result = mapped(fill, insurance, book, exchange="BINANCE_FUTURES", asset_class="futures")
    trades = result.trades
    assert trades["trade_conditions"].to_pylist() == [[], ["INSURANCE_FUND"]]
    assert set(trades["exchange"].to_pylist()) == {"BINANCE_FUTURES"}
    quote = row(result.quotes)
    assert quote["timestamp"] == 1_723_161_255_344_000
    assert quote["message_id"] == "BINANCE_FUTURES:1723161255344:BTCUSDT:50093239212"
    assert quote["vendor_data"]["timestamp_source"] == "exchange"
