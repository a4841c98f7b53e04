"""A made-up market, block by block: what happens, at which prices and sizes, in which order.

Everything is drawn as columns. An event moves a symbol's price; it shows as a quote or as an order
with its fills. Quotes stand around trades: a best price that changed is quoted before anybody
trades at it, and again when an order has eaten through it.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from k2.exchange.arrivals import Arrivals, Floats
from k2.sources.symbols import split_symbol

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

E8: Final = 100_000_000  # prices and quantities are integers of 1e-8, so the text is exact

#: Dollars at which well-known assets start.
_START_PRICES: Final = {
    "BTC": 61_837.63,
    "ETH": 2_680.14,
    "BNB": 512.40,
    "SOL": 155.31,
    "XRP": 0.6112,
    "DOGE": 0.1042,
    "PEPE": 0.0000081,
}

_ORDER_SHARE: Final = 0.2  # of events; the rest only move the book
#: How far log-prices move in a second, all together and each alone, whatever the rate.
_MARKET_SIGMA, _OWN_SIGMA = 2e-4, 1e-4
_FRAMES_PER_EVENT: Final = 1.5
#: Buyers follow buyers: chance that an order is on the other side than the one before.
_TURN: Final = 0.32
#: Fills of an order: P(k or more) = k^-1.5, at most so many.
_FILLS_TAIL, MOST_FILLS = 1.5, 200
#: Chance that the next fill of an order is a tick worse.
_WORSE: Final = 0.1
#: Sizes, in dollars: the median, how wide they spread, and how many are round numbers.
_SIZE_DOLLARS, _SIZE_SIGMA, _ROUND = 60.0, 2.3, 0.2
_LARGEST_DOLLARS: Final = 20e6
_LARGEST: Final = 5e10  # pieces: in units of 1e-8 they fit an int64


@dataclass(frozen=True, slots=True)
class Trades:
    """Columns of trades in time order; `frame`: their place among all frames of the block."""

    frame: Ints
    market: Ints
    ident: Ints
    price: Ints
    size: Ints
    buyer_is_maker: Bools


@dataclass(frozen=True, slots=True)
class Quotes:
    """Columns of quotes in time order."""

    frame: Ints
    market: Ints
    ident: Ints
    bid: Ints
    bid_size: Ints
    ask: Ints
    ask_size: Ints


@dataclass(frozen=True, slots=True)
class Block:
    """What happened: `event_s` seconds from the block before, per frame; rising."""

    event_s: Floats
    trades: Trades
    quotes: Quotes


@dataclass(frozen=True, slots=True)
class _Orders:
    """Orders of a block and their fills: `order` is the order of each fill, an event."""

    events: Ints
    order: Ints
    price: Ints
    worse: Ints  # ticks, per order


class Market:
    """The symbols, and what moves them together. `first`: (trade id, update id, level) of each."""

    def __init__(
        self, symbols: Sequence[str], seed: int, draws: int, first: Sequence[tuple[int, int, float]]
    ) -> None:
        self._rng = np.random.Generator(np.random.PCG64([seed, draws]))
        self._arrivals = Arrivals(self._rng)
        self._before = 0.0
        self._common = 0.0
        weights = np.cumsum([1 / (rank + 1) for rank in range(len(symbols))])
        self._weights = weights / weights[-1]
        self._share = np.diff(self._weights, prepend=0.0)
        made = [_instrument(symbol, seed) for symbol in symbols]
        self._start, self._tick, self._lot = (
            np.array([one[field] for one in made], kind)
            for field, kind in ((0, np.float64), (1, np.int64), (2, np.int64))
        )
        self._size_mu, self._most, self._beta, self._scale = (
            np.array([one[field] for one in made]) for field in (3, 4, 5, 6)
        )
        # From here on what a block leaves for the next, per symbol.
        self._trade_id = np.array([ids[0] - 1 for ids in first], np.int64)
        self._update_id = np.array([ids[1] for ids in first], np.int64)
        self._own = np.array([ids[2] for ids in first], np.float64)
        self._side = np.zeros(len(symbols), np.int64)
        self._best = np.zeros((2, len(symbols)), np.int64)
        self._quoted = np.zeros((2, len(symbols)), np.int64)

    def levels(self) -> Floats:
        """How far each price has come: the logarithm of its ratio to the first."""
        found: Floats = self._own + self._beta * self._common
        return found

    def block(self, events: int, rate: float) -> Block:
        """The next `events` events, `rate` frames a second on average."""
        times = self._arrivals.next(events)
        gaps, self._before = np.diff(times, prepend=self._before), float(times[-1])
        markets = np.searchsorted(self._weights, self._rng.random(events), side="right")
        best = self._moved(markets, rate / _FRAMES_PER_EVENT)
        is_order = self._rng.random(events) < _ORDER_SHARE
        turns = is_order & (self._rng.random(events) < _TURN)
        side: Ints = _running(turns.astype(np.int64), markets, self._side) % 2
        orders = self._orders(np.flatnonzero(is_order), markets, best, side)
        after = self._eaten(orders, markets, best, side)
        before = _before(after, markets, self._quoted)
        quoted_first = ~is_order | (before != best).any(axis=0)
        quoted_last = is_order & (after != best).any(axis=0)
        fills = np.bincount(orders.order, minlength=events)
        counts = quoted_first.astype(np.int64) + fills + quoted_last
        ends = np.cumsum(counts)
        starts = ends - counts
        first, last = np.flatnonzero(quoted_first), np.flatnonzero(quoted_last)
        within = np.arange(len(orders.order)) - np.repeat(np.cumsum(fills) - fills, fills)
        return Block(
            np.repeat(np.cumsum(gaps) * (ends[-1] / events / rate), counts),
            self._trades((starts + quoted_first)[orders.order] + within, markets, orders, side),
            self._quotes(
                np.concatenate([starts[first], ends[last] - 1]),
                np.concatenate([markets[first], markets[last]]),
                np.concatenate([best[:, first], after[:, last]], axis=1),
            ),
        )

    def _moved(self, markets: Ints, events_per_s: float) -> Ints:
        """Best bid and ask after each event."""
        steps = self._rng.normal(0.0, 1.0, (2, len(markets)))
        common = self._common + np.cumsum(steps[0] * _MARKET_SIGMA / math.sqrt(events_per_s))
        self._common = float(common[-1])
        alone = _OWN_SIGMA * self._scale / np.sqrt(self._share * events_per_s)
        own = _running(steps[1] * alone[markets], markets, self._own)
        fair = self._start[markets] * np.exp(own + self._beta[markets] * common)
        tick = self._tick[markets]
        bid = np.maximum(1, (fair / tick).astype(np.int64)) * tick
        wide = self._rng.random(len(markets)) >= 0.8
        spread = np.where(wide, self._rng.integers(2, 8, len(markets)), 1) * tick
        return _held(bid, bid + spread, markets, self._best)

    def _orders(self, events: Ints, markets: Ints, best: Ints, side: Ints) -> _Orders:
        """Each order's fills, the first at the best price."""
        fills = np.minimum(MOST_FILLS, self._rng.random(len(events)) ** (-1 / _FILLS_TAIL)).astype(
            np.int64
        )
        order = np.repeat(events, fills)
        worse = (self._rng.random(len(order)) < _WORSE).astype(np.int64)
        worse[np.cumsum(fills) - fills] = 0
        ticks = _running(worse, order, np.zeros(len(markets), np.int64))
        at = self._tick[markets[order]]
        sells = side[order] == 1
        price = np.where(sells, best[0, order] - ticks * at, best[1, order] + ticks * at)
        return _Orders(events, order, np.maximum(price, at), ticks[np.cumsum(fills) - 1])

    def _eaten(self, orders: _Orders, markets: Ints, best: Ints, side: Ints) -> Ints:
        """Best bid and ask once each order has taken what it took."""
        after = best.copy()
        step = orders.worse * self._tick[markets[orders.events]]
        sells = side[orders.events] == 1
        after[0, orders.events] -= np.where(sells, step, 0)
        after[1, orders.events] += np.where(sells, 0, step)
        np.maximum(after[0], self._tick[markets], out=after[0])
        return after

    def _trades(self, frame: Ints, markets: Ints, orders: _Orders, side: Ints) -> Trades:
        market = markets[orders.order]
        ident = _running(np.ones(len(market), np.int64), market, self._trade_id)
        return Trades(
            frame, market, ident, orders.price, self._sizes(market), side[orders.order] == 1
        )

    def _quotes(self, frame: Ints, market: Ints, best: Ints) -> Quotes:
        order = np.argsort(frame)
        frame, market, best = frame[order], market[order], best[:, order]
        steps = 1 + self._rng.exponential(1 / 0.3, len(market)).astype(np.int64)
        ident = _running(steps, market, self._update_id)
        sizes = self._sizes(market), self._sizes(market)
        return Quotes(frame, market, ident, best[0], sizes[0], best[1], sizes[1])

    def _sizes(self, market: Ints) -> Ints:
        """Over orders of magnitude, many of them round, in whole lots."""
        drawn = np.exp(self._size_mu[market] + _SIZE_SIGMA * self._rng.normal(size=len(market)))
        units = np.maximum(np.minimum(drawn, self._most[market]) * E8, 1.0)
        digit = 10.0 ** np.floor(np.log10(units))
        is_round = self._rng.random(len(market)) < _ROUND
        units = np.where(is_round, np.floor(units / digit) * digit, units)
        lot = self._lot[market]
        sizes: Ints = np.maximum(1, np.rint(units).astype(np.int64) // lot) * lot
        return sizes


def _instrument(symbol: str, seed: int) -> tuple[float, int, int, float, float, float, float]:
    """Start price, tick, lot (1e-8), logarithm of the size, largest size, beta, scale of moves."""
    # Seeded by name: adding a symbol leaves what the others are as it was.
    rng = random.Random(zlib.crc32(symbol.encode()) ^ seed)  # noqa: S311 - a simulation
    base, quote = split_symbol(symbol)
    dollars = _START_PRICES.get(base) or 10 ** rng.uniform(-2, 3)
    price = dollars / _START_PRICES.get(quote, 1.0)
    tick = int(10 ** max(0, 8 + math.floor(math.log10(price)) - 6))
    lot = E8 // int(10 ** max(0, min(8, math.floor(math.log10(dollars)) + 1)))
    beta, scale = rng.uniform(0.7, 1.3), rng.uniform(0.5, 1.2)
    size_mu = math.log(_SIZE_DOLLARS / dollars)
    most = min(_LARGEST, _LARGEST_DOLLARS / dollars)
    return price * E8, tick, lot, size_mu, most, beta, scale


def _running(values: Any, groups: Ints, start: Any) -> Any:
    """Sum so far within each group, from `start` on, which becomes the sum at the end."""
    order, first = _grouped(groups)
    sums = np.cumsum(values[order])
    before = sums[first] - values[order][first]
    lengths = np.diff(first, append=len(groups))
    names = groups[order][first]
    sums = sums + np.repeat(start[names] - before, lengths)
    start[names] = sums[first + lengths - 1]
    found = np.empty_like(sums)
    found[order] = sums
    return found


def _before(values: Ints, groups: Ints, start: Ints) -> Ints:
    """The columns of each group one place later; `start` has the first, and gets the last."""
    order, first = _grouped(groups)
    moved = np.roll(values[:, order], 1, axis=1)
    names = groups[order][first]
    last = first + np.diff(first, append=len(groups)) - 1
    moved[:, first] = start[:, names]
    start[:, names] = values[:, order][:, last]
    found = np.empty_like(values)
    found[:, order] = moved
    return found


def _held(bid: Ints, ask: Ints, groups: Ints, start: Ints) -> Ints:
    """Bid and ask, both as they were while the bid stays; `start` as with `_before`."""
    order, first = _grouped(groups)
    names = groups[order][first]
    drawn = np.stack([bid, ask])[:, order]
    same = np.roll(drawn[0], 1) == drawn[0]
    same[first] = start[0, names] == drawn[0, first]
    drawn[1, first] = np.where(same[first], start[1, names], drawn[1, first])
    same[first] = False
    # Each place where the bid stays takes the ask of the last place where it did not.
    changed = np.maximum.accumulate(np.where(same, 0, np.arange(len(same))))
    drawn[1] = drawn[1, changed]
    start[:, names] = drawn[:, first + np.diff(first, append=len(groups)) - 1]
    found = np.empty_like(drawn)
    found[:, order] = drawn
    return found


def _grouped(groups: Ints) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Places by group, in order within each; and where in them each group begins."""
    order = np.argsort(groups, kind="stable")
    return order, np.flatnonzero(np.diff(groups[order], prepend=-1))
