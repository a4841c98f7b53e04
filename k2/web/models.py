"""What each endpoint takes. The OpenAPI document is made from these."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from k2.degradation.levels import Level
from k2.degradation.override import MAX_MINUTES
from k2.errors import InvalidParameter
from k2.query.lake_table import AsOf
from k2.timeframes import Timeframe
from k2.web.types import (
    Columns,
    Exact,
    Name,
    Names,
    Request,
    SnapshotId,
    SqlText,
    TimeUs,
    whole,
)

Table = Literal["trades", "quotes"]
FormatName = Literal["json", "csv", "parquet", "arrow"]
Order = Literal["desc", "asc"]
MAX_LIMIT = 10_000
MAX_QUERY_LIMIT = 100_000


class Formatted(Request):
    """Rows in a format."""

    format: FormatName | None = Field(None, description="Instead of the header Accept")


class Travels(Formatted):
    """A read that may be of an older state of the lake."""

    as_of: TimeUs | None = Field(None, description="The lake as it was then; no hot rows")
    snapshot_id: SnapshotId | None = Field(None, description="The lake at this snapshot")

    @property
    def at(self) -> AsOf | None:
        """Raises `InvalidParameter` when both are given."""
        if self.as_of is not None and self.snapshot_id is not None:
            raise InvalidParameter("as_of", str(self.as_of), "as_of or snapshot_id, not both")
        if self.snapshot_id is not None:
            return AsOf(snapshot_id=self.snapshot_id)
        return None if self.as_of is None else AsOf(time_ms=self.as_of // 1_000)


class InTime(Request):
    """A read of the lake as of one time."""

    as_of: TimeUs | None = Field(None, description="The lake as it was then; no hot rows")

    @property
    def at(self) -> AsOf | None:
        return None if self.as_of is None else AsOf(time_ms=self.as_of // 1_000)


class TravelsInTime(InTime, Formatted):
    """A read of several tables as of one time; a snapshot id belongs to one table only."""


class Conditions(Request):
    """A read of what makes a price."""

    exclude_conditions: Names | None = Field(
        None,
        description="Trades with one of these conditions do not count; "
        "K2_CANDLES_EXCLUDE_CONDITIONS when left out",
    )


class Period(Request):
    """`start_time` inclusive, `end_time` exclusive."""

    start_time: TimeUs | None = Field(None, description="Inclusive")
    end_time: TimeUs | None = Field(None, description="Exclusive")

    def model_post_init(self, _context: object) -> None:
        start, end = self.start_time, self.end_time
        if start is not None and end is not None and start >= end:
            raise InvalidParameter("start_time", start, "a time before end_time")


class RecordsRequest(Travels, Period):
    """GET /v1/trades, /v1/quotes."""

    symbol: Name | None = None
    symbols: Names | None = Field(None, description="Several, comma separated")
    exchange: Name | None = None
    limit: whole(1, MAX_LIMIT) = 100  # type: ignore[valid-type]
    order: Order = Field("desc", description="By time: newest or oldest first")
    fields: Columns | None = Field(
        None,
        description="Columns, comma separated; also base_asset, quote_asset, tick_size, lot_size, "
        "min_notional, name, isin, status (as of each row's time) and tier",
    )
    cursor: str | None = Field(None, description="The next_cursor of the page before")


class RecentRequest(Formatted):
    """GET /v1/trades/recent."""

    symbol: Name
    exchange: Name
    window_minutes: whole(1, 60) = 15  # type: ignore[valid-type]
    limit: whole(1, MAX_LIMIT) = 1_000  # type: ignore[valid-type]


class QuotesQuery(Travels, Period):
    """POST /v1/quotes/query."""

    symbols: Names | None = None
    exchanges: Names | None = None
    fields: Columns | None = None
    order: Order = "desc"
    limit: whole(1, MAX_QUERY_LIMIT) = 1_000  # type: ignore[valid-type]
    offset: whole(0, MAX_QUERY_LIMIT) = 0  # type: ignore[valid-type]
    cursor: str | None = None


class TradesQuery(QuotesQuery):
    """POST /v1/trades/query. Bounds are inclusive."""

    sides: list[Literal["BUY", "SELL", "SELL_SHORT", "UNKNOWN"]] | None = Field(
        None, min_length=1, max_length=4
    )
    min_price: Exact | None = None
    max_price: Exact | None = None
    min_quantity: Exact | None = None
    max_quantity: Exact | None = None


class SnapshotQuery(Formatted, Period):
    """POST /v1/snapshots/{id}/query."""

    id: SnapshotId
    data_type: Table = "trades"
    symbol: Name | None = None
    exchange: Name | None = None
    fields: Columns | None = None
    order: Order = "desc"
    limit: whole(1, MAX_QUERY_LIMIT) = 1_000  # type: ignore[valid-type]
    offset: whole(0, MAX_QUERY_LIMIT) = 0  # type: ignore[valid-type]


class SymbolsRequest(Travels):
    """GET /v1/symbols."""

    exchange: Name | None = None
    fields: Columns | None = Field(
        None, description="Objects instead of names: symbol, exchange, and what instruments are now"
    )


class GapsRequest(Request):
    """Gaps in the ids of feeds."""

    symbol: Name | None = Field(None, description="One symbol")
    exchange: Name | None = Field(None, description="One exchange")
    state: Literal["open", "closed", "all"] = Field("open", description="Whether ids are missing")
    limit: whole(1, MAX_LIMIT, "Most rows") = 100  # type: ignore[valid-type]


class LatestRequest(TravelsInTime):
    """GET /v1/latest."""

    symbols: Names | None = Field(None, description="Comma separated; all when left out")
    data_type: Literal["trades", "quotes", "both"] = "both"


class AsofRequest(TravelsInTime, Period):
    """GET /v1/asof. `max_age_s`: an older quote is not in force any more."""

    symbol: Name
    exchange: Name | None = None
    limit: whole(1, MAX_LIMIT) = 100  # type: ignore[valid-type]
    max_age_s: whole(1, 86_400) = 3_600  # type: ignore[valid-type]


class SnapshotsRequest(Request):
    """GET /v1/snapshots."""

    table: Literal["trades", "quotes", "gaps"] = "trades"
    limit: whole(1, 100) = 10  # type: ignore[valid-type]


class SummaryRequest(Travels, Conditions):
    """GET /v1/summary/{symbol}/{date}."""

    symbol: Name
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$", description="A day, UTC")
    exchange: Name | None = None


class CandlesBatchItem(Period, Conditions):
    """One series of POST /v1/ohlcv/batch."""

    timeframe: Timeframe
    symbol: Name
    exchange: Name | None = None
    limit: whole(1, MAX_LIMIT) = 1_000  # type: ignore[valid-type]
    fill: Literal["forward"] | None = Field(
        None, description="Also windows without trades: the close before, no volume"
    )

    @property
    def key(self) -> str:
        """The name of the series among those of its batch."""
        parts = (self.timeframe, self.symbol, self.exchange)
        return "_".join(part for part in parts if part is not None)


class CandlesRequest(Travels, CandlesBatchItem):
    """GET /v1/ohlcv/{timeframe}."""


class CandlesBatch(InTime):
    """POST /v1/ohlcv/batch: series of different timeframe, symbol or exchange."""

    requests: list[CandlesBatchItem] = Field(min_length=1, max_length=5)


class CandlesHealth(Request):
    """GET /v1/ohlcv/health."""

    symbol: Name | None = None


class AggregationsRequest(Travels, Conditions):
    """POST /v1/aggregations. `levels`: of the volume profile."""

    symbols: Names
    metrics: list[Literal["vwap", "twap", "ohlcv", "volume_profile", "trade_count"]] = Field(
        min_length=1
    )
    interval: Literal["1min", "5min", "15min", "30min", "1hour", "1day"]
    start_time: TimeUs
    end_time: TimeUs
    exchange: Name | None = None
    levels: whole(1, 100) = 10  # type: ignore[valid-type]
    limit: whole(1, MAX_LIMIT) = 10_000  # type: ignore[valid-type]

    def model_post_init(self, _context: object) -> None:
        if self.start_time >= self.end_time:
            raise InvalidParameter("start_time", self.start_time, "a time before end_time")
        if len(self.symbols) > 50:
            raise InvalidParameter("symbols", len(self.symbols), "1 to 50 symbols")


class ReplayRequest(Formatted):
    """POST /v1/replay."""

    data_type: Table = "trades"
    symbol: Name | None = None
    symbols: Names | None = None
    exchange: Name | None = None
    start_time: TimeUs
    end_time: TimeUs
    batch_size: whole(100, MAX_LIMIT) = 1_000  # type: ignore[valid-type]
    snapshot_id: SnapshotId | None = None
    as_of: TimeUs | None = Field(None, description="The snapshot current then")
    cursor: str | None = None

    def model_post_init(self, _context: object) -> None:
        if self.start_time >= self.end_time:
            raise InvalidParameter("start_time", self.start_time, "a time before end_time")


class SqlRequest(TravelsInTime):
    """GET, POST /v1/sql."""

    sql: SqlText = Field(description="One SELECT", json_schema_extra={"examples": ["SELECT 1"]})
    limit: whole(1, 10_000_000) | None = Field(  # type: ignore[valid-type]
        None, description="Most rows of the answer, up to K2_QUERY_MAX_ROWS; 1,000 if not given"
    )


class StreamRequest(Request):
    """GET /v1/stream."""

    data_type: Literal["trades", "quotes", "candles"] = "trades"
    symbols: Names | None = Field(None, description="All when not given")
    snapshot: whole(0, 1_000) = Field(  # type: ignore[valid-type]
        100, description="Newest hot rows sent first; of candles, so many windows"
    )
    timeframe: Timeframe = Field("1m", description="Of candles")


class HoldRequest(Request):
    """POST /v1/degradation."""

    level: str = Field(
        description="NORMAL, SOFT, GRACEFUL, AGGRESSIVE or CIRCUIT_BREAK",
        json_schema_extra={"enum": [level.name for level in Level]},
    )
    minutes: float = Field(gt=0, le=MAX_MINUTES, description="How long it holds")
    reason: str = Field(min_length=1, max_length=500, description="Why; shown to everybody")
    by: str = Field("api", min_length=1, max_length=100, description="Who sets it")
