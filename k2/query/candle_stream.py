"""Candles as they change: a picture of the newest ones, then every trade folded in, once.

The picture and the place where news begins come from the same pin, so there is neither a hole nor
a double. A trade for a window before the picture's is answered by a query of that window. Folding
even one trade takes some milliseconds, so none of it is done on the event loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from k2.candles.fold import STATE, in_frame, merge, of_trades
from k2.candles.versions import of_windows, shown
from k2.query.bounds import Bounds
from k2.query.candles import STATES, Intervals
from k2.query.engine import Cursor, QueryEngine
from k2.query.execute import run_checked
from k2.query.stream import Follower
from k2.query.tail import TailView
from k2.query.views import create_view
from k2.timeframes import FRAMES_US

#: Rows of one piece of news; they are folded, so there may be many.
_MOST_TRADES: Final = 500_000
#: Windows of a picture and of a later query at most.
_MOST_WINDOWS: Final = 100_000
#: Windows of before the picture that are asked for one by one.
_MOST_LATE: Final = 20
#: Windows per series that are remembered for late trades.
_HELD: Final = 100


@dataclass(slots=True)
class CandleFollower:
    """One reader. `symbols`: None for all; `exclude`: conditions that make no price."""

    engine: QueryEngine
    symbols: frozenset[str] | None
    timeframe: str
    exclude: frozenset[str]
    _follower: Follower = field(init=False)
    _view: TailView | None = None
    _states: pa.Table = field(default_factory=STATE.empty_table)
    #: First moment of the oldest window whose state is known, µs.
    _from_us: int = 0

    async def begin(self, windows: int) -> pa.Table:
        """Candles of the last `windows` windows, oldest first; whatever comes after is news."""
        step_us = FRAMES_US[self.timeframe]
        newest = await self.engine.latest("trades", self.symbols)
        last_us = max(newest.rows["timestamp"].cast(pa.int64()).to_pylist(), default=0)
        self._from_us = max(0, last_us - last_us % step_us - (max(1, windows) - 1) * step_us)
        self._follower = Follower(self.symbols, _MOST_TRADES)
        states, view = await self._query(self.symbols, self._from_us, None)
        self._follower.begin(view, 0)
        self._view, self._states = view, states
        return await asyncio.to_thread(shown, states if windows else states.slice(0, 0))

    async def news(self) -> pa.Table | None:
        """The candles that changed, as they are now; None: too much came, begin again."""
        view = self.engine.tail("trades")
        if view is self._view:
            return _NOTHING
        self._view = view
        folded = await asyncio.to_thread(self._fold, view)
        if folded is None:
            return None
        changed, late = folded
        if not changed.num_rows + late.num_rows:
            return _NOTHING
        states = [await self._late(window) for window in _rows(late)]
        return await asyncio.to_thread(_candles, [changed, *states])

    def _fold(self, view: TailView) -> tuple[pa.Table, pa.Table] | None:
        """States that changed, and windows of before what is known; None: too much came."""
        news = self._follower.news(view)
        if news.skipped:
            return None
        touched = in_frame(of_trades(news.rows, self.exclude), self.timeframe)
        if not touched.num_rows:
            return touched, touched
        known = pc.field("window_start") >= _moment(self._from_us)
        fresh, late = touched.filter(known), touched.filter(~known)
        if late.num_rows > _MOST_LATE:
            return None
        self._states = merge([self._states, fresh])
        changed = of_windows(self._states, fresh)
        self._forget()
        return changed, late

    async def _late(self, window: pa.Table) -> pa.Table:
        """The state of one window that is not remembered."""
        start_us = window["window_start"].cast(pa.int64())[0].as_py()
        symbol = frozenset((window["symbol"][0].as_py(),))
        found, _ = await self._query(symbol, start_us, start_us + FRAMES_US[self.timeframe])
        return of_windows(found, window)

    def _forget(self) -> None:
        """Windows long gone: a trade for one of them is a question to the lake."""
        if not self._states.num_rows:
            return
        step_us = FRAMES_US[self.timeframe]
        newest_us = pc.max(self._states["window_start"].cast(pa.int64())).as_py()
        oldest_us = newest_us - (_HELD - 1) * step_us
        if oldest_us > self._from_us + _HELD * step_us:
            self._from_us = oldest_us
            keep = pc.field("window_start") >= _moment(oldest_us)
            self._states = self._states.filter(keep)

    async def _query(
        self, symbols: frozenset[str] | None, start_us: int, end_us: int | None
    ) -> tuple[pa.Table, TailView]:
        """States of windows, and the picture of the tail they were computed over."""
        stop_us = _END_US if end_us is None else end_us
        step_us = FRAMES_US[self.timeframe]
        asked = Intervals(symbols, step_us, start_us, stop_us, None, self.exclude or None)
        seen: list[TailView] = []

        def work(cursor: Cursor, pins: object) -> pa.Table:
            pinned = pins["trades"]  # type: ignore[index]
            seen.append(pinned.view)
            create_view(cursor, "trades", "trades", pinned, Bounds(symbols, start_us, stop_us))
            found = run_checked(cursor, STATES, _MOST_WINDOWS, asked.values).rows
            columns = [
                pa.repeat(self.timeframe, found.num_rows) if name == "timeframe" else found[name]
                for name in STATE.names
            ]
            return merge([pa.table(columns, names=STATE.names).cast(STATE)])

        states = (await self.engine.call("ohlcv", ("trades",), work)).rows
        return states, seen[-1]


_NOTHING: Final = shown(STATE.empty_table())
#: After every trade: the first moment of the year 2200.
_END_US: Final = 7_258_118_400_000_000


def _moment(us: int) -> pa.Scalar:
    return pa.scalar(us, pa.int64()).cast(pa.timestamp("us", tz="UTC"))


def _candles(states: list[pa.Table]) -> pa.Table:
    return shown(merge(states))


def _rows(table: pa.Table) -> list[pa.Table]:
    return [table.slice(row, 1) for row in range(table.num_rows)]
