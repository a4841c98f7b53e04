"""Rules: what they refuse, why, and that they leave the rest alone."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.decimals import to_decimal
from k2.pipeline.rules import Reason, Verdict, check
from k2.settings import Validate
from tests.codec.records import recorded_quotes, recorded_trades
from tests.test_records import wire

LIMITS = Validate()
DAY_US = 86_400_000_000
NOW_US = 1_763_000_000_000_000
#: How far the exchange's clock ran ahead of the receiving one in the recorded capture.
RECORDED_SKEW_US = 1_200_000


def judged(kind: str, **change: Any) -> Verdict:
    """The verdict on three records of which the middle one is changed."""
    records = (recorded_trades if kind == "trades" else recorded_quotes)(3)
    records[1] = records[1] | change
    verdict = check(kind, wire(kind, records), LIMITS)
    assert verdict.ok.tolist() == [True, not verdict.reasons, True]
    return verdict


def reasons(verdict: Verdict) -> list[str]:
    assert all(row == 1 and detail for row, _, detail in verdict.reasons)
    return [reason for _, reason, _ in verdict.reasons]


@pytest.mark.parametrize("kind", ["trades", "quotes"])
def test_recorded_records_pass_with_their_clock_skew(kind: str) -> None:
    records = (recorded_trades if kind == "trades" else recorded_quotes)(2_000)
    verdict = check(kind, wire(kind, records), LIMITS)
    assert verdict.ok.all()
    assert verdict.reasons == []
    if kind == "trades":
        ahead = [row["timestamp"] - row["receive_timestamp"] for row in records]
        assert max(ahead) > RECORDED_SKEW_US


@pytest.mark.parametrize("kind", ["trades", "quotes"])
def test_no_records_no_verdict(kind: str) -> None:
    verdict = check(kind, wire(kind, []), LIMITS)
    assert (len(verdict.ok), verdict.reasons) == (0, [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"symbol": ""}, Reason.SYMBOL_MISSING),
        ({"symbol": "btcusdt"}, Reason.SYMBOL_INVALID),
        ({"symbol": "BTC/USDT"}, Reason.SYMBOL_INVALID),
        ({"symbol": "A" * 33}, Reason.SYMBOL_INVALID),
        ({"symbol": "BTCUSDT\n"}, Reason.SYMBOL_INVALID),
        ({"symbol": "\N{GREEK CAPITAL LETTER BETA}TC"}, Reason.SYMBOL_INVALID),
        ({"trade_id": ""}, Reason.ID_MISSING),
        ({"price": "0"}, Reason.PRICE_NOT_POSITIVE),
        ({"price": "-0.0"}, Reason.PRICE_NOT_POSITIVE),
        ({"price": "-1"}, Reason.PRICE_NOT_POSITIVE),
        ({"quantity": "0.00000000"}, Reason.QUANTITY_NOT_POSITIVE),
        ({"price": "NaN"}, Reason.BAD_DECIMAL),
        ({"price": "Infinity"}, Reason.BAD_DECIMAL),
        ({"price": ""}, Reason.BAD_DECIMAL),
        ({"quantity": "0.-10000"}, Reason.BAD_DECIMAL),
        ({"price": "1,5"}, Reason.BAD_DECIMAL),
        ({"price": "0.00000000001"}, Reason.BAD_DECIMAL),
        ({"price": "1234567890123456789"}, Reason.BAD_DECIMAL),
        ({"price": "1e19"}, Reason.BAD_DECIMAL),
        ({"price": "1e400"}, Reason.BAD_DECIMAL),
        ({"price": "0x10"}, Reason.BAD_DECIMAL),
        ({"price": "9" * 129}, Reason.BAD_DECIMAL),
        ({"price": "5894888114.3880979021848460302e-59"}, Reason.BAD_DECIMAL),
        ({"quantity": "8e-49"}, Reason.BAD_DECIMAL),
    ],
)
def test_a_trade_that_would_falsify_the_data_is_refused(
    change: dict[str, Any], reason: Reason
) -> None:
    verdict = judged("trades", **change)
    assert reasons(verdict) == [reason]
    shown = next(iter(change.values()))
    assert not shown or repr(shown[:64]) in verdict.reasons[0].detail


@pytest.mark.parametrize(
    "change",
    [
        {"price": "0.0000000001"},
        {"price": "999999999999999999.9999999999"},
        {"quantity": "1.00000000000000000000"},
        {"quantity": "1E-8"},
        {"quantity": "98765432101.5"},
        {"symbol": "1000SHIBUSDT"},
        {"symbol": "A" * 32},
        {"trade_id": "d41d8cd98f00b204-17"},
    ],
)
def test_unusual_but_exact_trades_pass(change: dict[str, Any]) -> None:
    assert reasons(judged("trades", **change)) == []


@pytest.mark.parametrize(
    ("ahead_us", "passes"),
    [
        (0, True),
        (RECORDED_SKEW_US, True),
        (300_000_000, True),
        (300_000_001, False),
        (-3_660 * DAY_US, True),
        (-3_660 * DAY_US - 1, False),
        # Coinbase has sent the year 1; seconds or nanoseconds taken for microseconds.
        (-62_135_596_800_000_000 - NOW_US, False),
        (1_723_161_255 - NOW_US, False),
        (2**63 - 1 - NOW_US, False),
    ],
)
def test_the_exchanges_time_is_held_against_ours(ahead_us: int, passes: bool) -> None:
    records = [row | {"timestamp": NOW_US, "receive_timestamp": NOW_US}
               for row in recorded_trades(3)]  # fmt: skip
    records[1]["timestamp"] = NOW_US + ahead_us
    verdict = check("trades", wire("trades", records), LIMITS)
    assert verdict.ok.tolist() == [True, passes, True]
    assert reasons(verdict) == ([] if passes else [Reason.TIMESTAMP_OUT_OF_RANGE])


@given(exchange=st.integers(-(2**63), 2**63 - 1), receive=st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=200, deadline=None)
def test_no_difference_of_times_overflows(exchange: int, receive: int) -> None:
    record = recorded_trades(1)[0] | {"timestamp": exchange, "receive_timestamp": receive}
    verdict = check("trades", wire("trades", [record]), LIMITS)
    ahead = exchange - receive
    limit = 300_000_000
    age = 3_660 * DAY_US
    near = min(abs(ahead - limit), abs(ahead + age)) < 4_096
    assert near or verdict.ok.tolist() == [-age <= ahead <= limit]


@pytest.mark.parametrize("name", ["bid_price", "bid_quantity", "ask_price", "ask_quantity"])
def test_a_quote_may_lack_a_side_but_not_be_negative(name: str) -> None:
    assert reasons(judged("quotes", **{name: "0.0"})) == []
    assert reasons(judged("quotes", **{name: "-0.1"})) == [Reason.BID_ASK_NEGATIVE]
    assert reasons(judged("quotes", **{name: "x"})) == [Reason.BAD_DECIMAL]


def test_crossed_and_locked_quotes_pass_and_are_counted() -> None:
    assert judged("quotes").flagged == {"CROSSED": 0, "LOCKED": 0, "ONE_SIDED": 0}
    crossed = judged("quotes", bid_price="2", ask_price="1")
    assert (reasons(crossed), crossed.flagged["CROSSED"]) == ([], 1)
    assert judged("quotes", bid_price="1", ask_price="1.0").flagged["LOCKED"] == 1
    assert judged("quotes", ask_price="0").flagged["ONE_SIDED"] == 1
    refused = judged("quotes", bid_price="2", ask_price="1", bid_quantity="-1")
    assert refused.flagged["CROSSED"] == 0


def test_a_record_is_refused_once_for_the_first_rule_it_breaks() -> None:
    verdict = judged("trades", symbol="?", trade_id="", price="-1", quantity="oops")
    assert reasons(verdict) == [Reason.SYMBOL_INVALID]


def test_reasons_come_in_the_order_of_the_rows() -> None:
    records = recorded_trades(6)
    records[5] = records[5] | {"symbol": "?"}
    records[0] = records[0] | {"price": "0"}
    records[3] = records[3] | {"quantity": "?"}
    verdict = check("trades", wire("trades", records), LIMITS)
    assert [(row, reason) for row, reason, _ in verdict.reasons] == [
        (0, Reason.PRICE_NOT_POSITIVE),
        (3, Reason.BAD_DECIMAL),
        (5, Reason.SYMBOL_INVALID),
    ]
    assert np.flatnonzero(~verdict.ok).tolist() == [0, 3, 5]


DECIMAL_LIKE = st.one_of(
    st.decimals(allow_nan=True, allow_infinity=True).map(str),
    st.decimals(min_value=0, max_value=10**18, places=10).map(lambda value: f"{value:f}"),
    st.from_regex(r"-?[0-9]{0,20}\.?[0-9]{0,12}([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.text(max_size=6),
)


@given(texts=st.lists(DECIMAL_LIKE, min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_what_passes_is_stored_and_what_is_stored_is_positive(texts: list[str]) -> None:
    records = [recorded_trades(1)[0] | {"price": text} for text in texts]
    batch = wire("trades", records)
    verdict = check("trades", batch, LIMITS)
    passed = batch.filter(pa.array(verdict.ok))
    stored = to_decimal(passed.column("price"), "price").to_pylist()
    kept = [text for text, ok in zip(texts, verdict.ok, strict=True) if ok]
    assert stored == [Decimal(text) for text in kept]
    assert all(value > 0 for value in stored)


def test_every_reason_is_explained() -> None:
    assert [reason.name for reason in Reason] == [reason.value for reason in Reason]
