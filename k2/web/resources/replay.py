"""Replay: one snapshot's records in (timestamp, sequence) order, batch by batch."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final

from aiohttp import web

from k2.errors import InvalidParameter, QueryTimeout, SnapshotNotFoundError
from k2.lake.tables import QUOTES, TRADES
from k2.query.asked import RecordsQuery
from k2.query.bounds import Bounds
from k2.query.filters import key_of
from k2.query.lake_table import AsOf
from k2.web import cursor
from k2.web.context import CONTEXT
from k2.web.formats import rows_response
from k2.web.models import ReplayRequest

_TABLES: Final = {"trades": TRADES, "quotes": QUOTES}
_COUNT: Final = """
SELECT count(*) AS n FROM {table}
WHERE (?::VARCHAR[] IS NULL OR symbol IN (SELECT unnest(?::VARCHAR[])))
  AND (?::VARCHAR IS NULL OR exchange = ?::VARCHAR)
  AND timestamp >= make_timestamptz(?::BIGINT) AND timestamp < make_timestamptz(?::BIGINT)
"""


async def replay(request: web.Request, given: ReplayRequest) -> web.StreamResponse:
    """POST /v1/replay: the cursor holds on to the snapshot, whatever is written meanwhile."""
    queries = request.config_dict[CONTEXT].queries
    table = _TABLES[given.data_type]
    if given.snapshot_id is not None and given.as_of is not None:
        raise InvalidParameter("as_of", str(given.as_of), "as_of or snapshot_id, not both")
    if given.symbol is not None and given.symbols is not None:
        raise InvalidParameter("symbols", sorted(given.symbols), "symbol or symbols, not both")
    symbols = given.symbols if given.symbol is None else frozenset((given.symbol,))
    question = [table.name, sorted(symbols or ()), given.exchange, given.start_time, given.end_time]
    facts: dict[str, Any] = {"b": 0, "sent": 0}
    after = None
    if given.cursor is not None:
        after, facts = cursor.decode(given.cursor, question)
    at = AsOf(snapshot_id=await _snapshot(request, given, facts))
    if "total" not in facts:
        bounds = {table.name: Bounds(symbols, given.start_time, given.end_time)}
        names = None if symbols is None else sorted(symbols)
        values = [names, names, given.exchange, given.exchange, given.start_time, given.end_time]
        text = _COUNT.format(table=table.name)
        counted = await queries.fixed("replay", text, values, bounds, limit=1, at=at)
        facts["total"] = counted.rows["n"][0].as_py()
    query = RecordsQuery(
        symbols=symbols,
        exchanges=None if given.exchange is None else frozenset((given.exchange,)),
        start_us=given.start_time,
        end_us=given.end_time,
        limit=given.batch_size + 1,
        newest_first=False,
        after=after,
    )
    found = await queries.records(table.name, query, at)
    if found.cut_short:
        # Rows may be missing anywhere in the batch; a replay goes on behind it.
        raise QueryTimeout(
            f"the batch was not read within the deadline; take the same cursor again, with a "
            f"smaller batch_size than {given.batch_size} or a shorter period",
            batch_size=given.batch_size,
        )
    rows = found.rows.slice(0, given.batch_size)
    number, sent, total = facts["b"] + 1, facts["sent"] + rows.num_rows, facts["total"]
    following = None
    if found.rows.num_rows > given.batch_size:
        key = key_of(rows, rows.num_rows - 1, table.time_column)
        following = cursor.encode(
            question, key, b=number, sent=sent, total=total, s=str(at.snapshot_id)
        )
    info = {
        "batch_number": number,
        "batch_size": rows.num_rows,
        "total_records": total,
        "progress_percent": round(100 * sent / total, 2) if total else 100.0,
    }
    pages = {
        "limit": given.batch_size,
        "offset": sent - rows.num_rows,
        "total": total,
        "has_more": following is not None,
        "next_cursor": following,
    }
    return await rows_response(
        request, replace(found, rows=rows), name="replay", format=given.format,
        pagination=pages, more={"batch_info": info, "snapshot_id": str(at.snapshot_id)},
    )  # fmt: skip


async def _snapshot(request: web.Request, given: ReplayRequest, facts: dict[str, Any]) -> int:
    """The cursor's snapshot, the one asked for, or the newest."""
    if "s" in facts:
        held = facts["s"]
        if not _sound(facts):
            raise InvalidParameter("cursor", given.cursor, "the cursor of the batch before")
        if given.snapshot_id is not None and str(given.snapshot_id) != held:
            raise InvalidParameter("snapshot_id", str(given.snapshot_id), f"{held}, the cursor's")
        return int(held)
    if given.cursor is not None:
        raise InvalidParameter("cursor", given.cursor, "the cursor of the batch before")
    if given.snapshot_id is not None:
        return given.snapshot_id
    if given.as_of is not None:
        return await _snapshot_at(request, given.data_type, given.as_of)
    newest = await request.config_dict[CONTEXT].queries.history(given.data_type, 1)
    if not newest:
        raise SnapshotNotFoundError(
            f"{given.data_type} has no snapshot yet; the sink commits every few seconds"
        )
    return int(newest[0].snapshot_id)


async def _snapshot_at(request: web.Request, table: str, time_us: int) -> int:
    """The snapshot current at a time; asked for once, for later others may stand for that time."""
    queries = request.config_dict[CONTEXT].queries
    pinned = await asyncio.to_thread(queries.pin, table, AsOf(time_ms=time_us // 1_000))
    found = pinned.snapshot.snapshot_id
    if found is None:
        raise SnapshotNotFoundError(f"{table} has no snapshot yet")
    return int(found)


def _sound(facts: dict[str, Any]) -> bool:
    counts = [facts.get(name) for name in ("b", "sent", "total")]
    held = facts["s"]
    return (
        isinstance(held, str)
        and held.isascii()
        and held.isdigit()
        and 0 < int(held) < 2**63
        and all(type(count) is int and 0 <= count < 2**62 for count in counts)
    )
