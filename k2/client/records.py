"""Records: pages of them, filtered, of one snapshot, the last ones, in order again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, Final, Literal

import pyarrow as pa

from k2.client.http import Http, Time
from k2.client.parameters import Exact, Order, Side, Symbols, Table, id_text, listed, names
from k2.client.rows import Rows

#: Rows of one request; the rest follows by cursor.
_PAGE: Final = 10_000


class Records(Http):
    """Trades and quotes."""

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
            "symbols": names(symbols),
            "exchange": exchange,
            "start_time": start,
            "end_time": end,
            "order": order,
            "fields": listed(fields),
            "as_of": as_of,
            "snapshot_id": id_text(snapshot_id),
            "limit": page_rows,
        }
        async for page in self.paged("GET", f"/v1/{table}", given):
            yield page

    async def recent(
        self, symbol: str, exchange: str, *, window_minutes: int = 15, limit: int = 1_000
    ) -> Rows:
        """Trades of the last minutes, newest first."""
        given = {
            "symbol": symbol,
            "exchange": exchange,
            "window_minutes": window_minutes,
            "limit": limit,
        }
        return await self.rows("GET", "/v1/trades/recent", given)

    async def trades_query(
        self,
        symbols: Symbols = None,
        *,
        sides: Iterable[Side] | None = None,
        min_price: Exact | None = None,
        max_price: Exact | None = None,
        min_quantity: Exact | None = None,
        max_quantity: Exact | None = None,
        **options: Any,
    ) -> Rows:
        """Trades that pass every filter, bounds inclusive; `options` as of `quotes_query`."""
        filters = {
            "sides": listed(sides),
            "min_price": min_price,
            "max_price": max_price,
            "min_quantity": min_quantity,
            "max_quantity": max_quantity,
        }
        return await self._query("trades", symbols, filters, **options)

    async def quotes_query(self, symbols: Symbols = None, **options: Any) -> Rows:
        """Quotes of many symbols and `exchanges` in one scan, up to 100,000 a request.

        Also `start`, `end`, `fields`, `order`, `limit` (1,000), `as_of`, `snapshot_id`, and to go
        on `cursor` (the `next_cursor` of the answer before) or `offset`.
        """
        return await self._query("quotes", symbols, {}, **options)

    async def snapshot_query(
        self,
        snapshot_id: int | str,
        table: Table = "trades",
        *,
        symbol: str | None = None,
        exchange: str | None = None,
        start: Time | None = None,
        end: Time | None = None,
        fields: Iterable[str] | None = None,
        order: Order = "desc",
        limit: int = 1_000,
        offset: int = 0,
    ) -> Rows:
        """Rows of one snapshot, up to 100,000; for ever the same."""
        given = {
            "data_type": table,
            "symbol": symbol,
            "exchange": exchange,
            "start_time": start,
            "end_time": end,
            "fields": listed(fields),
            "order": order,
            "limit": limit,
            "offset": offset,
        }
        return await self.rows("POST", f"/v1/snapshots/{snapshot_id}/query", given)

    async def latest(
        self,
        table: Table | Literal["both"] = "trades",
        symbols: Symbols = None,
        *,
        as_of: Time | None = None,
    ) -> Rows:
        """The last row of each symbol and exchange; of `both` its `trade_…` and `quote_…` columns,
        null where there is none."""
        given = {"data_type": table, "symbols": names(symbols), "as_of": as_of}
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
            "symbols": names(symbols),
            "exchange": exchange,
            "start_time": start,
            "end_time": end,
            "snapshot_id": id_text(snapshot_id),
            "as_of": as_of,
            "batch_size": batch_size,
        }
        async for batch in self.paged("POST", "/v1/replay", given):
            yield batch

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

    async def _query(
        self,
        table: Table,
        symbols: Symbols,
        filters: dict[str, Any],
        *,
        exchanges: Symbols = None,
        start: Time | None = None,
        end: Time | None = None,
        fields: Iterable[str] | None = None,
        order: Order = "desc",
        limit: int = 1_000,
        offset: int = 0,
        cursor: str | None = None,
        as_of: Time | None = None,
        snapshot_id: int | str | None = None,
    ) -> Rows:
        given = {
            **filters,
            "symbols": names(symbols),
            "exchanges": names(exchanges),
            "start_time": start,
            "end_time": end,
            "fields": listed(fields),
            "order": order,
            "limit": limit,
            "offset": offset,
            "cursor": cursor,
            "as_of": as_of,
            "snapshot_id": id_text(snapshot_id),
        }
        return await self.rows("POST", f"/v1/{table}/query", given)
