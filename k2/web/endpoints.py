"""Every endpoint, in the order of the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from k2.lake.tables import QUOTES, TRADES, TableDef
from k2.web import models, reference
from k2.web.endpoint import Endpoint
from k2.web.resources import (
    candles,
    degradation,
    feeds,
    lake,
    market,
    operations,
    records,
    replay,
    sql,
    stream,
    workers,
)

_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}
_OBJECTS: Final[Mapping[str, Any]] = {"type": "array", "items": {"type": "object"}}
_NOT_FOUND: Final = {404: "Nothing there for these parameters"}
_NO_SNAPSHOT: Final = {404: "No such snapshot, or it has expired"}

_JSON_TYPES: Final[Mapping[str, Mapping[str, Any]]] = {
    "string": {"type": "string"},
    "timestamptz": {"type": "string", "format": "date-time"},
    "decimal": {"type": "string", "description": "Exact decimal as text"},
    "long": {"type": "integer"},
    "int": {"type": "integer"},
    "boolean": {"type": "boolean"},
    "list": {"type": "array", "items": {"type": "string"}},
}


def row_schema(table: TableDef) -> dict[str, Any]:
    """JSON schema of one row of a table, from the table's own definition."""
    properties = {}
    for name, kind, meaning in table.columns:
        shape: dict[str, Any] = dict(_JSON_TYPES[kind.rstrip("!")])
        if name == "vendor_data":
            shape = {"type": "object"}
        if not kind.endswith("!"):
            shape["type"] = [shape["type"], "null"]
        properties[name] = {**shape, "description": meaning}
    return {"type": "object", "properties": properties}


TRADE: Final = {"$ref": "#/components/schemas/Trade"}
QUOTE: Final = {"$ref": "#/components/schemas/Quote"}
SCHEMAS: Final = {"Trade": row_schema(TRADES), "Quote": row_schema(QUOTES)}


