"""Trades and quotes: newest first or oldest first, filtered, page by page."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
from aiohttp import web

from k2.clock import SYSTEM_CLOCK
from k2.errors import InvalidParameter
from k2.lake.tables import QUOTES, TRADES, TableDef
from k2.query.answers import Answer, HotAnswer
from k2.query.asked import RecordsQuery
from k2.query.enrich import ENRICHED, Enrichment
from k2.query.filters import Between, OneOf, key_of
from k2.query.hot_rows import HotRows
from k2.query.lake_table import AsOf
from k2.web import cursor
from k2.web.context import CONTEXT
from k2.web.envelope import page
from k2.web.formats import (
    chosen,
    chosen_columns,
    hot_response,
    json_at_once,
    kept_response,
    rows_response,
)
from k2.web.models import (
    QuotesQuery,
    RecentRequest,
    RecordsRequest,
    SnapshotQuery,
    TradesQuery,
)

_TABLES: Final = {"trades": TRADES, "quotes": QUOTES}


async def trades(request: web.Request, given: RecordsRequest) -> web.StreamResponse:
    """GET /v1/trades."""
    return await _get(request, given, TRADES)


async def quotes(request: web.Request, given: RecordsRequest) -> web.StreamResponse:
    """GET /v1/quotes."""
    return await _get(request, given, QUOTES)


async def _get(request: web.Request, given: RecordsRequest, table: TableDef) -> web.StreamResponse:
    query = RecordsQuery(
        symbols=_either(given.symbol, given.symbols),
        exchanges=None if given.exchange is None else frozenset((given.exchange,)),
        start_us=given.start_time,
        end_us=given.end_time,
        limit=given.limit,
        time_column=table.time_column,
        newest_first=given.order == "desc",
    )
    question = given.model_dump(exclude={"cursor", "limit", "fields", "format"})
    return await respond(
        request, table, query, question=question, page_cursor=given.cursor, at=given.at,
        fields=given.fields, format_=given.format,
        # Up to an end that is given the answer hardly changes; the newest rows always do.
        max_age_s=0 if given.end_time is None else 5,
    )  # fmt: skip


def _either(one: str | None, several: frozenset[str] | None) -> frozenset[str] | None:
    if one is not None and several is not None:
        raise InvalidParameter("symbols", ",".join(sorted(several)), "symbol or symbols, not both")
    return several if one is None else frozenset((one,))


async def recent(request: web.Request, given: RecentRequest) -> web.StreamResponse:
    """GET /v1/trades/recent: the last minutes of one symbol, hot rows and cold ones."""
    # Whole seconds: within one the answer is the same until a trade comes.
    second = SYSTEM_CLOCK.now_us() // 1_000_000
    query = RecordsQuery(
        symbols=frozenset((given.symbol,)),
        exchanges=frozenset((given.exchange,)),
        start_us=(second - given.window_minutes * 60) * 1_000_000,
        limit=given.limit,
    )
    return await respond(
        request, TRADES, query, question=None, page_cursor=None, format_=given.format,
        more={"query": given.model_dump(exclude={"format"})}, moment=query.start_us,
    )  # fmt: skip


async def trades_query(request: web.Request, given: TradesQuery) -> web.StreamResponse:
    """POST /v1/trades/query."""
    filters: list[OneOf | Between] = []
    if given.sides is not None:
        filters.append(OneOf("side", frozenset(given.sides)))
    for column, low, high in (
        ("price", given.min_price, given.max_price),
        ("quantity", given.min_quantity, given.max_quantity),
    ):
        if low is not None and high is not None and low > high:
            raise InvalidParameter(f"min_{column}", str(low), f"at most max_{column} ({high})")
        if low is not None or high is not None:
            filters.append(Between(column, low, high))
    return await _post(request, given, TRADES, tuple(filters))


async def quotes_query(request: web.Request, given: QuotesQuery) -> web.StreamResponse:
    """POST /v1/quotes/query."""
    return await _post(request, given, QUOTES, ())


async def _post(
    request: web.Request,
    given: QuotesQuery,
    table: TableDef,
    filters: tuple[OneOf | Between, ...],
) -> web.StreamResponse:
    query = RecordsQuery(
        symbols=given.symbols,
        exchanges=given.exchanges,
        start_us=given.start_time,
        end_us=given.end_time,
        limit=given.limit,
        time_column=table.time_column,
        newest_first=given.order == "desc",
        filters=filters,
    )
    question = given.model_dump(exclude={"cursor", "limit", "offset", "fields", "format"})
    for name in ("symbols", "exchanges"):
        question[name] = sorted(question[name] or ())
    if given.cursor is not None and given.offset:
        raise InvalidParameter("offset", given.offset, "cursor or offset, not both")
    return await respond(
        request, table, query, question=question, page_cursor=given.cursor, at=given.at,
        fields=given.fields, format_=given.format, offset=given.offset,
    )  # fmt: skip


async def snapshot_query(request: web.Request, given: SnapshotQuery) -> web.StreamResponse:
    """POST /v1/snapshots/{id}/query: rows of one snapshot, for ever the same."""
    table = _TABLES[given.data_type]
    query = RecordsQuery(
        symbols=None if given.symbol is None else frozenset((given.symbol,)),
        exchanges=None if given.exchange is None else frozenset((given.exchange,)),
        start_us=given.start_time,
        end_us=given.end_time,
        limit=given.limit,
        newest_first=given.order == "desc",
    )
    return await respond(
        request, table, query, question=None, page_cursor=None, at=AsOf(snapshot_id=given.id),
        fields=given.fields, format_=given.format, offset=given.offset,
    )  # fmt: skip


async def respond(
    request: web.Request,
    table: TableDef,
    query: RecordsQuery,
    *,
    question: Any,
    page_cursor: str | None,
    at: AsOf | None = None,
    fields: tuple[str, ...] | None = None,
    format_: str | None = None,
    offset: int = 0,
    max_age_s: int = 0,
    more: dict[str, Any] | None = None,
    moment: int | None = None,
) -> web.StreamResponse:
    """One page. `question`: what a cursor is good for; None: pages have none.

    `moment`: what the clock made of the question.
    """
    question = {"table": table.name, "asked": question}
    after = None if page_cursor is None else cursor.decode(page_cursor, question)[0]
    limit = query.limit
    context = request.config_dict[CONTEXT]
    enrichment = context.enrichment
    columns = chosen_columns(fields, table.arrow_schema.names, ENRICHED if enrichment else ())
    # One more than asked for tells whether there is more.
    wanted = replace(query, limit=offset + limit + 1, after=after)
    facts = [name for name in columns if name in ENRICHED]
    same = None
    if at is None and not offset and not more and not facts:
        same = (table.name, wanted, limit, tuple(columns))
        asked = _Page(table, wanted, limit, question, same, fields is None, format_, max_age_s)
        async with context.queries.turns:
            known = _at_once(request, asked)
        if known is not None:
            return known

    def show(rows: pa.Table) -> pa.Table:
        return rows.slice(offset, limit).select(columns)

    as_json = None if facts else json_at_once(request, format_, limit, len(columns), show)
    found = await context.queries.records(table.name, wanted, at, as_json)
    rows = found.rows.slice(offset, limit)
    # Rows that were not read may come before any of these, so a cut answer has no place to go on
    # from, but it is not the end either.
    has_more = found.cut_short or found.rows.num_rows > offset + limit
    following = None
    if has_more and not found.cut_short and question["asked"] is not None:
        following = cursor.encode(question, key_of(rows, limit - 1, table.time_column))
    if enrichment is not None and facts:
        found, rows = await with_facts(enrichment, found, rows, facts)
    return await rows_response(
        request,
        replace(found, rows=rows.select(columns)),
        name=table.name,
        format=format_,
        pagination=page(limit, has_more, following, offset),
        more=more,
        max_age_s=max_age_s,
        question=same,
        moment=moment,
    )


@dataclass(frozen=True, slots=True)
class _Page:
    """A page that is asked for. `same`: what tells its answer from others; `whole`: all columns."""

    table: TableDef
    wanted: RecordsQuery
    limit: int
    question: Any
    same: Hashable
    whole: bool
    format: str | None
    max_age_s: int


def _at_once(request: web.Request, asked: _Page) -> web.StreamResponse | None:
    """The page where memory alone has it, or an answer kept from before; else None."""
    queries = request.config_dict[CONTEXT].queries
    if asked.whole and chosen(request, asked.format) == "json":
        hot = queries.hot_records(asked.table.name, asked.wanted)
        if hot is not None:
            return _hot_page(request, hot, asked)
    return kept_response(
        request, asked.table.name, asked.wanted.bounds, asked.same,
        format=asked.format, max_age_s=asked.max_age_s,
    )  # fmt: skip


def _hot_page(request: web.Request, found: HotAnswer[HotRows], asked: _Page) -> web.StreamResponse:
    """A full page of rows in memory, and the one behind it, which tells that there is more."""
    following = cursor.encode(asked.question, found.rows.key(asked.limit - 1))
    shown = replace(found, rows=found.rows.slice(0, asked.limit))
    pagination = page(asked.limit, True, following)
    return hot_response(request, shown, pagination=pagination, max_age_s=asked.max_age_s)


async def with_facts(
    enrichment: Enrichment, found: Answer, rows: pa.Table, names: Sequence[str]
) -> tuple[Answer, pa.Table]:
    """`rows` with what their instruments were then; the answer says what that was known from."""
    rows, seen = await enrichment.add(rows, names)
    # What is loaded later about then changes the answer, also the one of a fixed snapshot.
    return replace(found, as_of={**found.as_of, "instruments": seen}, fixed=False), rows
