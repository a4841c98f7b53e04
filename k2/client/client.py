"""`K2Client`: every read of the HTTP interface as a method.

    async with K2Client("http://127.0.0.1:8000", key="…") as k2:
        trades = await k2.trades("BTCUSDT", limit=100)
        print(trades.table)

Answers are `Rows`: an Arrow table, and what it was read at. Symbols are one name or several; times
are ISO 8601, microseconds since 1970 or aware datetimes, `start` inclusive and `end` exclusive.
`as_of` (a time) or `snapshot_id` read an older state of the lake. Whatever goes wrong is an
`ApiError`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final, Literal

import aiohttp
import orjson
import pyarrow as pa

from k2.client.http import Http, Time
from k2.client.rows import Rows
from k2.timeframes import Timeframe

Symbols = str | Iterable[str] | None
Order = Literal["asc", "desc"]
Table = Literal["trades", "quotes"]

#: Rows of one request; the rest follows by cursor.
_PAGE: Final = 10_000


class K2Client(Http):
    """A client of one server. `key`: its X-API-Key. `timeout_s`: without a byte from the server."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str = "",
        timeout_s: float = 60.0,
        connector: aiohttp.BaseConnector | None = None,
    ) -> None:
        super().__init__(url, key, timeout_s, connector)

    async def trades(self, symbols: Symbols = None, **options: Any) -> Rows:
        """Trades, newest first; `options` as of `pages`, and `limit` (1,000): over all pages."""
        return await self._records("trades", symbols, **options)

    async def quotes(self, symbols: Symbols = None, **options: Any) -> Rows:
        """Quotes, newest first; options as for `trades`."""
        return await self._records("quotes", symbols, **options)

    async def pages(
        self,
        table: Table,
        symbols: Symbols = None,
        *,
        exchange: str | None = None,
        start: Time | None = None,
        end: Time | None = None,
        order: Order = "desc",
        fields: Iterable[str] | None = None,
        as_of: Time | None = None,
        snapshot_id: int | str | None = None,
        page_rows: int = _PAGE,
    ) -> AsyncIterator[Rows]:
        """Every row of a question, page by page; neither lost nor doubled by what is written
        meanwhile."""
        given = {
            "symbols": _names(symbols),
            "exchange": exchange,
            "start_time": start,
            "end_time": end,
            "order": order,
            "fields": None if fields is None else list(fields),
            "as_of": as_of,
            "snapshot_id": _id_of(snapshot_id),
            "limit": page_rows,
        }
        async for page in self._paged("GET", f"/v1/{table}", given):
            yield page

    async def latest(
        self, table: Table = "trades", symbols: Symbols = None, *, as_of: Time | None = None
    ) -> Rows:
        """The last row of each symbol and exchange."""
        given = {"data_type": table, "symbols": _names(symbols), "as_of": as_of}
        return await self.rows("GET", "/v1/latest", given)

    async def asof(
        self,
        symbol: str,
        *,
        exchange: str | None = None,
        start: Time | None = None,
        end: Time | None = None,
        limit: int = 100,
        max_age_s: int | None = None,
        as_of: Time | None = None,
    ) -> Rows:
        """Trades, newest first, each with the quote in force when it happened."""
        given = {
            "symbol": symbol,
            "exchange": exchange,
            "start_time": start,
            "end_time": end,
            "limit": limit,
            "max_age_s": max_age_s,
            "as_of": as_of,
        }
        return await self.rows("GET", "/v1/asof", given)

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
        as_of: Time | None = None,
        snapshot_id: int | str | None = None,
    ) -> Rows:
        """Candles, newest first. `fill="forward"`: also windows without trades."""
        given = {
            "symbol": symbol,
            "exchange": exchange,
            "start_time": start,
            "end_time": end,
            "limit": limit,
            "fill": fill,
            "as_of": as_of,
            "snapshot_id": _id_of(snapshot_id),
        }
        return await self.rows("GET", f"/v1/ohlcv/{timeframe}", given)

    async def summary(
        self, symbol: str, day: dt.date | str, *, exchange: str | None = None
    ) -> Rows:
        """One UTC day as one row."""
        path = f"/v1/summary/{symbol}/{day}"
        return await self.rows("GET", path, {"exchange": exchange})

    async def symbols(self, *, exchange: str | None = None, as_of: Time | None = None) -> Rows:
        """Symbols with trades, and their exchanges."""
        return await self.rows("GET", "/v1/symbols", {"exchange": exchange, "as_of": as_of})

    async def sql(self, text: str, *, limit: int | None = None, as_of: Time | None = None) -> Rows:
        """One SELECT over the views; 1,000 rows unless `limit` says else."""
        given = {"sql": text, "limit": limit, "as_of": as_of}
        return await self.rows("POST", "/v1/sql", given)

    async def snapshots(
        self, table: Literal["trades", "quotes", "gaps"] = "trades", *, limit: int = 10
    ) -> Rows:
        """Snapshots to travel to, newest first."""
        return await self._listed("/v1/snapshots", {"table": table, "limit": limit})

    async def gaps(
        self,
        *,
        symbol: str | None = None,
        exchange: str | None = None,
        state: Literal["open", "closed", "all"] = "open",
        limit: int = 100,
    ) -> Rows:
        """Ids that never came, or came after all; newest first."""
        given = {"symbol": symbol, "exchange": exchange, "state": state, "limit": limit}
        return await self._listed("/v1/gaps", given)

    async def status(self) -> dict[str, Any]:
        """What the worker says of itself."""
        found: dict[str, Any] = (await self.json("GET", "/v1/status", {}))["data"]
        return found

    async def replay(
        self,
        table: Table,
        start: Time,
        end: Time,
        *,
        symbols: Symbols = None,
        exchange: str | None = None,
        snapshot_id: int | str | None = None,
        as_of: Time | None = None,
        batch_size: int = _PAGE,
    ) -> AsyncIterator[Rows]:
        """One snapshot's records in (timestamp, sequence) order, batch by batch.

        Which snapshot is decided once, at the first batch, and named by `as_of` of each.
        """
        given = {
            "data_type": table,
            "symbols": _names(symbols),
            "exchange": exchange,
            "start_time": start,
            "end_time": end,
            "snapshot_id": _id_of(snapshot_id),
            "as_of": as_of,
            "batch_size": batch_size,
        }
        async for batch in self._paged("POST", "/v1/replay", given):
            yield batch

    async def stream(
        self, data_type: str = "trades", symbols: Symbols = None, **options: Any
    ) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
        """What comes from now on: (`snapshot` or `rows`, the rows as JSON has them)."""
        given = {"data_type": data_type, "symbols": _names(symbols), **options}
        async for event, data in self.events("/v1/stream", given):
            if event in ("snapshot", "rows"):
                yield event, orjson.loads(data)["data"]

    async def _paged(self, method: str, path: str, given: dict[str, Any]) -> AsyncIterator[Rows]:
        cursor: str | None = None
        while True:
            page = await self.rows(method, path, {**given, "cursor": cursor})
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return

    async def _records(
        self, table: Table, symbols: Symbols, *, limit: int = 1_000, **options: Any
    ) -> Rows:
        found: list[Rows] = []
        left = limit
        options["page_rows"] = max(1, min(limit, _PAGE))
        async for page in self.pages(table, symbols, **options):
            found.append(page)
            left -= len(page)
            if left <= 0:
                break
        rows = pa.concat_tables([page.table for page in found]).slice(0, limit)
        # The first page says what was seen first; later ones may have seen more.
        whole = left >= 0 and found[-1].next_cursor
        return Rows(rows, found[0].as_of, any(page.partial for page in found), whole or None)

    async def _listed(self, path: str, given: dict[str, Any]) -> Rows:
        """Rows of an endpoint that has them in JSON only."""
        body = await self.json("GET", path, given)
        return Rows(pa.Table.from_pylist(body["data"]), body["meta"].get("as_of", {}))


def _id_of(snapshot: int | str | None) -> str | None:
    return None if snapshot is None else str(snapshot)


def _names(symbols: Symbols) -> list[str] | None:
    if symbols is None:
        return None
    return [symbols] if isinstance(symbols, str) else sorted(symbols)
