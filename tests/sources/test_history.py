"""Histories: what an exchange answers over REST, as the frames its mapper reads."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2.errors import SourceError
from k2.exchange.capture import Frame, stream_of
from k2.exchange.past import Past, _aggregate, _binance, _coinbase, _kraken
from k2.sources.exchanges import EXCHANGES
from k2.sources.history import HISTORIES, rest_base
from k2.sources.page import HistoryFrame, Wanted
from k2.steps.backfill import following, marked_as
from tests import data
from tests.exchange.feeds import trade
from tests.sources.cases import CASES, KRAKEN_REST, kraken_v2_frames

_ANSWERS = {"binance": lambda frame: _binance(frame["data"]), "coinbase": _coinbase}


def answer_of(name: str, frames: list[bytes]) -> bytes:
    """What the exchange's REST interface says of the trades in `frames`."""
    if name == "kraken":
        contents = [json.loads(frame, parse_float=str) for frame in frames]
        rows = [_kraken(trade) for content in contents for trade in content["data"]]
        return json.dumps({"error": [], "result": {"XBTUSDT": rows, "last": "7"}}).encode()
    rows = [_ANSWERS[name](json.loads(frame)) for frame in frames]
    return json.dumps(rows if name == "binance" else rows[::-1]).encode()


@pytest.mark.parametrize("case_name", ["binance", "coinbase", "kraken-v2"])
def test_a_trade_of_the_history_is_the_trade_that_was_missed(case_name: str) -> None:
    case, name = CASES[case_name], CASES[case_name].exchange.name
    history = HISTORIES[name, "trades"]
    (spec,) = case.exchange.sessions(case.settings)
    mapper = EXCHANGES[name].mapper(spec, case.settings)
    live = [f for f in case.frames() if mapper.map([(0, f)], ingestion_us=0).trades is not None]
    symbol = spec.symbols[0]
    mine = [f for f in live if json.loads(f).get("product_id", symbol) == symbol][:20]
    frames = [found.frame for found in history.frames(symbol, answer_of(name, mine))]
    missed = mapper.map([(0, f) for f in mine], ingestion_us=0).trades
    fetched = mapper.map([(0, f) for f in frames], ingestion_us=0, is_backfill=True).trades
    for column in ("message_id", "trade_id", "symbol", "timestamp", "price", "quantity", "side"):
        assert fetched[column].to_pylist() == missed[column].to_pylist()
    assert set(fetched["is_backfill"].to_pylist()) == {True}
    marked = marked_as(fetched, "rest_history")
    assert {dict(row)["source"] for row in marked["vendor_data"].to_pylist()} == {"rest_history"}


@pytest.mark.parametrize(("name", "more"), [("binance", {"M": True}), ("binance_futures", {})])
def test_an_aggregate_of_the_history_is_the_one_that_was_missed(
    name: str, more: dict[str, Any]
) -> None:
    settings = CASES["binance"].settings.model_copy(update={"streams": ("aggTrade",)})
    (spec,) = EXCHANGES[name].sessions(settings)
    mapper = EXCHANGES[name].mapper(spec, settings)
    trade = {"e": "aggTrade", "E": 1_633_982_760_110, "s": "BTCUSDT", "a": 1_001, "p": "57485.10"}
    trade |= {"q": "0.00100000", "f": 7, "l": 9, "T": 1_633_982_760_109, "m": True, **more}
    live = json.dumps({"stream": "btcusdt@aggTrade", "data": trade}, separators=(",", ":"))
    history = HISTORIES[name, "agg_trades"]
    assert history.serves(settings)
    (found,) = history.frames("BTCUSDT", json.dumps([_aggregate(trade)]).encode())
    assert found.ident == 1_001
    missed, fetched = (
        mapper.map([(0, frame)], ingestion_us=0).agg_trades.to_pylist()
        for frame in (live.encode(), found.frame)
    )
    for row in (missed, fetched):
        # Events have no time of their own in the history.
        row[0]["vendor_data"] = [pair for pair in row[0]["vendor_data"] if pair[0] != "event_time"]
    assert fetched == missed


