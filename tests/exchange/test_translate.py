"""The simulated market in Coinbase's words is the same market."""

from __future__ import annotations

from k2.exchange.capture import stream_of
from k2.exchange.simulator import SimulatorConfig, frames
from k2.exchange.translate import AsCoinbase
from k2.setting_feeds import Binance, Coinbase
from k2.sources.exchanges import EXCHANGES
from tests.exchange.feeds import START_NS, ListFeed

SYMBOLS = ("BTCUSDT", "ETHUSDT")


def test_both_protocols_tell_the_same_trades_and_quotes() -> None:
    spoken = list(frames(SimulatorConfig(SYMBOLS, frames=2_000), START_NS))
    (translated,) = (list(segment) for segment in AsCoinbase(ListFeed(spoken)).segments())
    assert all(stream_of(frame.data).decode() == frame.stream for frame in translated)
    settings = {
        "binance": Binance(_env_file=None, symbols=SYMBOLS),  # type: ignore[call-arg]
        "coinbase": Coinbase(_env_file=None, symbols=("BTC-USDT", "ETH-USDT")),  # type: ignore[call-arg]
    }
    found = {}
    for name, said in (("binance", spoken), ("coinbase", translated)):
        (spec,) = EXCHANGES[name].sessions(settings[name])
        mapper = EXCHANGES[name].mapper(spec, settings[name])
        received = [(frame.recv_ns // 1_000, frame.data) for frame in said]
        found[name] = mapper.map(received, ingestion_us=0)
        assert found[name].refused == []
    for kind, columns in (
        ("trades", ("trade_id", "symbol", "timestamp", "price", "quantity", "side", "currency")),
        (
            "quotes",
            ("quote_id", "symbol", "bid_price", "bid_quantity", "ask_price", "ask_quantity"),
        ),
    ):
        one, other = getattr(found["binance"], kind), getattr(found["coinbase"], kind)
        for column in columns:
            assert one[column].to_pylist() == other[column].to_pylist(), column
