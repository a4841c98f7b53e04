"""How old a record is when queries can first see it, and what each symbol does right now.

For the event loop only: what is asked and what is noted never overlap.
"""

from __future__ import annotations

import heapq
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2 import metrics
from k2.clock import Clock
from k2.decimals import plain

#: Newest samples that percentiles are taken over.
_SAMPLES = 20_000
_RATE_WINDOW_S = 5
#: Seconds counted: the running one, and what the window reaches back into.
_SECONDS = _RATE_WINDOW_S + 1
_SYMBOLS_SHOWN = 20
_KINDS = ("trades", "quotes")


class _Rates:
    """Records per symbol and second, as one array: rows are symbols, columns a ring of seconds."""

    def __init__(self) -> None:
        self._counts: npt.NDArray[np.int64] = np.zeros((64, _SECONDS), np.int64)
        self._second = 0

    def add(self, rows: npt.NDArray[np.intp], counts: npt.NDArray[np.intp], now_s: float) -> None:
        """Count records of symbols by their row; each row once."""
        self._move_to(int(now_s))
        missing = int(rows.max()) + 1 - len(self._counts)
        if missing > 0:
            more = np.zeros((max(missing, len(self._counts)), _SECONDS), np.int64)
            self._counts = np.concatenate((self._counts, more))
        self._counts[rows, self._second % _SECONDS] += counts

    def per_s(self, symbols: int, now_s: float) -> npt.NDArray[np.float64]:
        """Over the window: the oldest second counts by what of it is left."""
        self._move_to(int(now_s))
        weights = np.ones(_SECONDS)
        weights[(self._second + 1) % _SECONDS] = 1.0 - now_s % 1.0
        rates = np.zeros(symbols)
        known = self._counts[:symbols] @ weights / _RATE_WINDOW_S
        rates[: len(known)] = known
        return rates

    def _move_to(self, second: int) -> None:
        passed = min(second - self._second, _SECONDS)
        for step in range(passed):
            self._counts[:, (second - step) % _SECONDS] = 0
        self._second = max(self._second, second)


class Freshness:
    """Watches rows on their way into the tails."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._samples: npt.NDArray[np.float64] = np.empty(_SAMPLES)
        self._count = 0
        self._rows: dict[str, int] = {}
        self._rates = {kind: _Rates() for kind in _KINDS}
        #: Exchange time and price of the latest trade, by symbol.
        self._last: dict[str, tuple[int, Decimal]] = {}

    def percentiles_ms(self) -> dict[str, float | int | None]:
        """p50 and p99 of socket-to-visible over the newest samples; negative ages count as 0."""
        samples = self._samples[: min(self._count, _SAMPLES)]
        if not len(samples):
            return {"p50": None, "p99": None, "samples": 0}
        p50, p99 = np.percentile(samples, (50, 99))
        return {"p50": round(float(p50), 1), "p99": round(float(p99), 1), "samples": self._count}

    def symbols(self) -> list[dict[str, Any]]:
        """Last price and rates of the busiest symbols."""
        now_s = self._clock.monotonic_s()
        count = len(self._rows)
        trades, quotes = (self._rates[kind].per_s(count, now_s) for kind in _KINDS)
        busiest = heapq.nsmallest(
            _SYMBOLS_SHOWN, zip((-trades - quotes).tolist(), self._rows, strict=True)
        )
        return [
            {
                "symbol": symbol,
                "last_price": self._last_price(symbol),
                "trades_per_s": round(float(trades[self._rows[symbol]]), 1),
                "quotes_per_s": round(float(quotes[self._rows[symbol]]), 1),
            }
            for _, symbol in busiest
        ]

    def observe(self, kind: str, rows: pa.RecordBatch) -> None:
        """Note rows that queries can see from now on; of kinds shown nowhere only their age."""
        if not rows.num_rows:
            return
        received = rows.column("receive_timestamp").cast(pa.int64()).to_numpy()
        ages_ms = np.maximum(0.0, (self._clock.now_us() - received) / 1_000)
        self._keep(ages_ms[-_SAMPLES:])
        metrics.FRESHNESS.labels(kind).observe(float(ages_ms.max()) / 1_000)
        if kind not in self._rates:
            return
        encoded = rows.column("symbol").dictionary_encode()
        names: list[str] = encoded.dictionary.to_pylist()
        codes = encoded.indices.to_numpy()
        places = np.array([self._rows.setdefault(name, len(self._rows)) for name in names])
        counts = np.bincount(codes, minlength=len(names))
        self._rates[kind].add(places, counts, self._clock.monotonic_s())
        if kind == "trades":
            self._note_prices(rows, names, codes)

    def _keep(self, ages_ms: npt.NDArray[np.float64]) -> None:
        places = (self._count + np.arange(len(ages_ms))) % _SAMPLES
        self._samples[places] = ages_ms
        self._count += len(ages_ms)

    def _note_prices(
        self, rows: pa.RecordBatch, names: list[str], codes: npt.NDArray[np.int32]
    ) -> None:
        newest = np.zeros(len(names), np.intp)
        newest[codes] = np.arange(len(codes))  # of equal codes the last assignment stays
        prices = rows.column("price").take(pa.array(newest)).to_pylist()
        times = rows.column("timestamp").cast(pa.int64()).to_numpy()[newest].tolist()
        for name, at_us, price in zip(names, times, prices, strict=True):
            if name not in self._last or at_us >= self._last[name][0]:
                self._last[name] = (at_us, price)

    def _last_price(self, symbol: str) -> str | None:
        if symbol not in self._last:
            return None
        return plain(self._last[symbol][1])
