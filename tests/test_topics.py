"""Topic names: built, parsed, refused."""

import pytest

from k2.errors import ConfigError
from k2.topics import BINANCE_TRADES, MarketTopic, parse


def test_names_of_a_family():
    assert BINANCE_TRADES.log == "market.crypto.trades.binance"
    assert BINANCE_TRADES.subject == "market.crypto.trades-value"
    for name in BINANCE_TRADES.all_names:
        topic, suffix = parse(name)
        assert topic == BINANCE_TRADES
        assert name == (topic.log if suffix is None else f"{topic.log}.{suffix}")


@pytest.mark.parametrize(
    "name", ["market.crypto.trades", "trades", "market.crypto.trades.x.dql", ""]
)
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ConfigError):
        parse(name)


@pytest.mark.parametrize(
    "parts",
    [("fx", "trades", "binance"), ("crypto", "ticks", "binance"), ("crypto", "trades", "B")],
)
def test_parts_are_checked(parts):
    with pytest.raises(ConfigError):
        MarketTopic(*parts)