def _rows(of: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": dict(of)}


ENDPOINTS: Final = (
    Endpoint("GET", "/v1/trades", "Trades, newest first", "Records", records.trades,
             models.RecordsRequest, _rows(TRADE), formats=True, statuses=_NO_SNAPSHOT),
    Endpoint("GET", "/v1/trades/recent", "Trades of the last minutes", "Records", records.recent,
             models.RecentRequest, _rows(TRADE), formats=True),
    Endpoint("GET", "/v1/quotes", "Quotes, newest first", "Records", records.quotes,
             models.RecordsRequest, _rows(QUOTE), formats=True, statuses=_NO_SNAPSHOT),
    Endpoint("POST", "/v1/trades/query", "Trades of several symbols, filtered", "Records",
             records.trades_query, models.TradesQuery, _rows(TRADE), formats=True,
             statuses=_NO_SNAPSHOT),
    Endpoint("POST", "/v1/quotes/query", "Quotes of several symbols", "Records",
             records.quotes_query, models.QuotesQuery, _rows(QUOTE), formats=True,
             statuses=_NO_SNAPSHOT),
    Endpoint("GET", "/v1/latest", "Last trade and quote of each symbol", "Market", market.latest,
             models.LatestRequest, _OBJECTS, formats=True, statuses=_NO_SNAPSHOT),
    Endpoint("GET", "/v1/asof", "Trades with the quote in force", "Market", market.asof,
             models.AsofRequest, _OBJECTS, formats=True, statuses=_NO_SNAPSHOT),
    Endpoint("GET", "/v1/stream", "New rows as they come: Server-Sent Events or a WebSocket",
             "Market", stream.stream, models.StreamRequest, {"type": "string"},
             media_type="text/event-stream"),
    Endpoint("GET", "/v1/symbols", "Symbols with trades", "Market", market.symbols,
             models.SymbolsRequest, {"type": "array", "items": {"type": ["string", "object"]}},
             formats=True, statuses=_NO_SNAPSHOT),
    Endpoint("GET", "/v1/summary/{symbol}/{date}", "One day of a symbol", "Intervals",
             candles.summary, models.SummaryRequest, _OBJECT, formats=True, statuses=_NOT_FOUND),
    Endpoint("GET", "/v1/ohlcv/health", "How fresh candles are", "Intervals", candles.health,
             models.CandlesHealth, _OBJECT),
    Endpoint("GET", "/v1/ohlcv/{timeframe}", "Candles, newest first", "Intervals",
             candles.candles, models.CandlesRequest, _OBJECTS, formats=True, statuses=_NOT_FOUND),
    Endpoint("POST", "/v1/ohlcv/batch", "Several series of candles", "Intervals", candles.batch,
             models.CandlesBatch, _OBJECT),
    Endpoint("POST", "/v1/aggregations", "OHLCV, VWAP, TWAP, volume profile", "Intervals",
             candles.aggregations, models.AggregationsRequest, _OBJECTS, formats=True,
             statuses=_NO_SNAPSHOT),
    Endpoint("GET", "/v1/snapshots", "Snapshots to travel to", "History", lake.snapshots,
             models.SnapshotsRequest, _OBJECTS),
    Endpoint("POST", "/v1/snapshots/{id}/query", "Rows of one snapshot", "History",
             records.snapshot_query, models.SnapshotQuery, _OBJECTS, formats=True,
             statuses=_NO_SNAPSHOT),
    Endpoint("POST", "/v1/replay", "A snapshot's records in order, by batches", "History",
             replay.replay, models.ReplayRequest, _OBJECTS, formats=True, statuses=_NO_SNAPSHOT),
    Endpoint("GET", "/v1/sql", "One SELECT", "SQL", sql.sql, models.SqlRequest, _OBJECTS,
             scope="sql", formats=True, statuses=_NO_SNAPSHOT),
    Endpoint("POST", "/v1/sql", "One SELECT", "SQL", sql.sql, models.SqlRequest, _OBJECTS,
             scope="sql", formats=True, statuses=_NO_SNAPSHOT),
    Endpoint("GET", "/v1/feeds", "Exchange sessions of all workers", "Operations", feeds.feeds,
             gives=_OBJECTS),
    Endpoint("GET", "/v1/gaps", "Ids that never came, or came after all", "Operations", feeds.gaps,
             models.GapsRequest, _OBJECTS),
    Endpoint("GET", "/v1/stats", "Rows, files and query slots", "Operations", lake.stats,
             gives=_OBJECT),
    Endpoint("GET", "/v1/status", "This worker, and the totals of all", "Operations",
             operations.status, gives=_OBJECT),
    Endpoint("GET", "/v1/workers", "Every worker, as it said last", "Operations", workers.workers,
             gives=_OBJECTS),
    Endpoint("GET", "/v1/degradation", "The level, why, and its history", "Operations",
             degradation.level, gives=_OBJECT),
    Endpoint("POST", "/v1/degradation", "Hold a level for a while", "Operations",
             degradation.hold, models.HoldRequest, _OBJECT, scope="admin"),
    Endpoint("POST", "/v1/degradation/clear", "Let the level go", "Operations",
             degradation.release, gives=_OBJECT, scope="admin"),
    Endpoint("GET", "/v1/shed", "What is put off and will still be stored", "Operations",
             degradation.shed, gives=_OBJECT),
    Endpoint("GET", "/", "Links", "Operations", operations.index, gives=_OBJECT, scope=None),
    Endpoint("GET", "/health", "Dependencies", "Operations", operations.health, gives=_OBJECT,
             scope=None),
    Endpoint("GET", "/health/ready", "Dependencies", "Operations", operations.health,
             gives=_OBJECT, scope=None),
    Endpoint("GET", "/health/live", "The process answers", "Operations", operations.live,
             gives=_OBJECT, scope=None),
    Endpoint("GET", "/metrics", "Prometheus text", "Operations", operations.metrics, scope=None,
             media_type="text/plain"),
    Endpoint("GET", "/openapi.json", "This document", "Operations", reference.document,
             gives=_OBJECT, scope=None),
    Endpoint("GET", "/docs", "This document to read", "Operations", reference.page, scope=None,
             media_type="text/html"),
)  # fmt: skip