@pytest.mark.parametrize(
    "content",
    [
        {"code": -1121, "msg": "Invalid symbol."},
        [1],
        [{"id": 1}],
        7,
        {"error": ["EQuery:Unknown asset pair"]},
        {"error": [], "result": {"XBTUSD": [["1", "2", 3.5, "b", "l", ""]], "last": "1"}},
        {"error": [], "result": {}},
    ],
)
@pytest.mark.parametrize("name", sorted(HISTORIES), ids="-".join)
def test_what_is_no_list_of_trades_is_refused(name: tuple[str, str], content: Any) -> None:
    with pytest.raises(SourceError, match="history"):
        HISTORIES[name].frames("X", json.dumps(content).encode())
    with pytest.raises(SourceError, match="history"):
        HISTORIES[name].frames("X", b"<html>")


def test_the_recorded_answer_of_kraken_is_read_whole() -> None:
    data.require(KRAKEN_REST)
    frames = HISTORIES["kraken", "trades"].frames(
        "BTC/USDT", gzip.decompress(KRAKEN_REST.read_bytes())
    )
    assert [frame.ident for frame in frames] == list(range(10_218_208, 10_219_208))
    assert [frame.frame for frame in frames] == kraken_v2_frames()[:-1]
    assert [frame.time_ns for frame in frames] == sorted(frame.time_ns for frame in frames)


@given(
    times=st.lists(st.integers(1, 60), min_size=1, max_size=60),
    gap=st.tuples(st.integers(0, 59), st.integers(0, 20)),
    page=st.integers(3, 10),
)
def test_a_history_by_time_is_asked_until_the_gap_is_behind(
    times: list[int], gap: tuple[int, int], page: int
) -> None:
    held = [HistoryFrame(n, b"", at) for n, at in enumerate(sorted(times))]
    first, last = gap[0], min(gap[0] + gap[1], len(held) - 1)
    below = [one.time_ns for one in held if one.ident < first]
    rest: Wanted | None = Wanted("X", first, last, max(below, default=0))
    got: set[int] = set()
    for _ in range(200):
        if rest is None:
            break
        # As `since` is asked: from just before the time on.
        answer = [one for one in held if one.time_ns > rest.since_ns - 1][:page]
        got |= {one.ident for one in answer}
        rest = following(rest, answer, by_time=True)
    assert rest is None
    crowded = max(Counter(times).values()) >= page
    assert crowded or set(range(first, last + 1)) <= got


def test_the_arrays_of_v1_have_no_history() -> None:
    history = HISTORIES["kraken", "trades"]
    assert not history.serves(CASES["kraken-v1"].settings)
    assert history.serves(CASES["kraken-v2"].settings)


@pytest.mark.parametrize(
    ("configured", "url", "base"),
    [
        ("", "wss://stream.binance.com:9443", "https://live"),
        ("", "ws://127.0.0.1:9443/stream", "http://127.0.0.1:9443"),
        ("http://mirror/", "wss://stream.binance.com:9443", "http://mirror"),
    ],
)
def test_a_local_exchange_is_never_answered_by_the_live_one(
    configured: str, url: str, base: str
) -> None:
    assert rest_base(configured, url, "https://live") == base


def test_the_servers_past_keeps_what_was_played_by_id() -> None:
    past = Past()
    frames = [f for f in CASES["coinbase"].frames() if b'"match"' in f]
    past.add([Frame(0, stream_of(frame).decode(), frame) for frame in frames])
    found = past.between("matches:SKL-USD", 1_568_270, 1_568_275, 100)
    assert [trade["trade_id"] for trade in found] == list(range(1_568_270, 1_568_276))
    assert past.between("matches:SKL-USD", 0, 2**63, 3)[-1]["trade_id"] == 1_568_270


def test_the_past_of_many_streams_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k2.exchange.past._KEPT", 100)
    monkeypatch.setattr("k2.exchange.past._LEAST", 10)
    past = Past()
    for symbol, ids in (("AUSDT", range(1_000)), ("BUSDT", range(1_000)), ("CUSDT", range(5))):
        past.add([trade(ident, symbol) for ident in ids])
    past.add([trade(1_000, "AUSDT")])
    held = [len(past.between(f"{s}usdt@trade", 0, 2**63, 2_000)) for s in "abc"]
    assert held == [33, 50, 5]
    assert past.between("ausdt@trade", 0, 2**63, 2_000)[-1]["data"]["t"] == 1_000
