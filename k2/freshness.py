"""How old a record is when queries can first see it, and what each symbol does right now."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2 import metrics
from k2.clock import Clock
from k2.codec.avro import Codec
from k2.pipeline.cover import CoverReader
from k2.steps.rows import RowPart, RowReader
from k2.transport.batch import LogBatch

#: Newest samples that percentiles are taken over.
_SAMPLES = 20_000
_RATE_WINDOW_S = 5.0
_SYMBOLS_SHOWN = 20


@dataclass(slots=True)
class _Symbol:
    last_price: str | None = None
    last_us: int = -1
    arrivals: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)


class Freshness:
    """Watches rows on their way into the tails."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._samples: npt.NDArray[np.float64] = np.empty(_SAMPLES)
        self._count = 0
        self._symbols: dict[str, _Symbol] = {}

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
        rows = []
        for name, symbol in self._symbols.items():
            trades = _rate(symbol.arrivals, "trades", now_s)
            quotes = _rate(symbol.arrivals, "quotes", now_s)
            row = {"symbol": name, "last_price": symbol.last_price}
            rows.append((-trades - quotes, {**row, "trades_per_s": trades, "quotes_per_s": quotes}))
        rows.sort(key=lambda entry: (entry[0], str(entry[1]["symbol"])))
        return [row for _, row in rows[:_SYMBOLS_SHOWN]]

    def observe(self, kind: str, rows: pa.RecordBatch) -> None:
        if not rows.num_rows:
            return
        received = rows.column("receive_timestamp").cast(pa.int64()).to_numpy()
        ages_ms = np.maximum(0.0, (self._clock.now_us() - received) / 1_000)
        self._keep(ages_ms[-_SAMPLES:])
        metrics.FRESHNESS.labels(kind).observe(float(ages_ms[-1]) / 1_000)
        self._note(kind, rows)

    def _keep(self, ages_ms: npt.NDArray[np.float64]) -> None:
        places = (self._count + np.arange(len(ages_ms))) % _SAMPLES
        self._samples[places] = ages_ms
        self._count += len(ages_ms)

    def _note(self, kind: str, rows: pa.RecordBatch) -> None:
        encoded = rows.column("symbol").dictionary_encode()
        codes = encoded.indices.to_numpy()
        names = encoded.dictionary.to_pylist()
        counts = np.bincount(codes, minlength=len(names)).tolist()
        now_s = self._clock.monotonic_s()
        for name, count in zip(names, counts, strict=True):
            symbol = self._symbols.setdefault(name, _Symbol())
            symbol.arrivals.setdefault(kind, deque(maxlen=1_000)).append((now_s, count))
        if kind == "trades":
            prices, times = rows.column("price"), rows.column("timestamp")
            # The last row of each symbol in this batch; later assignments win.
            last = dict(zip(codes.tolist(), range(len(codes)), strict=True))
            for code, row in last.items():
                symbol, at_us = self._symbols[names[code]], times[row].value
                if at_us >= symbol.last_us:
                    symbol.last_us = at_us
                    symbol.last_price = f"{prices[row].as_py():f}".rstrip("0").rstrip(".")


def _rate(arrivals: Mapping[str, deque[tuple[float, int]]], kind: str, now_s: float) -> float:
    recent = [count for at_s, count in arrivals.get(kind, ()) if now_s - at_s <= _RATE_WINDOW_S]
    return round(sum(recent) / _RATE_WINDOW_S, 1)


class ObservedRows(RowReader):
    """A row reader whose rows are observed on their way to the tail."""

    def __init__(self, kind: str, codec: Codec, freshness: Freshness) -> None:
        super().__init__(kind, codec)
        self._kind_seen = kind
        self._freshness = freshness

    def read(self, batch: LogBatch, cover: CoverReader) -> list[RowPart]:
        parts = super().read(batch, cover)
        for part in parts:
            self._freshness.observe(self._kind_seen, part.rows)
        return parts
