"""A seeded market: correlated random walks, quotes around trades, bursts, Binance's frames.

Not a model of any real market; it has the shapes a pipeline must cope with: symbols of very
different activity, several trades in one millisecond, sizes over orders of magnitude, ids that are
contiguous (trades) or only rise (quotes), decimals as text. The same seed gives the same frames.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from k2.clock import SYSTEM_CLOCK, Clock
from k2.errors import ConfigError
from k2.exchange.capture import Frame
from k2.sources.symbols import split_symbol

_E8 = 100_000_000  # prices and quantities are integers of 1e-8, so the text is exact

#: Dollars at which well-known assets start.
_START_PRICES = {
    "BTC": 61_837.63,
    "ETH": 2_680.14,
    "BNB": 512.40,
    "SOL": 155.31,
    "XRP": 0.6112,
    "DOGE": 0.1042,
    "PEPE": 0.0000081,
}

#: Share of the time in a burst, and how much more happens in one.
_BURST_SHARE, _BURST_FACTOR = 0.05, 5.0
_BURST_S = 0.02

_TRADE_SHARE = 0.25  # of events; the rest only move the book
_MARKET_SIGMA, _OWN_SIGMA = 2e-5, 4e-5  # log-price steps per event: common and own part
_MORE_FILLS = 0.45  # chance that an aggressive order takes one more fill


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


def decimal_text(units: int) -> str:
    """Units of 1e-8 as the exchange writes them, with eight decimals."""
    return f"{units // _E8}.{units % _E8:08d}"


class _Market:
    """One symbol: its book's best prices, and its ids."""

    __slots__ = (
        "ask", "beta", "bid", "book_stream", "lot", "own", "scale", "size_mu", "start",
        "symbol", "tick", "trade_id", "trade_stream", "update_id",
    )  # fmt: skip

    def __init__(self, symbol: str, config: SimulatorConfig) -> None:
        # Seeded by name: adding a symbol leaves the others' prices as they were.
        rng = random.Random(zlib.crc32(symbol.encode()) ^ config.seed)  # noqa: S311
        base, quote = split_symbol(symbol)
        dollars = _START_PRICES.get(base) or 10 ** rng.uniform(-2, 3)
        price = dollars / _START_PRICES.get(quote, 1.0)
        magnitude = math.floor(math.log10(price))
        self.symbol = symbol
        self.trade_stream = f"{symbol.lower()}@trade"
        self.book_stream = f"{symbol.lower()}@bookTicker"
        self.start = price * _E8
        self.tick = int(10 ** max(0, 8 + magnitude - 6))
        self.lot = _E8 // int(10 ** max(0, min(8, math.floor(math.log10(dollars)) + 1)))
        self.size_mu = math.log(500 / dollars)  # typical order: a few hundred dollars
        self.beta = rng.uniform(0.5, 1.5)
        self.scale = rng.uniform(0.5, 2.0)
        first_id = config.first_trade_id
        state = config.resume.get(symbol) or MarketState(first_id, first_id * 7)
        self.own = state.level
        self.trade_id = state.trade_id
        self.update_id = state.update_id
        self.bid = self.ask = 0


class _World:
    """All markets, and what moves them together."""

    def __init__(self, config: SimulatorConfig) -> None:
        # A market that goes on must not repeat the moves it made before.
        resumed = "".join(f"/{state.trade_id}" for state in config.resume.values())
        seed = f"{config.seed}{resumed}" if resumed else config.seed
        self.rng = random.Random(seed)  # noqa: S311 - a simulation, not a secret
        self.markets = [_Market(symbol, config) for symbol in config.symbols]
        self.common = 0.0


class Simulator:
    """A feed for the exchange server; time starts when it is opened, by `clock`."""

    def __init__(self, config: SimulatorConfig, clock: Clock = SYSTEM_CLOCK) -> None:
        self.config = config
        self._clock = clock
        self._world = _World(config)

    def symbols(self) -> tuple[str, ...]:
        return self.config.symbols

    def segments(self) -> Iterator[Iterator[Frame]]:
        self._world = _World(self.config)
        return iter((_frames(self.config, self._world, self._clock.now_us() * 1_000),))

    def levels(self) -> dict[str, float]:
        """How far each symbol's price has come, as `MarketState.level`."""
        world = self._world
        return {m.symbol: m.own + m.beta * world.common for m in world.markets}


