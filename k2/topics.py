"""Topic names: one place that builds and parses them.

`market.{asset_class}.{data_type}.{exchange}` is a log of record. What is derived from it carries
a suffix: `.validated` (what passed), `.dlq` (what did not), `.gaps` (ids that never came),
`.deferred` (what was shed and read again), all with the same partitions. `.raw` holds an exchange's
frames as they came, where that is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from k2.errors import ConfigError

ASSET_CLASSES: Final = ("crypto", "equities", "futures", "options")
DATA_TYPES: Final = ("trades", "quotes", "agg_trades", "reference_data")
SUFFIXES: Final = ("validated", "dlq", "gaps", "deferred", "raw")

_NAME = re.compile(
    r"market\.(?P<asset_class>[a-z]+)\.(?P<data_type>[a-z_]+)\.(?P<exchange>[a-z0-9_]+)"
    r"(?:\.(?P<suffix>[a-z]+))?"
)


@dataclass(frozen=True, slots=True)
class MarketTopic:
    """A log of record, and the names derived from it."""

    asset_class: str
    data_type: str
    exchange: str

    def __post_init__(self) -> None:
        if self.asset_class not in ASSET_CLASSES:
            raise ConfigError(
                f"asset class {self.asset_class!r} is not one of {', '.join(ASSET_CLASSES)}"
            )
        if self.data_type not in DATA_TYPES:
            raise ConfigError(f"data type {self.data_type!r} is not one of {', '.join(DATA_TYPES)}")
        if not re.fullmatch(r"[a-z0-9_]+", self.exchange):
            raise ConfigError(f"exchange {self.exchange!r} must be lower-case letters and digits")

    @property
    def log(self) -> str:
        """The log of record."""
        return f"market.{self.asset_class}.{self.data_type}.{self.exchange}"

    @property
    def validated(self) -> str:
        return f"{self.log}.validated"

    @property
    def dlq(self) -> str:
        return f"{self.log}.dlq"

    @property
    def gaps(self) -> str:
        return f"{self.log}.gaps"

    @property
    def deferred(self) -> str:
        return f"{self.log}.deferred"

    @property
    def raw(self) -> str:
        """Frames as they came; not among `all_names`, since most platforms have none."""
        return f"{self.log}.raw"

    @property
    def subject(self) -> str:
        """Registry subject, shared by all exchanges of the class."""
        return f"market.{self.asset_class}.{self.data_type}-value"

    @property
    def all_names(self) -> tuple[str, ...]:
        """Every topic of this family, the log of record first."""
        return (self.log, self.validated, self.dlq, self.gaps, self.deferred)


def parse(name: str) -> tuple[MarketTopic, str | None]:
    """Split a topic name into its log of record and its suffix (None for the log itself)."""
    match = _NAME.fullmatch(name)
    if match is None or match["suffix"] not in (None, *SUFFIXES):
        raise ConfigError(
            f"topic {name!r} is not market.{{asset_class}}.{{data_type}}.{{exchange}}[.suffix]"
        )
    return MarketTopic(match["asset_class"], match["data_type"], match["exchange"]), match["suffix"]


BINANCE_TRADES: Final = MarketTopic("crypto", "trades", "binance")
BINANCE_QUOTES: Final = MarketTopic("crypto", "quotes", "binance")

#: Logs of record of the default configuration.
MARKET_TOPICS: Final = (BINANCE_TRADES, BINANCE_QUOTES)


def _spot(exchange: str) -> tuple[MarketTopic, ...]:
    return tuple(MarketTopic("crypto", data_type, exchange) for data_type in ("trades", "quotes"))


#: Logs of record of the exchanges with a feed, by the feed's name.
FEED_TOPICS: Final[Mapping[str, tuple[MarketTopic, ...]]] = {
    "binance": MARKET_TOPICS,
    "binance_futures": tuple(
        MarketTopic("futures", data_type, "binance_futures") for data_type in ("trades", "quotes")
    ),
    "kraken": _spot("kraken"),
    "coinbase": _spot("coinbase"),
}


#: Logs of record that a feed has besides, for a channel that is not asked for by default.
CHANNEL_TOPICS: Final[Mapping[tuple[str, str], MarketTopic]] = {
    ("binance", "aggTrade"): MarketTopic("crypto", "agg_trades", "binance"),
    ("binance_futures", "aggTrade"): MarketTopic("futures", "agg_trades", "binance_futures"),
}


def channel_topics(feed: str, streams: Iterable[str]) -> tuple[MarketTopic, ...]:
    """The logs of record that only these channels of a feed bring."""
    named = (CHANNEL_TOPICS.get((feed, stream)) for stream in dict.fromkeys(streams))
    return tuple(topic for topic in named if topic is not None)


def is_tape(topic: MarketTopic) -> bool:
    """True when no feed writes the topic, only loads."""
    return not any(topic.exchange == other.exchange for f in FEED_TOPICS.values() for other in f)


def topics_of(names: Iterable[str]) -> tuple[MarketTopic, ...]:
    """Logs of record of feeds (`kraken`) and tapes (`equities.asx`). Raises `ConfigError`."""
    found: dict[MarketTopic, None] = {}
    for name in names:
        asset_class, _, exchange = name.partition(".")
        if name in FEED_TOPICS:
            found |= dict.fromkeys(FEED_TOPICS[name])
        elif asset_class in ASSET_CLASSES and re.fullmatch(r"[a-z0-9_]+", exchange):
            found |= dict.fromkeys(
                MarketTopic(asset_class, data_type, exchange) for data_type in ("trades", "quotes")
            )
        else:
            raise ConfigError(
                f"exchange {name!r} is unknown; allowed: {', '.join(FEED_TOPICS)}, and for tapes "
                f"{{asset class}}.{{exchange}} with one of {', '.join(ASSET_CLASSES)}, e.g. "
                "equities.asx",
                exchange=name,
            )
    return tuple(found)


#: One message per exchange session; whoever owns the partition runs the session.
SESSIONS: Final = "k2.sessions"
#: Inputs of the degradation controller; one partition, one reader.
DEGRADATION_CONTROL: Final = "k2.degradation.control"
#: Holds nothing: whoever owns its one partition maintains the lake.
MAINTENANCE: Final = "k2.maintenance"
#: Changes of the level, for whoever wants to listen.
DEGRADATION_EVENTS: Final = "k2.degradation.events"
