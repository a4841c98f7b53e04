"""The made-up market has the shapes of a real one: measured, with a seed, over many events."""

from __future__ import annotations

import numpy as np
import pytest

from k2.exchange.arrivals import BRANCHING, DECAY, Arrivals
from k2.exchange.market import E8, Block, Market
from k2.exchange.written import _decimal, _joined

SYMBOLS = ("BTCUSDT", "ETHUSDT", "DOGEUSDT")
RATE = 1_000.0


def dispersion(times: np.ndarray, window: float) -> float:
    """Variance over mean of the counts in windows: 1 when events know nothing of each other."""
    counts = np.bincount((times / window).astype(np.int64))[:-1]
    return float(counts.var() / counts.mean())


def blocks(count: int, events: int = 4_000, seed: int = 3) -> list[Block]:
    market = Market(SYMBOLS, seed, 0, [(1, 7, 0.0)] * len(SYMBOLS))
    return [market.block(events, RATE) for _ in range(count)]


@pytest.fixture(scope="module")
def made() -> list[Block]:
    return blocks(25)


def test_arrivals_excite_each_other_as_a_hawkes_process_does() -> None:
    arrivals = Arrivals(np.random.default_rng(11))
    parts = [arrivals.next(size) for size in (1, 7, 1_000) * 50 + (350_000,)]
    times = np.concatenate(parts)
    assert (np.diff(times) >= 0).all()
    assert len(times) / times[-1] == pytest.approx(1.0, rel=0.02)
    # Over windows far longer than clusters, 1 / (1 - branching ratio)^2; over short ones nearly 1.
    found = 1 - dispersion(times, 50 / (DECAY * (1 - BRANCHING))) ** -0.5
    assert found == pytest.approx(BRANCHING, abs=0.03)
    assert dispersion(times, 0.01) < 1.1
    poisson = np.cumsum(np.random.default_rng(11).exponential(size=len(times)))
    assert dispersion(poisson, 1_000) == pytest.approx(1.0, abs=0.25)


def test_calls_of_any_size_give_one_stream_of_one_density() -> None:
    arrivals = Arrivals(np.random.default_rng(5))
    times = np.concatenate([arrivals.next(32) for _ in range(4_000)])
    assert (np.diff(times) >= 0).all()
    assert len(times) / times[-1] == pytest.approx(1.0, rel=0.05)
    assert 1 - dispersion(times, 1_000) ** -0.5 == pytest.approx(BRANCHING, abs=0.05)


def test_prices_of_symbols_move_together() -> None:
    run = blocks(400, 250)
    returns = []
    for market in range(len(SYMBOLS)):
        mids = [(b.quotes.bid + b.quotes.ask)[b.quotes.market == market][-1] for b in run]
        returns.append(np.diff(np.log(np.array(mids, np.float64))))
    found = np.corrcoef(returns)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        # (0.7 * 2)^2 of the variance is common at least, 1.2^2 a symbol's own at most.
        assert 0.5 < found[one, other] < 0.97
        # What came before says nothing of what comes next.
        assert abs(np.corrcoef(returns[one][:-1], returns[other][1:])[0, 1]) < 0.15
    # In blocks of 250 events at 1,000 frames a second.
    assert all(5e-5 < series.std() < 3e-4 for series in returns)


def test_sizes_spread_over_orders_of_magnitude_and_many_are_round(made: list[Block]) -> None:
    sizes = np.concatenate([b.trades.size[b.trades.market == 0] for b in made])
    # The recorded session of BTCUSDT: 1,272 times the median, a third of them one digit.
    assert 300 < np.quantile(sizes, 0.999) / np.median(sizes) < 5_000
    digits = np.array([len(str(size).rstrip("0")) for size in sizes.tolist()])
    assert 0.2 < (digits == 1).mean() < 0.5
    assert sizes.min() > 0
    assert sizes.max() < 1_000 * E8


def test_orders_have_few_fills_or_very_many_and_keep_to_a_side(made: list[Block]) -> None:
    sides, fills = [], []
    for block in made:
        mine = block.trades.market == 0
        starts = np.flatnonzero(np.diff(block.event_s[block.trades.frame[mine]], prepend=-1.0))
        sides.append(block.trades.buyer_is_maker[mine][starts])
        fills.append(np.diff(np.append(starts, mine.sum())))
    counts, side = np.concatenate(fills), np.concatenate(sides).astype(float)
    # P(k or more) = k^-1.5, cut at 200.
    assert (counts >= 10).mean() == pytest.approx(10**-1.5, rel=0.25)
    assert counts.max() > 100
    assert np.corrcoef(side[:-1], side[1:])[0, 1] == pytest.approx(1 - 2 * 0.32, abs=0.05)
    assert side.mean() == pytest.approx(0.5, abs=0.05)


def test_trades_are_at_or_between_the_quotes_around_them(made: list[Block]) -> None:
    for block in made[:5]:
        trades, quotes = block.trades, block.quotes
        for market in range(len(SYMBOLS)):
            at, price = (column[trades.market == market] for column in (trades.frame, trades.price))
            sells = trades.buyer_is_maker[trades.market == market]
            places, bid, ask = (
                column[quotes.market == market] for column in (quotes.frame, quotes.bid, quotes.ask)
            )
            assert (bid < ask).all()
            before = np.searchsorted(places, at) - 1
            known = (before >= 0) & (before + 1 < len(places))
            is_first = np.diff(block.event_s[at], prepend=-1.0)[known] > 0
            before, price, sells = before[known], price[known], sells[known]
            low, high = (
                np.minimum(bid[before], bid[before + 1]),
                np.maximum(ask[before], ask[before + 1]),
            )
            assert ((low <= price) & (price <= high)).all()
            # An order begins at the best price of its side, and may eat through it.
            best = np.where(sells, bid[before], ask[before])
            assert (price == best)[is_first].all()
            assert np.where(sells, price <= best, price >= best).all()


def test_every_frame_has_its_place_and_ids_go_on_from_block_to_block(made: list[Block]) -> None:
    last_trade, last_update = [0] * len(SYMBOLS), [7] * len(SYMBOLS)
    for block in made:
        places = np.concatenate([block.trades.frame, block.quotes.frame])
        assert np.array_equal(np.sort(places), np.arange(len(block.event_s)))
        assert (np.diff(block.event_s) >= 0).all()
        for market in range(len(SYMBOLS)):
            ids = block.trades.ident[block.trades.market == market]
            assert np.array_equal(ids, last_trade[market] + 1 + np.arange(len(ids)))
            updates = block.quotes.ident[block.quotes.market == market]
            assert (np.diff(updates, prepend=last_update[market]) > 0).all()
            last_trade[market], last_update[market] = int(ids[-1]), int(updates[-1])
    seconds = sum(float(block.event_s[-1]) for block in made)
    frames = sum(len(block.event_s) for block in made)
    assert frames / seconds == pytest.approx(RATE, rel=0.1)


def test_decimals_are_exact() -> None:
    texts = _joined(*_decimal(np.array([6_183_763_000_000, 1, 200_000_000], np.int64)))
    assert texts.to_pylist() == ["61837.63000000", "0.00000001", "2.00000000"]
