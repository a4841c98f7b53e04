"""SQL over the public views."""

from __future__ import annotations

from aiohttp import web

from k2.errors import InvalidParameter
from k2.query.encode import column_types
from k2.web.context import CONTEXT
from k2.web.envelope import page
from k2.web.formats import rows_response
from k2.web.models import SqlRequest

_DEFAULT_ROWS = 1_000


async def sql(request: web.Request, given: SqlRequest) -> web.StreamResponse:
    """GET, POST /v1/sql: one SELECT."""
    context = request.config_dict[CONTEXT]
    if not given.sql.strip():
        raise InvalidParameter("sql", given.sql, "one SELECT statement")
    limit = min(_DEFAULT_ROWS, context.max_rows) if given.limit is None else given.limit
    if not 1 <= limit <= context.max_rows:
        raise InvalidParameter("limit", limit, f"a whole number from 1 to {context.max_rows}")
    found = await context.queries.sql(given.sql, limit=limit, at=given.at)
    total = None if found.truncated else found.rows.num_rows
    return await rows_response(
        request, found, name="sql", format=given.format,
        pagination={**page(limit, found.truncated), "total": total},
        more={"truncated": found.truncated, "columns": column_types(found.rows)},
    )  # fmt: skip
