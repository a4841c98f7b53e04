"""Data quality of each feed: four shares between 0 and 1, and a score from 0 to 100.

- completeness: ids that came, of those that should have;
- validity: records that broke no rule;
- freshness: records queries could see within `FRESH_S` of the socket;
- normality: trades without an anomaly (see `Anomalies`).

Shares are over the last quarter of an hour and over what this worker saw: the first two are known
where it validates, the last two where it answers queries. Anomalies are flagged and counted; a
trade that happened is data, however odd, and nothing is dropped for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2 import metrics
from k2.clock import Clock

FRESH_S: Final = 5.0
#: Weight of each share in the score; what is not known counts for nothing.
WEIGHTS: Final = {"validity": 40, "completeness": 30, "normality": 20, "freshness": 10}
_MINUTES: Final = 15
#: What comes from feeds; reference data does not.
_KINDS: Final = ("trades", "quotes", "agg_trades")
#: Ids that a few absurd gaps open together may be beyond any count.
_LARGEST: Final = 2**63 - 1

_Floats = npt.NDArray[np.float64]


class Flagged(NamedTuple):
    """An anomaly: `kind` is `z_score` or `jump`; `by`: standard deviations, or the share."""

    kind: str
    symbol: str
    trade_id: str
    price: float
    by: float


class Anomalies:
    """Prices unlike those before them, symbol by symbol, over about the last 1,000 trades.

    `z_score`: more than 3 standard deviations, and half a percent, from the mean, once 100 trades
    are known; without the second part a quiet price would flag its own ticks. `jump`: more than
    10 % from the trade before.
    """

    _MEMORY: Final = 1_000
    _KNOWN: Final = 100
    _Z: Final = 3.0
    _LEAST: Final = 0.005
    _JUMP: Final = 0.10

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], int] = {}
        # Columns: trades seen, mean, variance, last price.
        self._state: _Floats = np.zeros((64, 4))

    def find(
        self, exchange: str, symbols: pa.Array, prices: _Floats
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], _Floats, _Floats]:
        """Per trade: is it far from the mean, did it jump, by how much; then it is remembered."""
        encoded = symbols.dictionary_encode()
        names: list[str] = encoded.dictionary.to_pylist()
        codes = encoded.indices.to_numpy()
        places = np.array([self._row(exchange, name) for name in names])
        seen, mean, variance, last = self._state[places[codes]].T
        spread = np.sqrt(np.maximum(variance, 1e-300))
        z = np.where(seen >= self._KNOWN, np.abs(prices - mean) / spread, 0.0)
        before = _before(codes, prices, np.where(seen > 0, last, np.nan))
        jump = np.nan_to_num(np.abs(prices / before - 1.0))
        far = (z > self._Z) & (np.abs(prices - mean) > self._LEAST * np.abs(mean))
        self._learn(places, codes, prices)
        return far, jump > self._JUMP, z, jump

    def _row(self, exchange: str, symbol: str) -> int:
        row = self._rows.setdefault((exchange, symbol), len(self._rows))
        if row >= len(self._state):
            self._state = np.concatenate((self._state, np.zeros_like(self._state)))
        return row

    def _learn(
        self, places: npt.NDArray[np.int64], codes: npt.NDArray[np.int32], prices: _Floats
    ) -> None:
        """Mean and variance of the batch weighed with those before (Chan), forgetting slowly."""
        count = np.bincount(codes).astype(np.float64)
        mean = np.bincount(codes, prices) / count
        square = np.bincount(codes, (prices - mean[codes]) ** 2)
        old = self._state[places]
        held = np.minimum(old[:, 0], self._MEMORY)
        total = held + count
        apart = mean - old[:, 1]
        new_mean = old[:, 1] + apart * count / total
        new_variance = (old[:, 2] * held + square + apart**2 * held * count / total) / total
        newest = np.zeros(len(places), np.int64)
        newest[codes] = np.arange(len(codes))  # of equal codes the last assignment stays
        self._state[places] = np.stack(
            (old[:, 0] + count, new_mean, new_variance, prices[newest]), axis=1
        )


def _before(codes: npt.NDArray[np.int32], prices: _Floats, known: _Floats) -> _Floats:
    """The price before each trade: of its symbol in this batch, else the one known before it."""
    order = np.argsort(codes, kind="stable")
    ordered = prices[order]
    before = np.empty_like(ordered)
    before[1:] = ordered[:-1]
    first = np.ones(len(codes), np.bool_)
    first[1:] = np.diff(codes[order]) != 0
    before[first] = known[order][first]
    found = np.empty_like(before)
    found[order] = before
    return found


@dataclass(slots=True)
class _Minute:
    """What was seen in one minute."""

    minute: int
    judged: int = 0
    missing: int = 0
    refused: int = 0
    shown: int = 0
    fresh: int = 0
    traded: int = 0
    odd: int = 0


@dataclass(slots=True)
class _Feed:
    minutes: deque[_Minute] = field(default_factory=lambda: deque(maxlen=_MINUTES))
    recent: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=10))

    def now(self, minute: int) -> _Minute:
        if not self.minutes or self.minutes[-1].minute != minute:
            self.minutes.append(_Minute(minute))
        return self.minutes[-1]

    def shares(self, minute: int) -> dict[str, float | None]:
        recent = [one for one in self.minutes if minute - one.minute < _MINUTES]

        def total(name: str) -> int:
            return sum(getattr(one, name) for one in recent)

        judged, missing = total("judged"), min(total("missing"), _LARGEST)
        return {
            "completeness": _share(judged, judged + missing),
            "validity": _share(judged - total("refused"), judged),
            "freshness": _share(total("fresh"), total("shown")),
            "normality": _share(total("traded") - total("odd"), total("traded")),
        }


class Quality:
    """Watches what is validated and what becomes visible; for the event loop only."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._feeds: dict[tuple[str, str], _Feed] = {}
        self._anomalies = Anomalies()

    def judged(
        self, exchange: str, data_type: str, records: int, missing: int, refused: int
    ) -> None:
        """Validation has judged a batch; `missing`: ids of the gaps it opened."""
        minute = self._feed(exchange, data_type).now(self._minute())
        minute.judged += records
        minute.missing += missing
        minute.refused += refused

    def shown(self, data_type: str, rows: pa.RecordBatch) -> None:
        """Rows (of one exchange) that queries can see from now on."""
        if not rows.num_rows or data_type not in _KINDS:
            return
        exchange = rows.column("exchange")[0].as_py()
        feed = self._feed(exchange, data_type)
        minute = feed.now(self._minute())
        received = rows.column("receive_timestamp").cast(pa.int64()).to_numpy()
        minute.shown += rows.num_rows
        minute.fresh += int((self._clock.now_us() - received <= FRESH_S * 1e6).sum())
        if data_type == "trades":
            minute.traded += rows.num_rows
            minute.odd += self._look(exchange, rows, feed)

    def report(self) -> list[dict[str, Any]]:
        """Shares and score of every feed, for `/v1/feeds`, the page, and the gauges."""
        minute = self._minute()
        found = []
        for (exchange, data_type), feed in sorted(self._feeds.items()):
            shares = feed.shares(minute)
            found.append(
                {
                    "exchange": exchange,
                    "data_type": data_type,
                    "score": score(shares),
                    **{name: _rounded(share) for name, share in shares.items()},
                    "anomalies": list(feed.recent),
                }
            )
        return found

    def observe(self) -> None:
        """Set the gauges."""
        for one in self.report():
            labels = (one["exchange"], one["data_type"])
            if one["score"] is not None:
                metrics.QUALITY_SCORE.labels(*labels).set(one["score"])
            for name in WEIGHTS:
                if one[name] is not None:
                    metrics.QUALITY_SHARE.labels(*labels, name).set(one[name])

    def _look(self, exchange: str, rows: pa.RecordBatch, feed: _Feed) -> int:
        prices = rows.column("price").cast(pa.float64()).to_numpy()
        far, jumped, z, jump = self._anomalies.find(exchange, rows.column("symbol"), prices)
        for kind, flags, by in (("z_score", far, z), ("jump", jumped, jump)):
            count = int(flags.sum())
            if count:
                metrics.ANOMALIES.labels(exchange, "trades", kind).inc(count)
                row = int(np.flatnonzero(flags)[-1])
                feed.recent.append(
                    Flagged(
                        kind,
                        rows.column("symbol")[row].as_py(),
                        rows.column("trade_id")[row].as_py(),
                        float(prices[row]),
                        round(float(by[row]), 3),
                    )._asdict()
                )
        return int((far | jumped).sum())

    def _feed(self, exchange: str, data_type: str) -> _Feed:
        return self._feeds.setdefault((exchange, data_type), _Feed())

    def _minute(self) -> int:
        return int(self._clock.monotonic_s() // 60)


def score(shares: Mapping[str, float | None]) -> float | None:
    """The shares weighed, 0 to 100; None when none is known."""
    known = [(WEIGHTS[name], share) for name, share in shares.items() if share is not None]
    if not known:
        return None
    return round(100 * sum(w * s for w, s in known) / sum(w for w, _ in known), 2)


def of_exchange(report: Sequence[Mapping[str, Any]], exchange: str) -> list[Mapping[str, Any]]:
    """What of a report is about one exchange."""
    return [one for one in report if one["exchange"] == exchange]


def _share(good: int, of: int) -> float | None:
    return None if of <= 0 else max(0.0, good / of)


def _rounded(share: float | None) -> float | None:
    # Down: what is not all must not look like all.
    return None if share is None else float(np.floor(share * 1e6) / 1e6)
