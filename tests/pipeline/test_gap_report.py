"""Gaps from their events."""

from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from k2.pipeline.gap_report import gaps_of

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def event(kind: str, first: int, last: int, second: int = 0, symbol: str = "A", how: str = "jump"):
    return {
        "detected_at": START + dt.timedelta(seconds=second),
        "symbol": symbol,
        "exchange": "X",
        "data_type": "trades",
        "event": kind,
        "expected": first,
        "received": last + 1,
        "how": how,
    }


def test_a_gap_closes_with_the_last_of_its_ids() -> None:
    found = gaps_of(
        [
            event("opened", 10, 19, 1),
            event("opened", 30, 30, 2),
            event("closed", 10, 14, 3, how="late"),
            event("closed", 15, 19, 4, how="backfill"),
        ]
    )
    first, second = [gap.as_json() for gap in found]
    assert (first["state"], first["how"], first["missing"], first["size"]) == (
        "closed",
        "backfill",
        0,
        10,
    )
    assert first["closed_at"] == START + dt.timedelta(seconds=4)
    assert (second["state"], second["missing"], second["closed_at"]) == ("open", 1, None)


def test_what_is_told_again_after_a_restart_is_no_second_gap() -> None:
    found = gaps_of([event("opened", 10, 19), event("opened", 10, 19), event("closed", 10, 19)])
    assert [gap.state for gap in found] == ["closed"]


def test_feeds_do_not_close_each_others_gaps() -> None:
    found = gaps_of([event("opened", 1, 2), event("closed", 1, 2, symbol="B")])
    assert [gap.state for gap in found] == ["open"]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=12))
def test_missing_ids_are_those_opened_and_not_closed(spans: list[tuple[int, int]]) -> None:
    events, missing = [event("opened", 0, 40)], set(range(41))
    for first, length in spans:
        events.append(event("closed", first, first + length))
        missing -= set(range(first, first + length + 1))
    (gap,) = gaps_of(events)
    left = {ident for start, end in gap.missing for ident in range(start, end + 1)}
    assert left == missing
    assert (gap.state == "open") == bool(missing)
