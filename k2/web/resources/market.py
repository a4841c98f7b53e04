"""Symbols, last rows, and trades with the quote in force."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson
import pyarrow as pa
from aiohttp import web

from k2.query.answers import Answer, HotAnswer, Seen
from k2.query.asked import RecordsQuery
from k2.query.asof import AsofJoin
from k2.query.encode import JSON_COLUMNS
from k2.query.engine import LatestHot
from k2.query.enrich import DESCRIBED
from k2.query.json_text import json_texts
from k2.query.last_row import Pair
from k2.web.context import CONTEXT
from k2.web.envelope import ROWS, answer, page
from k2.web.formats import (
    as_of,
    cache_headers,
    chosen,
    chosen_columns,
    hot_response,
    rows_response,
)
from k2.web.models import AsofRequest, LatestRequest, SymbolsRequest

_PAIR: Final = ("symbol", "exchange")
#: What the last rows of a pair are called, in the order of their tables.
_KINDS: Final = ("trade", "quote")
_FEW_ROWS: Final = 100


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
    return answer(request, names, more=as_of(found), headers=cache_headers(found, 5))


async def _described(
    request: web.Request, given: SymbolsRequest, found: Answer, fields: tuple[str, ...]
) -> web.StreamResponse:
    """Symbols with what they are now, or were at the time the lake is asked as of."""
    context = request.config_dict[CONTEXT]
    facts = DESCRIBED if context.enrichment else ()
    columns = chosen_columns(fields, found.rows.column_names, facts)
    wanted = [name for name in columns if name in facts]
    # Whole seconds: within one the answer is the same until something is loaded.
    at_us = given.as_of or context.now_us() // 1_000_000 * 1_000_000
    if context.enrichment is not None and wanted:
        rows, seen = await context.enrichment.describe(found.rows, wanted, at_us)
        found = replace(found, rows=rows, as_of={**found.as_of, "instruments": seen}, fixed=False)
    shown = replace(found, rows=found.rows.select(columns))
    return await rows_response(
        request, shown, name="symbols", format=given.format, moment=at_us if wanted else None
    )


async def latest(request: web.Request, given: LatestRequest) -> web.StreamResponse:
    """GET /v1/latest: the last trade and quote of each symbol and exchange."""
    queries = request.config_dict[CONTEXT].queries
    tables = ("trades", "quotes") if given.data_type == "both" else (given.data_type,)
    asked = ((table, given.symbols, given.at) for table in tables)
    if chosen(request, given.format) != "json":
        rows = await asyncio.gather(*(queries.latest(*one) for one in asked))
        flat = rows[0] if len(rows) == 1 else Answer(rows=_flat(rows), **_together(rows))
        return await rows_response(request, flat, name="latest", format=given.format)
    found = await asyncio.gather(*(queries.latest_at_hand(*one) for one in asked))
    if len(found) > 1:
        return _both(request, found, [await _by_pair(request, one) for one in found])
    only = found[0]
    if not isinstance(only, HotAnswer):
        return await rows_response(request, only, name="latest", format=given.format)
    async with queries.turns:
        return hot_response(request, only, pagination=page(len(only.rows), False))


def _both(
    request: web.Request, found: Sequence[Seen], texts: Sequence[Mapping[Pair, bytes]]
) -> web.Response:
    """The last trade and the last quote of each pair. `texts`: those as JSON."""
    rows = []
    for pair in sorted(set().union(*texts)):
        row: dict[str, Any] = dict(zip(_PAIR, pair, strict=True))
        for kind, known in zip(_KINDS, texts, strict=True):
            row[kind] = orjson.Fragment(known[pair]) if pair in known else None
        rows.append(row)
    request[ROWS] = len(rows)
    whole = Seen(**_together(found))
    return answer(
        request,
        rows,
        pagination=page(len(rows), False),
        more=as_of(whole),
        headers=cache_headers(whole, 0),
    )


async def _by_pair(request: web.Request, found: LatestHot | Answer) -> dict[Pair, bytes]:
    """Rows as JSON; in a thread when there are many: of a few the way there would take longer."""
    if isinstance(found, HotAnswer):
        async with request.config_dict[CONTEXT].queries.turns:
            texts = found.texts(found.rows)
        return {row.pair: text for row, text in zip(found.rows, texts, strict=True)}
    rows = found.rows
    if rows.num_rows <= _FEW_ROWS:
        texts = json_texts(rows, parse_json=JSON_COLUMNS)
    else:
        texts = await asyncio.to_thread(json_texts, rows, parse_json=JSON_COLUMNS)
    pairs = zip(*(rows[name].to_pylist() for name in _PAIR), strict=True)
    return dict(zip(pairs, texts, strict=True))


def _together(found: Sequence[Seen]) -> dict[str, Any]:
    """What an answer that was made of all of `found` is."""
    return {
        "as_of": {name: seen for one in found for name, seen in one.as_of.items()},
        "newest_us": {name: us for one in found for name, us in one.newest_us.items()},
        "partial": any(one.partial for one in found),
        "cut_short": any(one.cut_short for one in found),
    }


def _flat(found: Sequence[Answer]) -> pa.Table:
    """One row per symbol and exchange: columns `trade_…` and `quote_…`, null where there is none.

    Arrow's own join does not take the list of a trade's conditions.
    """
    places = [
        {tuple(keys.values()): at for at, keys in enumerate(one.rows.select(_PAIR).to_pylist())}
        for one in found
    ]
    pairs = sorted({pair for known in places for pair in known})
    made = {
        name: pa.array([pair[at] for pair in pairs], pa.string()) for at, name in enumerate(_PAIR)
    }
    for kind, one, known in zip(_KINDS, found, places, strict=True):
        rows = one.rows.take(pa.array([known.get(pair) for pair in pairs], pa.int64()))
        for name in rows.column_names:
            if name not in _PAIR:
                made[f"{kind}_{name}"] = rows[name]
    return pa.table(made)


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
