"""The endpoints: parameters in, one engine call, the envelope out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import orjson
import pyarrow as pa
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from k2.errors import InvalidParameter
from k2.lake.tables import QUOTES, TRADES, TableDef
from k2.query.encode import column_types, rows_of
from k2.query.engine import Answer
from k2.query.records import RecordsQuery
from k2.settings import LOCAL_API_KEY
from k2.web import page as live_page
from k2.web import params
from k2.web.context import CONTEXT
from k2.web.envelope import answer, page
from k2.web.middleware import ROWS

_DEFAULT_LIMIT: Final = 100
_MAX_LIMIT: Final = 10_000
_SQL_LIMIT: Final = 1_000
#: More rows than this are turned to JSON in a thread; fewer take the loop under 2 ms.
_INLINE_ROWS: Final = 200
_JSON_COLUMNS: Final = frozenset({"vendor_data"})


async def index(request: web.Request) -> web.Response:
    """GET /: the live page for a browser; else what this is and where things are."""
    context = request.config_dict[CONTEXT]
    if live_page.wanted(request):
        # The key of the local environment is in the documentation, so the page may have it.
        return live_page.page(LOCAL_API_KEY if context.api_key == LOCAL_API_KEY else "")
    links = {
        "trades": "/v1/trades",
        "quotes": "/v1/quotes",
        "symbols": "/v1/symbols",
        "sql": "/v1/sql",
        "status": "/v1/status",
        "health": "/health",
        "metrics": "/metrics",
        "faust": "/faust/",
    }
    return answer(request, {"name": "k2", "version": context.version, "links": links})


async def trades(request: web.Request) -> web.Response:
    """GET /v1/trades: the newest trades."""
    return await _records(request, TRADES)


async def quotes(request: web.Request) -> web.Response:
    """GET /v1/quotes: the newest quotes."""
    return await _records(request, QUOTES)


async def _records(request: web.Request, table: TableDef) -> web.Response:
    values = params.known(
        request.query, ("symbol", "exchange", "start_time", "end_time", "limit", "fields")
    )
    start_us, end_us = params.period(values)
    limit = params.integer(values, "limit", default=_DEFAULT_LIMIT, low=1, high=_MAX_LIMIT)
    fields = params.fields(values, table.arrow_schema.names)
    query = RecordsQuery(
        symbol=params.name_of(values, "symbol"),
        exchange=params.name_of(values, "exchange"),
        start_us=start_us,
        end_us=end_us,
        # One more than asked for tells whether there is more.
        limit=limit + 1,
        time_column=table.time_column,
    )
    found = await request.config_dict[CONTEXT].queries.records(table.name, query)
    rows = found.rows.slice(0, limit)
    data = await _encoded(rows if fields is None else rows.select(fields), _JSON_COLUMNS)
    request[ROWS] = rows.num_rows
    return answer(
        request,
        data,
        pagination=page(limit, found.rows.num_rows > limit),
        more={**_as_of(found), "files_read": found.files_read},
        # Up to an end that is given the answer hardly changes; the newest rows always do.
        cache="no-store" if end_us is None else "private, max-age=5",
    )


async def symbols(request: web.Request) -> web.Response:
    """GET /v1/symbols: every symbol with trades."""
    values = params.known(request.query, ("exchange",))
    exchange = params.name_of(values, "exchange")
    found = await request.config_dict[CONTEXT].queries.symbols("trades", exchange)
    names = sorted(set(found.rows["symbol"].to_pylist()))
    request[ROWS] = len(names)
    return answer(request, names, more=_as_of(found), cache="private, max-age=5")


async def sql_get(request: web.Request) -> web.Response:
    """GET /v1/sql: one SELECT in the parameter `sql`."""
    return await _sql(request, params.known(request.query, ("sql", "limit")))


async def sql_post(request: web.Request) -> web.Response:
    """POST /v1/sql: one SELECT in a JSON body {"sql": …, "limit": …}."""
    raw = await request.read()
    allowed = 'a JSON object {"sql": "SELECT …", "limit": 1000}'
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise InvalidParameter("body", raw[:100], allowed) from exc
    if not isinstance(body, dict):
        raise InvalidParameter("body", body, allowed)
    for name in body:
        if name not in ("sql", "limit"):
            raise InvalidParameter(name, body[name], "the fields sql, limit")
    return await _sql(request, body)


async def _sql(request: web.Request, values: Mapping[str, Any]) -> web.Response:
    context = request.config_dict[CONTEXT]
    text = values.get("sql")
    if not isinstance(text, str) or not text.strip():
        raise InvalidParameter("sql", text, "one SELECT statement")
    limit = params.integer(
        values,
        "limit",
        default=min(_SQL_LIMIT, context.max_rows),
        low=1,
        high=context.max_rows,
    )
    found = await context.queries.sql(text, limit=limit)
    request[ROWS] = found.rows.num_rows
    return answer(
        request,
        await _encoded(found.rows),
        pagination={**page(limit, found.truncated), "total": _total(found)},
        more={
            **_as_of(found),
            "truncated": found.truncated,
            "columns": column_types(found.rows),
        },
    )


def _total(found: Answer) -> int | None:
    return None if found.truncated else found.rows.num_rows


def _as_of(found: Answer) -> dict[str, Any]:
    return {"as_of": found.as_of, "partial": found.partial}


async def _encoded(rows: pa.Table, parse_json: frozenset[str] = frozenset()) -> orjson.Fragment:
    def encode() -> bytes:
        return orjson.dumps(rows_of(rows, parse_json=parse_json))

    large = rows.num_rows > _INLINE_ROWS
    return orjson.Fragment(await asyncio.to_thread(encode) if large else encode())


async def status(request: web.Request) -> web.Response:
    """GET /v1/status: level, roles, lag, and what a query would read now."""
    params.known(request.query, ())
    context = request.config_dict[CONTEXT]
    return answer(
        request,
        {**context.status(), "level": context.level(), "query": context.queries.status()},
    )


async def health(request: web.Request) -> web.Response:
    """GET /health, /health/ready: 503 unless every dependency can serve."""
    context = request.config_dict[CONTEXT]
    checks = context.checks()
    found = {check.status for check in checks}
    overall = next(s for s in ("unhealthy", "degraded", "healthy") if s in {*found, "healthy"})
    ready = overall != "unhealthy"
    data = {
        "status": overall,
        "live": True,
        "ready": ready,
        "version": context.version,
        "dependencies": [
            {
                "name": check.name,
                "status": check.status,
                "latency_ms": check.latency_ms,
                "message": check.message,
            }
            for check in checks
        ],
    }
    return answer(request, data, status=200 if ready else 503)


async def faust_pages(_request: web.Request) -> web.Response:
    """GET /faust: Faust's pages are at /faust/."""
    raise web.HTTPPermanentRedirect("/faust/")


async def live(request: web.Request) -> web.Response:
    """GET /health/live: the process answers."""
    return answer(request, {"status": "healthy", "live": True})


async def metrics(request: web.Request) -> web.Response:  # noqa: ARG001  aiohttp's signature
    """GET /metrics: Prometheus text."""
    body = await asyncio.to_thread(generate_latest)
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
