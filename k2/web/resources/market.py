"""Symbols, last rows, and trades with the quote in force."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from aiohttp import web

from k2.query.asked import RecordsQuery
from k2.query.asof import AsofJoin
from k2.query.encode import JSON_COLUMNS, rows_of
from k2.query.engine import Answer
from k2.query.enrich import DESCRIBED
from k2.web.context import CONTEXT
from k2.web.envelope import ROWS, answer, page
from k2.web.formats import as_of, chosen, chosen_columns, rows_response
from k2.web.models import AsofRequest, LatestRequest, SymbolsRequest


async def symbols(request: web.Request, given: SymbolsRequest) -> web.StreamResponse:
    """GET /v1/symbols: every symbol with trades."""
    queries = request.config_dict[CONTEXT].queries
    found = await queries.symbols("trades", given.exchange, given.at)
    if given.fields is not None:
        return await _described(request, given, found, given.fields)
    if chosen(request, given.format) != "json":
        return await rows_response(request, found, name="symbols", format=given.format)
    names = sorted(set(found.rows["symbol"].to_pylist()))
    request[ROWS] = len(names)
    headers = {"Cache-Control": "private, max-age=5"}
    return answer(request, names, more=as_of(found), headers=headers)


async def _described(
    request: web.Request, given: SymbolsRequest, found: Answer, fields: tuple[str, ...]
) -> web.StreamResponse:
    """Symbols with what they are now, or were at the time the lake is asked as of."""
    context = request.config_dict[CONTEXT]
    facts = DESCRIBED if context.enrichment else ()
    columns = chosen_columns(fields, found.rows.column_names, facts)
    wanted = [name for name in columns if name in facts]
    if context.enrichment is not None and wanted:
        at_us = given.as_of or context.now_us()
        rows, seen = await context.enrichment.describe(found.rows, wanted, at_us)
        found = replace(found, rows=rows, as_of={**found.as_of, "instruments": seen}, fixed=False)
    shown = replace(found, rows=found.rows.select(columns))
    return await rows_response(request, shown, name="symbols", format=given.format)


async def latest(request: web.Request, given: LatestRequest) -> web.StreamResponse:
    """GET /v1/latest: the last trade and quote of each symbol and exchange."""
    queries = request.config_dict[CONTEXT].queries
    tables = ("trades", "quotes") if given.data_type == "both" else (given.data_type,)
    found = await asyncio.gather(
        *(queries.latest(table, given.symbols, given.at) for table in tables)
    )
    if len(found) == 1:
        return await rows_response(request, found[0], name="latest", format=given.format)
    both: dict[tuple[str, str], dict[str, object]] = {}
    for table, one in zip(("trade", "quote"), found, strict=True):
        for row in await asyncio.to_thread(rows_of, one.rows, parse_json=JSON_COLUMNS):
            pair = (row["symbol"], row["exchange"])
            blank = {"symbol": pair[0], "exchange": pair[1], "trade": None, "quote": None}
            both.setdefault(pair, blank)[table] = row
    rows = [both[pair] for pair in sorted(both)]
    request[ROWS] = len(rows)
    seen = {**found[0].as_of, **found[1].as_of}
    facts = {"as_of": seen, "partial": any(one.partial for one in found)}
    headers = {"Cache-Control": "private, no-cache"}
    return answer(request, rows, pagination=page(len(rows), False), more=facts, headers=headers)


async def asof(request: web.Request, given: AsofRequest) -> web.StreamResponse:
    """GET /v1/asof: trades, newest first, each with the quote in force when it happened."""
    query = RecordsQuery(
        symbols=frozenset((given.symbol,)),
        exchanges=None if given.exchange is None else frozenset((given.exchange,)),
        start_us=given.start_time,
        end_us=given.end_time,
        limit=given.limit,
    )
    work = AsofJoin(query, given.symbol, given.max_age_s * 1_000_000)
    queries = request.config_dict[CONTEXT].queries
    found = await queries.call("asof", ("trades", "quotes"), work, given.at)
    return await rows_response(request, found, name="asof", format=given.format)
