"""Histories: what an exchange answers over REST, as the frames its mapper reads."""

from __future__ import annotations

import json
from typing import Any

import pytest

from k2.errors import SourceError
from k2.exchange.capture import Frame, stream_of
from k2.exchange.past import Past, _binance, _coinbase
from k2.sources.exchanges import EXCHANGES
from k2.sources.history import HISTORIES, rest_base
from k2.steps.backfill import marked_as
from tests.sources.cases import CASES

_ANSWERS = {"binance": _binance, "coinbase": _coinbase}


@pytest.mark.parametrize("name", sorted(HISTORIES))
def test_a_trade_of_the_history_is_the_trade_that_was_missed(name: str) -> None:
    case, history = CASES[name], HISTORIES[name]
    (spec,) = case.exchange.sessions(case.settings)
    mapper = EXCHANGES[name].mapper(spec, case.settings)
    live = [f for f in case.frames() if mapper.map([(0, f)], ingestion_us=0).trades is not None]
    symbol = spec.symbols[0]
    mine = [f for f in live if json.loads(f).get("product_id", symbol) == symbol][:20]
    contents: list[Any] = [json.loads(frame) for frame in mine]
    rows = [_ANSWERS[name](content.get("data", content)) for content in contents]
    answer = rows if name == "binance" else rows[::-1]
    frames = [frame for _, frame in history.frames(symbol, answer)]
    missed = mapper.map([(0, f) for f in mine], ingestion_us=0).trades
    fetched = mapper.map([(0, f) for f in frames], ingestion_us=0, is_backfill=True).trades
    for column in ("message_id", "trade_id", "symbol", "timestamp", "price", "quantity", "side"):
        assert fetched[column].to_pylist() == missed[column].to_pylist()
    assert set(fetched["is_backfill"].to_pylist()) == {True}
    marked = marked_as(fetched, "rest_history")
    assert {dict(row)["source"] for row in marked["vendor_data"].to_pylist()} == {"rest_history"}


@pytest.mark.parametrize(
    "content", [{"code": -1121, "msg": "Invalid symbol."}, [1], [{"id": 1}], 7]
)
@pytest.mark.parametrize("name", sorted(HISTORIES))
def test_what_is_no_list_of_trades_is_refused(name: str, content: Any) -> None:
    with pytest.raises(SourceError, match="history"):
        HISTORIES[name].frames("X", content)


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
    past.add(Frame(0, stream_of(frame).decode(), frame) for frame in frames)
    found = past.between("matches:SKL-USD", 1_568_270, 1_568_275, 100)
    assert [trade["trade_id"] for trade in found] == list(range(1_568_270, 1_568_276))
    assert past.between("matches:SKL-USD", 0, 2**63, 3)[-1]["trade_id"] == 1_568_270
