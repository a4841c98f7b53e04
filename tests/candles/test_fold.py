"""The fold: equal to a plain recomputation, whatever the order and the pieces."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise
from math import floor

import pyarrow as pa
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from k2.candles.fold import STATE, merge, of_trades, roll_up, vwaps
from tests.candles import plain
from tests.query.rows import T0_US, rows

#: Up to two days around a midnight, often the same moment twice.
TIMES = st.integers(-90_000, 90_000).map(lambda s: T0_US + s * 1_000_000) | st.sampled_from(
    [T0_US, T0_US + 1, T0_US + 59_999_999, T0_US + 60_000_000]
)
PRICES = st.integers(1, 10**15).map(lambda n: Decimal(n).scaleb(-10))
SIZES = st.integers(1, 10**17).map(lambda n: Decimal(n).scaleb(-10))
TRADE = st.tuples(
    TIMES, st.sampled_from(["BTCUSDT", "PEPEUSDT"]), PRICES, SIZES, st.sampled_from([[], ["XT"]])
)


def table(trades: list[tuple[int, str, Decimal, Decimal, list[str]]]) -> pa.Table:
    times, symbols, prices, sizes, conditions = zip(*trades, strict=True)
    made = rows(range(len(trades)), times, symbols=symbols, prices=prices, quantities=sizes)
    at = made.column_names.index("trade_conditions")
    return made.set_column(at, made.field(at), pa.array(conditions, pa.list_(pa.string())))


def shown(states: pa.Table) -> dict:
    return plain.table(states.append_column("vwap", vwaps(states)))


@settings(max_examples=60, deadline=None)
@given(
    trades=st.lists(TRADE, min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_pieces_in_any_order_give_the_plain_answer(trades, cuts, order) -> None:
    whole = table(trades)
    stops = sorted({0, *(min(cut, len(trades)) for cut in cuts), len(trades)})
    pieces = [roll_up(of_trades(whole.slice(a, b - a))) for a, b in pairwise(stops)]
    order.shuffle(pieces)
    merged = pieces[0]
    for piece in pieces[1:]:
        merged = merge([merged, piece])
    assert shown(merged) == plain.candles(whole)
    assert merged.equals(roll_up(of_trades(whole))), "the states depend on how they were made"


@settings(max_examples=30, deadline=None)
@given(trades=st.lists(TRADE, min_size=1, max_size=30))
def test_excluded_conditions_make_no_price(trades) -> None:
    whole = table(trades)
    found = roll_up(of_trades(whole, frozenset({"XT"})))
    assert shown(found) == plain.candles(whole, ["XT"])
    assert shown(roll_up(of_trades(whole, frozenset({"OTHER"})))) == plain.candles(whole)


def test_a_late_trade_becomes_open_and_low() -> None:
    seconds = 1_000_000
    made = rows([0, 1, 2], [T0_US + 5 * seconds, T0_US + 6 * seconds, T0_US],
                prices=[Decimal(5), Decimal(6), Decimal(3)])  # fmt: skip
    before, after = of_trades(made.slice(0, 2)), merge([of_trades(made)])
    assert (before["open"][0].as_py(), before["low"][0].as_py()) == (5, 5)
    assert [after[n][0].as_py() for n in ("open", "high", "low", "close")] == [3, 6, 3, 6]


def test_windows_end_where_the_next_begins() -> None:
    minute = T0_US - T0_US % 60_000_000
    made = rows([0, 1], [minute + 59_999_999, minute + 60_000_000])
    assert of_trades(made)["window_start"].cast(pa.int64()).to_pylist() == [
        minute,
        minute + 60_000_000,
    ]


def test_a_notional_no_decimal_can_hold_is_null_and_stays_null() -> None:
    absurd = rows([0], [T0_US], prices=[Decimal(10**17)], quantities=[Decimal(10**17)])
    usual = rows([1], [T0_US + 1], prices=[Decimal(2)], quantities=[Decimal(3)])
    found = merge([of_trades(absurd), of_trades(usual)])
    assert found["notional"].to_pylist() == [None]
    assert found["volume"].to_pylist() == [Decimal(10**17 + 3)]
    assert vwaps(found).to_pylist() == [None]


@settings(max_examples=200, deadline=None)
@given(
    notional=st.none() | st.integers(-(10**38) + 1, 10**38 - 1),
    volume=st.integers(0, 10**30) | st.integers(0, 10**37),
)
@example(notional=5 * 10**12, volume=10**11)  # half a unit of the last digit
@example(notional=-5 * 10**12, volume=10**11)
@example(notional=1, volume=10**31)
def test_a_vwap_is_rounded_half_up_whatever_the_sizes(notional: int | None, volume: int) -> None:
    """`notional` in units of 1e-20, `volume` of 1e-10."""
    exact = None
    if notional is not None and volume:
        exact = Decimal(floor(Fraction(notional, 100 * volume) + Fraction(1, 2))).scaleb(-8)
    assume(exact is None or abs(exact) < 10**18)
    states = pa.table({
        "notional": pa.array([None if notional is None else digits(notional, 20)],
                             pa.decimal128(38, 20)),
        "volume": pa.array([digits(volume, 10)], pa.decimal128(38, 10)),
    })  # fmt: skip
    assert vwaps(states).to_pylist() == [exact]


def digits(whole: int, decimals: int) -> Decimal:
    with localcontext(prec=60):
        return Decimal(whole).scaleb(-decimals)


@pytest.mark.parametrize("made", [rows([], []), STATE.empty_table()])
def test_nothing_gives_nothing(made: pa.Table) -> None:
    found = of_trades(made) if "price" in made.column_names else merge([made])
    assert found.num_rows == 0
    assert roll_up(found).num_rows == 0
