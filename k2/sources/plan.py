"""Which symbols share a connection.

A symbol's place depends only on its position in the configured list, so appending symbols starts
sessions and extends the last one but moves nobody. Keys are stable: they partition the control
topic over which sessions are spread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import msgspec

from k2.errors import ConfigError

#: Binance's limit of streams on one connection.
MAX_STREAMS = 1_024

CHANNELS = ("trade", "bookTicker")
#: With those that are not asked for by default.
BINANCE_CHANNELS = (*CHANNELS, "aggTrade")


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """One connection.

    `symbols` and `streams` are the exchange's own names: for Binance `btcusdt@trade`, elsewhere the
    channels that every symbol is wanted from.
    """

    exchange: str
    symbols: tuple[str, ...]
    streams: tuple[str, ...]
    key: str

    def encode(self) -> bytes:
        """As JSON, for a control topic."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> SessionSpec:
        """Back from `encode`."""
        return msgspec.json.decode(data, type=cls)


def plan_sessions(
    symbols: Sequence[str],
    channels: Sequence[str] = CHANNELS,
    *,
    per_session: int = 100,
    exchange: str = "BINANCE",
) -> list[SessionSpec]:
    """Sessions of at most `per_session` symbols, in the order given, repeats left out.

    Raises `ConfigError` on an impossible symbol, an unknown channel or too many streams.
    """
    prefix = f"K2_{exchange}_"
    _check(channels, per_session, prefix)
    return [
        SessionSpec(
            exchange,
            chunk,
            tuple(f"{symbol.lower()}@{channel}" for symbol in chunk for channel in channels),
            f"{exchange.lower()}-{number}",
        )
        for number, chunk in enumerate(
            in_chunks((_checked(symbol, prefix) for symbol in symbols), per_session)
        )
    ]


def in_chunks(names: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    """`names` in their order, repeats left out, `size` at a time."""
    rest = iter(dict.fromkeys(names))
    return iter(lambda: tuple(islice(rest, size)), ())


KRAKEN_CHANNELS = ("trade", "ticker")
COINBASE_CHANNELS = ("matches", "ticker", "heartbeat")


def plan_kraken(
    symbols: Sequence[str], channels: Sequence[str], *, per_session: int
) -> list[SessionSpec]:
    """Sessions with Kraken, pairs as `BTC/USD`. Raises `ConfigError`."""
    return _plan_pairs(symbols, channels, "kraken", KRAKEN_CHANNELS, "/", per_session)


def plan_coinbase(
    symbols: Sequence[str], channels: Sequence[str], *, per_session: int
) -> list[SessionSpec]:
    """Sessions with Coinbase, products as `BTC-USD`. Raises `ConfigError`."""
    return _plan_pairs(symbols, channels, "coinbase", COINBASE_CHANNELS, "-", per_session)


def _plan_pairs(
    symbols: Sequence[str],
    channels: Sequence[str],
    exchange: str,
    known: Sequence[str],
    separator: str,
    per_session: int,
) -> list[SessionSpec]:
    """Sessions of an exchange that writes its symbols as base, separator, quote."""
    prefix = f"K2_{exchange.upper()}_"
    for channel in channels:
        if channel not in known:
            raise ConfigError(
                f"{prefix}STREAMS has {channel!r}; allowed: {', '.join(known)}", channel=channel
            )
    names = [_pair(symbol, separator, prefix) for symbol in symbols]
    return [
        SessionSpec(exchange.upper(), chunk, tuple(channels), f"{exchange.lower()}-{number}")
        for number, chunk in enumerate(in_chunks(names, per_session))
    ]


def _pair(symbol: str, separator: str, prefix: str) -> str:
    name = symbol.strip().upper()
    parts = name.split(separator)
    if len(parts) != 2 or not all(part.isascii() and part.isalnum() for part in parts):
        raise ConfigError(
            f"{prefix}SYMBOLS has {symbol!r}; a symbol is base and quote with {separator!r} "
            f"between, e.g. BTC{separator}USD",
            symbol=symbol,
        )
    return name


def _check(channels: Sequence[str], per_session: int, prefix: str) -> None:
    for channel in channels:
        if channel not in BINANCE_CHANNELS:
            raise ConfigError(
                f"{prefix}STREAMS has {channel!r}; allowed: {', '.join(BINANCE_CHANNELS)}",
                channel=channel,
            )
    if not channels or per_session * len(channels) > MAX_STREAMS:
        raise ConfigError(
            f"{per_session} symbols with {len(channels)} channels are "
            f"{per_session * len(channels)} streams on one connection; Binance allows 1 to "
            f"{MAX_STREAMS}: change {prefix}SYMBOLS_PER_SESSION"
        )


def _checked(symbol: str, prefix: str) -> str:
    name = symbol.strip().upper()
    if not (name.isascii() and name.isalnum()):
        raise ConfigError(
            f"{prefix}SYMBOLS has {symbol!r}; a symbol is letters and digits without "
            "separator, e.g. BTCUSDT",
            symbol=symbol,
        )
    return name
