"""Which symbols share a connection.

A symbol's place depends only on its position in the configured list, so appending symbols starts
sessions and extends the last one but moves nobody. Keys are stable: they partition the control
topic over which sessions are spread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import msgspec

from k2.errors import ConfigError

#: Binance's limit of streams on one connection.
MAX_STREAMS = 1_024

CHANNELS = ("trade", "bookTicker")


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """One connection: `streams` are `<symbol in lower case>@<channel>`."""

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
    _check(channels, per_session)
    names = iter(dict.fromkeys(_checked(symbol) for symbol in symbols))
    chunks: Iterable[tuple[str, ...]] = iter(lambda: tuple(islice(names, per_session)), ())
    return [
        SessionSpec(
            exchange,
            chunk,
            tuple(f"{symbol.lower()}@{channel}" for symbol in chunk for channel in channels),
            f"{exchange.lower()}-{number}",
        )
        for number, chunk in enumerate(chunks)
    ]


def _check(channels: Sequence[str], per_session: int) -> None:
    for channel in channels:
        if channel not in CHANNELS:
            raise ConfigError(
                f"K2_BINANCE_STREAMS has {channel!r}; allowed: {', '.join(CHANNELS)}",
                channel=channel,
            )
    if not channels or per_session * len(channels) > MAX_STREAMS:
        raise ConfigError(
            f"{per_session} symbols with {len(channels)} channels are "
            f"{per_session * len(channels)} streams on one connection; Binance allows 1 to "
            f"{MAX_STREAMS}: change K2_BINANCE_SYMBOLS_PER_SESSION"
        )


def _checked(symbol: str) -> str:
    name = symbol.strip().upper()
    if not (name.isascii() and name.isalnum()):
        raise ConfigError(
            f"K2_BINANCE_SYMBOLS has {symbol!r}; a symbol is letters and digits without "
            "separator, e.g. BTCUSDT",
            symbol=symbol,
        )
    return name