def frames(config: SimulatorConfig, start_ns: int) -> Iterator[Frame]:
    """Frames from `start_ns` (wall clock) on; without end unless `config.frames` says."""
    return _frames(config, _World(config), start_ns)


def _frames(config: SimulatorConfig, world: _World, start_ns: int) -> Iterator[Frame]:
    made = _generate(config, world, start_ns)
    if config.frames is None:
        return made
    return (frame for frame, _ in zip(made, range(config.frames), strict=False))


def _generate(config: SimulatorConfig, world: _World, start_ns: int) -> Iterator[Frame]:
    rng = world.rng
    weights = list(accumulate(1 / (rank + 1) for rank in range(len(world.markets))))
    arrivals = _arrivals(config.rate, rng, start_ns)
    while True:
        for market in rng.choices(world.markets, cum_weights=weights, k=256):
            world.common += rng.gauss(0.0, _MARKET_SIGMA)
            _move(market, world.common, rng)
            if rng.random() < _TRADE_SHARE:
                yield from _trades(market, arrivals, rng)
            else:
                yield _book(market, next(arrivals), rng)


def _arrivals(rate: float, rng: random.Random, start_ns: int) -> Iterator[int]:
    """Rising times: a calm Poisson stream with bursts, `rate` a second on average."""
    calm = rate / (1 - _BURST_SHARE + _BURST_SHARE * _BURST_FACTOR)
    now_s, burst = 0.0, False
    while True:
        mean_s = _BURST_S if burst else _BURST_S * (1 - _BURST_SHARE) / _BURST_SHARE
        until_s = now_s + rng.expovariate(1 / mean_s)
        intensity = calm * _BURST_FACTOR if burst else calm
        while (now_s := now_s + rng.expovariate(intensity)) < until_s:
            yield start_ns + int(now_s * 1e9)
        # What was drawn beyond the state's end is drawn anew in the next (no memory).
        now_s, burst = until_s, not burst


def _move(market: _Market, common: float, rng: random.Random) -> None:
    market.own += rng.gauss(0.0, _OWN_SIGMA * market.scale)
    fair = market.start * math.exp(market.own + market.beta * common)
    bid = max(1, int(fair / market.tick)) * market.tick
    spread = market.tick * (1 if rng.random() < 0.8 else rng.randrange(2, 8))
    if bid != market.bid:
        market.bid, market.ask = bid, bid + spread


def _size(market: _Market, rng: random.Random) -> int:
    units = rng.lognormvariate(market.size_mu, 1.6) * _E8
    return max(1, int(units / market.lot)) * market.lot


def _trades(market: _Market, arrivals: Iterator[int], rng: random.Random) -> Iterator[Frame]:
    """The fills of one aggressive order: one time and side, contiguous ids, worsening prices."""
    buyer_is_maker = rng.random() < 0.5
    price, step = (market.bid, -market.tick) if buyer_is_maker else (market.ask, market.tick)
    recv_ns = next(arrivals)
    time_ms = recv_ns // 1_000_000
    maker = "true" if buyer_is_maker else "false"
    while True:
        data = (
            f'{{"stream":"{market.trade_stream}","data":{{"e":"trade","E":{time_ms},'
            f'"s":"{market.symbol}","t":{market.trade_id},"p":"{decimal_text(price)}",'
            f'"q":"{decimal_text(_size(market, rng))}","T":{time_ms},"m":{maker},"M":true}}}}'
        )
        market.trade_id += 1
        yield Frame(recv_ns, market.trade_stream, data.encode())
        if rng.random() >= _MORE_FILLS:
            return
        if rng.random() < 0.3:
            price = max(market.tick, price + step)
        recv_ns = next(arrivals)  # every frame counts towards the rate


def _book(market: _Market, recv_ns: int, rng: random.Random) -> Frame:
    market.update_id += 1 + int(rng.expovariate(0.3))
    data = (
        f'{{"stream":"{market.book_stream}","data":{{"u":{market.update_id},'
        f'"s":"{market.symbol}","b":"{decimal_text(market.bid)}",'
        f'"B":"{decimal_text(_size(market, rng))}","a":"{decimal_text(market.ask)}",'
        f'"A":"{decimal_text(_size(market, rng))}"}}}}'
    )
    return Frame(recv_ns, market.book_stream, data.encode())
