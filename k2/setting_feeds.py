"""Settings of the exchanges' feeds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from k2 import setting_types as types
from k2.setting_group import Group, StringList


class Feed(Group):
    """What the feeds of all exchanges have in common; each has its own defaults."""

    enabled: bool = Field(True, description="Run the feed on workers with the role `source`.")
    url: types.WebSocketUrl = Field("", description="WebSocket base address.")
    failover_urls: Annotated[StringList, types.each(types.websocket)] = Field(
        (),
        description="Other addresses of the same market, tried in turn when the main one fails.",
    )
    symbols: Annotated[StringList, types.NOT_EMPTY] = Field((), description="Comma separated.")
    streams: Annotated[StringList, types.NOT_EMPTY] = Field((), description="Channels per symbol.")
    symbols_per_session: int = Field(100, ge=1, le=500, description="Symbols on one connection.")
    reconnect_initial_s: float = Field(1.0, gt=0, description="First delay; doubles with jitter.")
    reconnect_max_s: float = Field(60.0, gt=0, description="Cap of the delay.")
    stale_after_s: float = Field(
        30.0, ge=0, description="Seconds without any frame or pong until a reconnect; 0: never."
    )
    ping_interval_s: float = Field(20.0, gt=0, description="Seconds between our pings.")
    ping_timeout_s: float = Field(10.0, gt=0, description="Seconds to wait for a pong.")
    max_lifetime_h: float = Field(
        4.0, gt=0, le=24, description="Hours until a connection is rotated (Binance cuts at 24)."
    )
    subscribe_per_s: float = Field(
        4.0, gt=0, le=5, description="Control messages per second (Binance allows 5)."
    )
    queue_frames: int = Field(
        50_000, ge=100, description="Frames held between socket and log before the socket waits."
    )
    max_frame_bytes: int = Field(
        1_048_576,
        ge=1_024,
        description="A larger frame is refused and counted; half of `K2_KAFKA_MAX_BATCH_BYTES` "
        "bounds it too.",
    )
    raw: bool = Field(
        False,
        description="Also keep every frame as it came, in the topic `{log of trades}.raw`.",
    )
    backfill: bool = Field(
        True, description="Fetch what gaps miss from the exchange's REST history."
    )
    backfill_per_s: float = Field(
        2.0, gt=0, le=20, description="Requests per second to the REST history."
    )
    rest_url: types.HttpUrl = Field(
        "",
        description="REST base address; empty: the exchange's own, or beside a `ws://` address.",
    )
    ssl_verify: bool = Field(True, description="Check the exchange's certificate.")
    custom_ca_bundle: types.OptionalFile = Field(
        "", description="CA file to trust instead of the system's."
    )


class Binance(Feed):
    """The Binance spot feed."""

    model_config = SettingsConfigDict(
        env_prefix="K2_BINANCE_", env_file=".env", extra="ignore", frozen=True
    )

    url: types.WebSocketUrl = Field(
        "wss://stream.binance.com:9443", description="WebSocket base address."
    )
    failover_urls: Annotated[StringList, types.each(types.websocket)] = Field(
        (),
        description="Other addresses of the same market, tried in turn when the main one fails. "
        "Binance.US is another market with ids of its own.",
    )
    symbols: Annotated[StringList, types.NOT_EMPTY] = Field(
        ("BTCUSDT", "ETHUSDT"), description="Upper case, no separator, comma separated."
    )
    streams: Annotated[StringList, types.NOT_EMPTY] = Field(
        ("trade", "bookTicker"),
        description="Channels per symbol; `aggTrade` has its own topic and table.",
    )
    symbols_per_session: int = Field(
        100, ge=1, le=500, description="Symbols on one connection (Binance: 1,024 streams)."
    )
    backfill_per_s: float = Field(
        1.0,
        gt=0,
        le=20,
        description="Requests per second to the REST history (Binance counts 25 of 6,000 a minute "
        "for one; futures 20 of 2,400).",
    )


class BinanceFutures(Binance):
    """Binance's USD-M futures: perpetuals, under the same symbols as the spot market."""

    model_config = SettingsConfigDict(
        env_prefix="K2_BINANCE_FUTURES_", env_file=".env", extra="ignore", frozen=True
    )

    url: types.WebSocketUrl = Field(
        "wss://fstream.binance.com", description="WebSocket base address."
    )


class Kraken(Feed):
    """The Kraken spot feed."""

    model_config = SettingsConfigDict(
        env_prefix="K2_KRAKEN_", env_file=".env", extra="ignore", frozen=True
    )

    url: types.WebSocketUrl = Field("wss://ws.kraken.com", description="WebSocket base address.")
    protocol: Literal["v2", "v1"] = Field(
        "v2", description="`v1`: the arrays Kraken sent before; trades without ids, no quotes."
    )
    symbols: Annotated[StringList, types.NOT_EMPTY] = Field(
        ("BTC/USD", "ETH/USD"), description="As Kraken writes pairs, comma separated."
    )
    streams: Annotated[StringList, types.NOT_EMPTY] = Field(
        ("trade", "ticker"), description="Channels per symbol."
    )
    backfill_per_s: float = Field(
        0.5,
        gt=0,
        le=20,
        description="Requests per second to the REST history (Kraken takes about one).",
    )


class Coinbase(Feed):
    """The Coinbase Exchange feed."""

    model_config = SettingsConfigDict(
        env_prefix="K2_COINBASE_", env_file=".env", extra="ignore", frozen=True
    )

    url: types.WebSocketUrl = Field(
        "wss://ws-feed.exchange.coinbase.com", description="WebSocket base address."
    )
    symbols: Annotated[StringList, types.NOT_EMPTY] = Field(
        ("BTC-USD", "ETH-USD"), description="Product ids, comma separated."
    )
    streams: Annotated[StringList, types.NOT_EMPTY] = Field(
        ("matches", "ticker", "heartbeat"), description="Channels per symbol."
    )
