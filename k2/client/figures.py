"""Figures over intervals: candles, days, averages, volume profiles."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import pyarrow as pa

from k2.client.http import Http, Time
from k2.client.parameters import Symbols, id_text, names
from k2.client.rows import Rows
from k2.errors import ApiError
from k2.timeframes import Timeframe

Metric = Literal["vwap", "twap", "ohlcv", "volume_profile", "trade_count"]
Interval = Literal["1min", "5min", "15min", "30min", "1hour", "1day"]

_TIME: Final = pa.timestamp("us", tz="UTC")
_PRICE: Final = pa.decimal128(28, 10)
#: Of candles that come as JSON.
_CANDLE: Final = pa.schema(
    [
        ("symbol", pa.string()),
        ("exchange", pa.string()),
        ("window_start", _TIME),
        ("window_end", _TIME),
        ("open", _PRICE),
        ("high", _PRICE),
        ("low", _PRICE),
        ("close", _PRICE),
        ("volume", pa.decimal128(38, 10)),
        ("trade_count", pa.int64()),
        ("vwap", pa.decimal128(38, 8)),
    ]
)


@dataclass(frozen=True, slots=True)
class Series:
    """One series of `ohlcv_batch`; as the parameters of `ohlcv`."""

    symbol: str
    timeframe: Timeframe = "1m"
    exchange: str | None = None
    start: Time | None = None
    end: Time | None = None
    limit: int = 1_000
    fill: Literal["forward"] | None = None
    exclude_conditions: Iterable[str] | None = None

    def given(self) -> dict[str, Any]:
        return {
            "symbol": self.symbol,
            "timeframe": self.timeframe,
            "exchange": self.exchange,
            "start_time": self.start,
            "end_time": self.end,
            "limit": self.limit,
            "fill": self.fill,
            "exclude_conditions": names(self.exclude_conditions),
        }


class Figures(Http):
    """What is computed from trades."""

    async def ohlcv(
        self,
        symbol: str,
        timeframe: Timeframe = "1m",
        *,
        exchange: str | None = None,
        start: Time | None = None,
        end: Time | None = None,
        limit: int = 1_000,
        fill: Literal["forward"] | None = None,
        exclude_conditions: Iterable[str] | None = None,
        as_of: Time | None = None,
        snapshot_id: int | str | None = None,
    ) -> Rows:
        """Candles, newest first. `fill="forward"`: also windows without trades.

        `exclude_conditions`: trades with one of these do not count, instead of the server's own.
        """
        given = {
            "symbol": symbol,
            "exchange": exchange,
            "start_time": start,
            "end_time": end,
            "limit": limit,
            "fill": fill,
            "exclude_conditions": names(exclude_conditions),
            "as_of": as_of,
            "snapshot_id": id_text(snapshot_id),
        }
        return await self.rows("GET", f"/v1/ohlcv/{timeframe}", given)

    async def ohlcv_batch(
        self, series: Iterable[Series], *, as_of: Time | None = None
    ) -> dict[str, Rows | ApiError]:
        """Up to five series at once, by `<timeframe>_<symbol>` and `_<exchange>` where given.

        One that failed is its error; the others are there nevertheless.
        """
        given = {"requests": [one.given() for one in series], "as_of": as_of}
        body = await self.json("POST", "/v1/ohlcv/batch", given)
        return {name: _outcome(found) for name, found in body["data"].items()}

    async def ohlcv_health(self, symbol: str | None = None) -> dict[str, Any]:
        """How old the last trade is, against what each timeframe allows."""
        return await self.facts("/v1/ohlcv/health", {"symbol": symbol})

    async def summary(
        self,
        symbol: str,
        day: dt.date | str,
        *,
        exchange: str | None = None,
        exclude_conditions: Iterable[str] | None = None,
        as_of: Time | None = None,
        snapshot_id: int | str | None = None,
    ) -> Rows:
        """One UTC day as one row."""
        given = {
            "exchange": exchange,
            "exclude_conditions": names(exclude_conditions),
            "as_of": as_of,
            "snapshot_id": id_text(snapshot_id),
        }
        return await self.rows("GET", f"/v1/summary/{symbol}/{day}", given)

    async def aggregations(
        self,
        symbols: Symbols,
        metrics: Iterable[Metric],
        interval: Interval,
        start: Time,
        end: Time,
        *,
        exchange: str | None = None,
        levels: int = 10,
        limit: int = 10_000,
        exclude_conditions: Iterable[str] | None = None,
        as_of: Time | None = None,
        snapshot_id: int | str | None = None,
    ) -> Rows:
        """Several figures over intervals of up to 50 symbols. `levels`: of a volume profile."""
        given = {
            "symbols": names(symbols),
            "metrics": list(metrics),
            "interval": interval,
            "start_time": start,
            "end_time": end,
            "exchange": exchange,
            "levels": levels,
            "limit": limit,
            "exclude_conditions": names(exclude_conditions),
            "as_of": as_of,
            "snapshot_id": id_text(snapshot_id),
        }
        return await self.rows("POST", "/v1/aggregations", given)


def _outcome(found: Mapping[str, Any]) -> Rows | ApiError:
    if not found["success"]:
        return ApiError(found["error"]["message"], error=found["error"]["error"])
    texts = [pa.array([row[name] for row in found["data"]]) for name in _CANDLE.names]
    columns = [text.cast(one.type) for text, one in zip(texts, _CANDLE, strict=True)]
    return Rows(pa.table(columns, schema=_CANDLE), found["as_of"], found["partial"])
