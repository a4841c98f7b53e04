"""Figures over intervals: candles, day summaries, aggregations. Computed from trades, exactly."""

from __future__ import annotations

import asyncio
import datetime as dt
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa
from aiohttp import web

from k2.candles.fill import filled_forward
from k2.clock import SYSTEM_CLOCK
from k2.errors import InvalidParameter, K2Error, NotFoundError
from k2.query.asked import RecordsQuery
from k2.query.candle_rows import CandleRows
from k2.query.candles import AGGREGATES, PROFILE, SUMMARY, Intervals
from k2.query.cold import Bounds
from k2.query.encode import rows_of
from k2.query.engine import Answer
from k2.query.lake_table import AsOf
from k2.timeframes import FRAMES_US
from k2.times import DAY_US
from k2.web.context import CONTEXT
from k2.web.envelope import ROWS, answer, page
from k2.web.formats import as_of, chosen, encoded, kept_response, rows_response
from k2.web.models import (
    AggregationsRequest,
    CandlesBatch,
    CandlesBatchItem,
    CandlesHealth,
    CandlesRequest,
    SummaryRequest,
)

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
_EXACT: Final = pa.decimal128(28, 10)
_LEVEL: Final = pa.schema(
    [
        ("price_low", _EXACT),
        ("price_high", _EXACT),
        ("volume", pa.decimal128(38, 10)),
        ("trade_count", pa.int64()),
    ]
)


async def summary(request: web.Request, given: SummaryRequest) -> web.StreamResponse:
    """GET /v1/summary/{symbol}/{date}: one day, UTC, over one exchange or all."""
    try:
        day = dt.datetime.strptime(given.date, "%Y-%m-%d").replace(tzinfo=dt.UTC)
    except ValueError as exc:
        raise InvalidParameter("date", given.date, "a day such as 2024-08-08") from exc
    start_us = int(day.timestamp()) * 1_000_000
    asked = Intervals(
        frozenset((given.symbol,)), DAY_US, start_us, start_us + DAY_US, given.exchange
    )
    found = await _run(request, "summary", SUMMARY, asked, 1, given.at)
    if not found.rows.num_rows:
        raise NotFoundError(f"{given.symbol} has no trades on {given.date}")
    if chosen(request, given.format) != "json":
        return await rows_response(request, found, name="summary", format=given.format)
    request[ROWS] = 1
    (row,) = rows_of(found.rows)
    over = start_us + DAY_US < SYSTEM_CLOCK.now_us()
    headers = {"Cache-Control": f"private, max-age={60 if over else 5}"}
    return answer(request, {"date": given.date, **row}, more=as_of(found), headers=headers)


async def candles(request: web.Request, given: CandlesRequest) -> web.StreamResponse:
    """GET /v1/ohlcv/{timeframe}: the newest candles; windows without trades are absent."""
    start_us, end_us = await _period(request, given, given.at)
    work = _candle_rows(request, given, start_us, end_us, given.exclude_conditions)
    max_age_s = 0 if given.end_time is None else 5
    same = work if given.at is None and given.fill is None else None
    if same is not None:
        known = kept_response(
            request, "trades", work.bounds, same, format=given.format, max_age_s=max_age_s
        )
        if known is not None:
            return known
    found = await _candles(request, work, given.at)
    rows = found.rows
    if given.fill is not None:
        rows = await _filled(request, given, rows, start_us, end_us)
    if not rows.num_rows:
        raise NotFoundError(
            f"{given.symbol} has no trades in this period; without start_time it is `limit` "
            "windows long"
        )
    more = rows.num_rows > given.limit or found.rows.num_rows > given.limit
    shown = replace(found, rows=rows.slice(0, given.limit))
    return await rows_response(
        request, shown, name=f"ohlcv_{given.timeframe}", format=given.format,
        pagination=page(given.limit, more), max_age_s=max_age_s, question=same,
    )  # fmt: skip


async def _filled(
    request: web.Request, given: CandlesRequest, rows: pa.Table, start_us: int, end_us: int
) -> pa.Table:
    """Every window of the period, but not of the future, from the price in force on."""
    queries = request.config_dict[CONTEXT].queries
    step_us = FRAMES_US[given.timeframe]
    begin_us = start_us - start_us % step_us
    before: dict[str, Decimal] = {}
    for exchange in set(rows["exchange"].to_pylist()) or {given.exchange}:
        query = RecordsQuery(
            symbols=frozenset((given.symbol,)),
            exchanges=None if exchange is None else frozenset((exchange,)),
            end_us=begin_us,
            limit=1,
        )
        for row in (await queries.records("trades", query, given.at)).rows.to_pylist():
            before[row["exchange"]] = row["price"]
    stop_us = min(end_us, SYSTEM_CLOCK.now_us())
    return await asyncio.to_thread(
        filled_forward, rows, given.symbol, before, step_us, begin_us, stop_us, given.limit + 1
    )


