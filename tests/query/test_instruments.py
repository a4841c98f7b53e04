"""What an instrument was when something happened, against looking at every statement."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from k2.query.instruments import FACTS, STATEMENT, Instruments
from k2.records import LAKE_REFERENCE

_SCHEMA = pa.schema([LAKE_REFERENCE.field(name) for name in STATEMENT])

#: (exchange, symbol, since, read at)
_SAID = st.tuples(
    st.sampled_from("XY"), st.sampled_from("AB"), st.integers(0, 5), st.integers(0, 3)
)
_ASKED = st.tuples(st.sampled_from("XYZ"), st.sampled_from("ABC"), st.integers(-1, 7))


def table(said: list[tuple[str, str, int, int]]) -> pa.Table:
    """Statements whose name is the place in `said`."""
    rows = []
    for number, (exchange, symbol, since, read) in enumerate(said):
        facts: dict[str, Any] = dict.fromkeys(FACTS, "")
        facts |= dict.fromkeys(("tick_size", "lot_size", "min_notional"), 0)
        facts |= {"exchange": exchange, "symbol": symbol, "currency": "USD", "name": str(number)}
        facts |= {"timestamp": since, "receive_timestamp": read, "message_id": f"{number:09}"}
        rows.append(facts)
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def plainly(said: list[tuple[str, str, int, int]], asked: tuple[str, str, int]) -> str | None:
    held = [
        (since, read, number)
        for number, (exchange, symbol, since, read) in enumerate(said)
        if (exchange, symbol) == asked[:2] and since <= asked[2]
    ]
    return str(max(held)[2]) if held else None


def names(known: Instruments, asked: list[tuple[str, str, int]]) -> list[str | None]:
    exchanges, symbols = (
        pa.chunked_array([pa.array([one[place] for one in asked], pa.string())]) for place in (0, 1)
    )
    found = known.at(exchanges, symbols, np.array([one[2] for one in asked], np.int64))
    return found["name"].to_pylist()


@given(st.lists(_SAID, max_size=12), st.lists(_ASKED, max_size=20), st.randoms())
def test_each_row_gets_what_held_at_its_time(
    said: list[tuple[str, str, int, int]], asked: list[tuple[str, str, int]], random: Any
) -> None:
    order = list(range(len(said))) * 2
    random.shuffle(order)
    statements = table(said)
    # Any order, and some of them twice: as table and lake have them together.
    known = Instruments(
        pa.concat_tables([statements, statements]).take(pa.array(order, pa.int64()))
    )
    assert names(known, asked) == [plainly(said, one) for one in asked]
    assert known.statements == len(said)
    assert len(known) == len({one[:2] for one in said})
