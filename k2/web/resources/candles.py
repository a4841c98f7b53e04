"""Figures over intervals: candles, day summaries, aggregations. Computed from trades, exactly."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import Counter
from dataclasses import replace
from typing import Any, Final, NamedTuple

import pyarrow as pa
from aiohttp import web

from k2.clock import SYSTEM_CLOCK
from k2.errors import InvalidParameter, K2Error, NotFoundError
from k2.query.answers import Answer, Show
from k2.query.candle_rows import CandleRows, FilledRows
from k2.query.candles import SUMMARY, Aggregates, Intervals
from k2.query.encode import rows_of
from k2.query.lake_table import AsOf
from k2.timeframes import FRAMES_US
from k2.times import DAY_US
from k2.web.context import CONTEXT
from k2.web.envelope import ROWS, answer, page
from k2.web.formats import (
    as_of,
    cache_headers,
    chosen,
    encoded,
    json_at_once,
    kept_response,
    rows_response,
)
from k2.web.models import (
    AggregationsRequest,
    CandlesBatch,
    CandlesBatchItem,
    CandlesHealth,
    CandlesRequest,
    Conditions,
    SummaryRequest,
)

#: Of the answer.
_CANDLE_COLUMNS: Final = 11
_MINUTE_US: Final = FRAMES_US["1m"]
_BATCH_ROWS: Final = 25_000
#: A timeframe is stale when its last candle is older than so many minutes.
_STALE_MINUTES: Final = {"1m": 10, "5m": 20, "15m": 30, "30m": 60, "1h": 120, "1d": 1_500}
_INTERVALS: Final = {
    "1min": "1m", "5min": "5m", "15min": "15m", "30min": "30m", "1hour": "1h", "1day": "1d",
}  # fmt: skip
_METRIC_COLUMNS: Final = {
    "ohlcv": ("open", "high", "low", "close", "volume"),
    "trade_count": ("trade_count",),
    "vwap": ("vwap",),
    "twap": ("twap",),
}


async def summary(request: web.Request, given: SummaryRequest) -> web.StreamResponse:
    """GET /v1/summary/{symbol}/{date}: one day, UTC, over one exchange or all."""
    try:
        day = dt.datetime.strptime(given.date, "%Y-%m-%d").replace(tzinfo=dt.UTC)
    except ValueError as exc:
        raise InvalidParameter("date", given.date, "a day such as 2024-08-08") from exc
    start_us = int(day.timestamp()) * 1_000_000
    asked = Intervals(
        frozenset((given.symbol,)),
        DAY_US,
        start_us,
        start_us + DAY_US,
        given.exchange,
        _excluded(request, given),
    )
    queries = request.config_dict[CONTEXT].queries
    found = await queries.fixed(
        "summary", SUMMARY, asked.values, {"trades": asked.bounds}, limit=1, at=given.at
    )
    if not found.rows.num_rows:
        raise NotFoundError(f"{given.symbol} has no trades on {given.date}")
    if chosen(request, given.format) != "json":
        return await rows_response(request, found, name="summary", format=given.format)
    request[ROWS] = 1
    (row,) = rows_of(found.rows)
    over = start_us + DAY_US < SYSTEM_CLOCK.now_us()
    headers = cache_headers(found, 60 if over else 5)
    return answer(request, {"date": given.date, **row}, more=as_of(found), headers=headers)


async def candles(request: web.Request, given: CandlesRequest) -> web.StreamResponse:
    """GET /v1/ohlcv/{timeframe}: the newest candles; windows without trades are absent."""
    period = await _period(request, given, given.at)
    work = _candle_rows(request, given, period)
    max_age_s = 0 if given.end_time is None else 5
    same = work if given.at is None and given.fill is None else None
    if same is not None:
        async with request.config_dict[CONTEXT].queries.turns:
            known = kept_response(
                request, "trades", work.bounds, same, format=given.format, max_age_s=max_age_s,
                moment=period,
            )  # fmt: skip
        if known is not None:
            return known

    def newest(rows: pa.Table) -> pa.Table:
        return rows.slice(0, given.limit)

    as_json = json_at_once(request, given.format, given.limit, _CANDLE_COLUMNS, newest)
    found = await _candles(request, given, work, period, given.at, as_json)
    rows = found.rows
    if not rows.num_rows:
        raise NotFoundError(
            f"{given.symbol} has no trades in this period; without start_time it is `limit` "
            "windows long"
        )
    # What is filled, or ends with the clock, goes on while its snapshot stays as it is.
    fixed = found.fixed and period.end_us == period.until_us
    shown = replace(found, rows=newest(rows), fixed=fixed)
    return await rows_response(
        request, shown, name=f"ohlcv_{given.timeframe}", format=given.format,
        pagination=page(given.limit, rows.num_rows > given.limit), max_age_s=max_age_s,
        question=same, moment=period,
    )  # fmt: skip


class _Period(NamedTuple):
    """µs, `end` exclusive. `until_us`: the end, or the next whole minute where that is earlier."""

    start_us: int
    end_us: int
    until_us: int


async def _period(request: web.Request, given: CandlesBatchItem, at: AsOf | None = None) -> _Period:
    """What is asked for, else `limit` windows up to now or the last trade.

    Of the clock whole minutes are taken, which windows begin at: within one the question stays the
    same, and so does its answer until a trade comes.
    """
    interval_us = FRAMES_US[given.timeframe]
    now_us = SYSTEM_CLOCK.now_us()
    minute_us = now_us - now_us % _MINUTE_US + _MINUTE_US
    end_us = given.end_time
    if end_us is None:
        end_us = minute_us + _MINUTE_US
        if given.start_time is None:
            end_us = await _last_trade_us(request, given.symbol, at) or end_us
    start_us = given.start_time
    if start_us is None:
        # One window more than asked for tells whether there is more.
        start_us = max(0, end_us - end_us % interval_us - given.limit * interval_us)
    if start_us >= end_us:
        start_us = max(0, end_us - 1)
    return _Period(start_us, end_us, min(end_us, minute_us))


def _candle_rows(request: web.Request, given: CandlesBatchItem, period: _Period) -> CandleRows:
    asked = Intervals(
        frozenset((given.symbol,)),
        FRAMES_US[given.timeframe],
        period.start_us,
        period.end_us,
        given.exchange,
        _excluded(request, given),
    )
    return CandleRows(asked, given.limit + 1)


def _excluded(request: web.Request, given: Conditions) -> frozenset[str] | None:
    """Conditions of trades that make no price: those asked for, else those of the settings."""
    exclude = given.exclude_conditions
    if exclude is None:
        exclude = request.config_dict[CONTEXT].exclude_conditions
    return exclude or None


async def _candles(
    request: web.Request,
    given: CandlesBatchItem,
    work: CandleRows,
    period: _Period,
    at: AsOf | None,
    show: Show | None = None,
) -> Answer:
    queries = request.config_dict[CONTEXT].queries
    if given.fill is None:
        return await queries.call("ohlcv", ("trades",), work, at, work.bounds, show)
    filled = FilledRows(work, given.symbol, period.until_us)
    return await queries.call("ohlcv", ("trades",), filled, at, show=show)


async def _last_trade_us(request: web.Request, symbol: str, at: AsOf | None) -> int | None:
    """Just after the last trade: recorded data ends long before now."""
    queries = request.config_dict[CONTEXT].queries
    found = await queries.latest("trades", frozenset((symbol,)), at)
    times = found.rows["timestamp"].cast(pa.int64()).to_pylist()
    return max(times) + 1 if times else None


async def batch(request: web.Request, given: CandlesBatch) -> web.StreamResponse:
    """POST /v1/ohlcv/batch: several series at once, each with its own outcome."""
    total = sum(item.limit for item in given.requests)
    if total > _BATCH_ROWS:
        raise InvalidParameter("limit", total, f"limits that add up to at most {_BATCH_ROWS}")
    twice = [name for name, n in Counter(item.key for item in given.requests).items() if n > 1]
    if twice:
        raise InvalidParameter(
            "requests", twice[0], "series of another timeframe, symbol or exchange each"
        )
    found = await asyncio.gather(
        *(_series(request, item, given.at) for item in given.requests), return_exceptions=True
    )
    outcomes = zip(given.requests, found, strict=True)
    return answer(request, {item.key: await _outcome(item, one) for item, one in outcomes})


async def _series(request: web.Request, item: CandlesBatchItem, at: AsOf | None) -> Answer:
    period = await _period(request, item, at)
    return await _candles(request, item, _candle_rows(request, item, period), period, at)


async def _outcome(item: CandlesBatchItem, found: Answer | BaseException) -> dict[str, Any]:
    if isinstance(found, K2Error):
        return {"success": False, "error": {"error": found.code, "message": found.message}}
    if isinstance(found, BaseException):
        raise found
    return {
        "success": True,
        "data": await encoded(found.rows.slice(0, item.limit)),
        "pagination": page(item.limit, found.rows.num_rows > item.limit),
        **as_of(found),
    }


async def health(request: web.Request, given: CandlesHealth) -> web.StreamResponse:
    """GET /v1/ohlcv/health: how old the last trade is, against what each timeframe allows."""
    queries = request.config_dict[CONTEXT].queries
    chosen_symbols = None if given.symbol is None else frozenset((given.symbol,))
    found = await queries.latest("trades", chosen_symbols)
    times = found.rows["timestamp"].cast(pa.int64()).to_pylist()
    age_minutes = (SYSTEM_CLOCK.now_us() - max(times)) / _MINUTE_US if times else None
    frames = {
        name: {
            "status": _freshness(age_minutes, most),
            "age_minutes": None if age_minutes is None else round(age_minutes, 2),
            "threshold_minutes": most,
        }
        for name, most in _STALE_MINUTES.items()
    }
    states = {frame["status"] for frame in frames.values()}
    overall = next(s for s in ("no_data", "stale", "healthy") if s in states)
    return answer(request, {"overall": overall, "timeframes": frames}, more=as_of(found))


def _freshness(age_minutes: float | None, most: int) -> str:
    if age_minutes is None:
        return "no_data"
    return "healthy" if age_minutes <= most else "stale"


async def aggregations(request: web.Request, given: AggregationsRequest) -> web.StreamResponse:
    """POST /v1/aggregations: several figures over intervals of several symbols, in one scan."""
    interval_us = FRAMES_US[_INTERVALS[given.interval]]
    asked = Intervals(
        given.symbols,
        interval_us,
        given.start_time,
        given.end_time,
        given.exchange,
        _excluded(request, given),
    )
    levels = given.levels if "volume_profile" in given.metrics else None
    queries = request.config_dict[CONTEXT].queries
    found = await queries.call(
        "aggregations", ("trades",), Aggregates(asked, given.limit, levels), given.at
    )
    wanted = [name for metric in given.metrics for name in _METRIC_COLUMNS.get(metric, ())]
    keys = ["symbol", "exchange", "interval_start", "interval_end"]
    rows = found.rows.select([*keys, *dict.fromkeys(wanted)])
    if levels is not None:
        rows = rows.append_column("volume_profile", found.rows["volume_profile"])
    facts = {
        "request_summary": {
            "symbols": sorted(given.symbols),
            "metrics": list(dict.fromkeys(given.metrics)),
            "interval": given.interval,
            "buckets": rows.num_rows,
        }
    }
    return await rows_response(
        request, replace(found, rows=rows), name="aggregations", format=given.format,
        pagination=page(given.limit, found.truncated), more=facts,
    )  # fmt: skip