async def _period(
    request: web.Request, given: CandlesRequest | CandlesBatchItem, at: AsOf | None = None
) -> tuple[int, int]:
    """What is asked for, else `limit` windows up to now or the last trade; µs."""
    interval_us = FRAMES_US[given.timeframe]
    end_us = given.end_time
    if end_us is None:
        end_us = SYSTEM_CLOCK.now_us() + _MINUTE_US
        if given.start_time is None:
            end_us = await _last_trade_us(request, given.symbol, at) or end_us
    start_us = given.start_time
    if start_us is None:
        # One window more than asked for tells whether there is more.
        start_us = max(0, end_us - end_us % interval_us - given.limit * interval_us)
    if start_us >= end_us:
        start_us = max(0, end_us - 1)
    return start_us, end_us


def _candle_rows(
    request: web.Request,
    given: CandlesRequest | CandlesBatchItem,
    start_us: int,
    end_us: int,
    exclude: frozenset[str] | None = None,
) -> CandleRows:
    interval_us = FRAMES_US[given.timeframe]
    if exclude is None:
        exclude = request.config_dict[CONTEXT].exclude_conditions
    asked = Intervals(
        frozenset((given.symbol,)), interval_us, start_us, end_us, given.exchange, exclude or None
    )
    return CandleRows(asked, given.limit + 1)


async def _candles(request: web.Request, work: CandleRows, at: AsOf | None = None) -> Answer:
    queries = request.config_dict[CONTEXT].queries
    return await queries.call("ohlcv", ("trades",), work, at, work.bounds)


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
    found = await asyncio.gather(
        *(_series(request, item) for item in given.requests), return_exceptions=True
    )
    data: dict[str, Any] = {}
    for item, one in zip(given.requests, found, strict=True):
        name = f"{item.timeframe}_{item.symbol}" + (f"_{item.exchange}" if item.exchange else "")
        data[name] = await _outcome(item, one)
    return answer(request, data)


async def _series(request: web.Request, item: CandlesBatchItem) -> Answer:
    return await _candles(request, _candle_rows(request, item, *await _period(request, item)))


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
    asked = Intervals(given.symbols, interval_us, given.start_time, given.end_time, given.exchange)
    found = await _run(request, "aggregations", AGGREGATES, asked, given.limit, given.at)
    rows = found.rows
    wanted = [name for metric in given.metrics for name in _METRIC_COLUMNS.get(metric, ())]
    keys = ["symbol", "exchange", "interval_start", "interval_end"]
    rows = rows.select([*keys, *dict.fromkeys(wanted)])
    if "volume_profile" in given.metrics:
        profile = await _run(
            request, "aggregations", PROFILE, asked, 100 * given.limit, given.at,
            [given.levels] * 4,
        )  # fmt: skip
        rows = await asyncio.to_thread(_with_profile, rows, profile.rows)
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


def _with_profile(rows: pa.Table, profile: pa.Table) -> pa.Table:
    """The levels of each interval as one list column."""
    key = ("symbol", "exchange", "interval_start")
    levels: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in profile.to_pylist():
        place = tuple(row[name] for name in key)
        shown = {name: row[name] for name in _LEVEL.names}
        levels.setdefault(place, []).append(shown)
    columns = [rows[name].to_pylist() for name in key]
    lists = [levels.get(place, []) for place in zip(*columns, strict=True)]
    return rows.append_column("volume_profile", pa.array(lists, pa.list_(pa.struct(list(_LEVEL)))))


async def _run(
    request: web.Request,
    kind: str,
    text: str,
    asked: Intervals,
    limit: int,
    at: AsOf | None,
    values: list[Any] | None = None,
) -> Answer:
    bounds = {"trades": Bounds(asked.symbols, asked.start_us, asked.end_us)}
    queries = request.config_dict[CONTEXT].queries
    return await queries.fixed(
        kind, text, [*asked.values, *(values or ())], bounds, limit=limit, at=at
    )
