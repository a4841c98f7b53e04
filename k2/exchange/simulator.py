"""A seeded market: correlated random walks, quotes around trades, bursts, Binance's frames.

Not a model of any real market; it has the shapes a pipeline must cope with: symbols of very
different activity, arrivals that excite each other, up to hundreds of trades in one millisecond,
sizes over orders of magnitude, buyers that follow buyers, ids that are contiguous (trades) or only
rise (quotes), decimals as text. The same seed gives the same frames.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from k2.clock import SYSTEM_CLOCK, Clock
from k2.errors import ConfigError
from k2.exchange.capture import Frame
from k2.exchange.market import Market
from k2.exchange.written import FrameWriter

#: Events drawn at once: a tenth of a second of them, within these bounds.
_LEAST_EVENTS, _MOST_EVENTS = 32, 4_096
_BLOCK_S = 0.1


@dataclass(frozen=True, slots=True)
class MarketState:
    """Where a symbol's market stands: its next trade id, its last update id, and its price as the
    logarithm of its ratio to the price it began with."""

    trade_id: int
    update_id: int
    level: float = 0.0


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """What to simulate: `rate` frames a second over all symbols, the first the most active.

    `resume`: where an earlier run left the symbols; the others begin at `first_trade_id`.
    """

    symbols: tuple[str, ...]
    rate: float = 1_000.0
    seed: int = 1
    first_trade_id: int = 1
    frames: int | None = None
    resume: Mapping[str, MarketState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.symbols:
            raise ConfigError("the simulator has no symbols; name at least one, e.g. BTCUSDT")
        for symbol in self.symbols:
            if not (symbol.isascii() and symbol.isalnum() and symbol == symbol.upper()):
                raise ConfigError(
                    f"symbol {symbol!r} is not one; a symbol is upper case letters and digits, "
                    "e.g. BTCUSDT",
                    symbol=symbol,
                )
        if not self.rate > 0:
            raise ConfigError(f"rate {self.rate} is not usable; give frames a second, above 0")


class Simulator:
    """A feed for the exchange server; time starts when it is opened, by `clock`."""

    def __init__(self, config: SimulatorConfig, clock: Clock = SYSTEM_CLOCK) -> None:
        self.config = config
        self._clock = clock
        self._market = _opened(config)

    def symbols(self) -> tuple[str, ...]:
        return self.config.symbols

    def segments(self) -> Iterator[Iterator[Frame]]:
        self._market = _opened(self.config)
        return iter((_frames(self.config, self._market, self._clock.now_us() * 1_000),))

    def levels(self) -> dict[str, float]:
        """How far each symbol's price has come, as `MarketState.level`."""
        return dict(zip(self.config.symbols, self._market.levels().tolist(), strict=True))


def frames(config: SimulatorConfig, start_ns: int) -> Iterator[Frame]:
    """Frames from `start_ns` (wall clock) on; without end unless `config.frames` says."""
    return _frames(config, _opened(config), start_ns)


def _opened(config: SimulatorConfig) -> Market:
    first = MarketState(config.first_trade_id, config.first_trade_id * 7)
    states = [config.resume.get(symbol) or first for symbol in config.symbols]
    # A market that goes on must not repeat the moves it made before.
    resumed = "".join(f"/{state.trade_id}" for state in config.resume.values())
    return Market(
        config.symbols,
        config.seed,
        zlib.crc32(resumed.encode()),
        [(state.trade_id, state.update_id, state.level) for state in states],
    )


def _frames(config: SimulatorConfig, market: Market, start_ns: int) -> Iterator[Frame]:
    return islice(_generate(config, market, start_ns), config.frames)


def _generate(config: SimulatorConfig, market: Market, start_ns: int) -> Iterator[Frame]:
    events = max(_LEAST_EVENTS, min(_MOST_EVENTS, int(config.rate * _BLOCK_S)))
    writer, until_s = FrameWriter(config.symbols), 0.0
    while True:
        block = market.block(events, config.rate)
        recv_ns = start_ns + ((until_s + block.event_s) * 1e9).astype(np.int64)
        until_s += float(block.event_s[-1])
        yield from writer.frames(block, recv_ns)
