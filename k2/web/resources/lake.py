"""What the lake holds: snapshots to travel to, counts."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from pyiceberg.table.snapshots import Snapshot

from k2.times import iso_us
from k2.web.context import CONTEXT
from k2.web.envelope import ROWS, answer, page
from k2.web.models import SnapshotsRequest
from k2.web.types import Request

_SHOWN = ("added-records", "total-records", "added-data-files", "total-data-files")


async def snapshots(request: web.Request, given: SnapshotsRequest) -> web.StreamResponse:
    """GET /v1/snapshots: newest first; older ones thin out as they age."""
    queries = request.config_dict[CONTEXT].queries
    found = await queries.history(given.table, given.limit + 1)
    rows = [_snapshot(one) for one in found[: given.limit]]
    request[ROWS] = len(rows)
    headers = {"Cache-Control": "private, max-age=5"}
    pages = page(given.limit, len(found) > given.limit)
    return answer(request, rows, pagination=pages, headers=headers)


def _snapshot(one: Snapshot) -> dict[str, Any]:
    summary = one.summary
    counts = {
        name.replace("-", "_"): int(count)
        for name in _SHOWN
        if summary is not None and (count := summary.get(name)) is not None
    }
    return {
        # 64-bit ids do not survive JSON readers with floating-point numbers.
        "snapshot_id": str(one.snapshot_id),
        "parent_id": None if one.parent_snapshot_id is None else str(one.parent_snapshot_id),
        "timestamp": iso_us(one.timestamp_ms * 1_000),
        "operation": None if summary is None else summary.operation.value,
        "manifest_list": one.manifest_list.rsplit("/", 1)[-1],
        **counts,
    }


async def stats(request: web.Request, _given: Request) -> web.StreamResponse:
    """GET /v1/stats: rows, files and hot rows per table, and the query slots."""
    status = request.config_dict[CONTEXT].queries.status()
    tables = {
        name: table
        if "error" in table
        else {**table, "rows": table["cold_rows"] + table["hot_rows"]}
        for name, table in status["tables"].items()
    }
    return answer(request, {"tables": tables, "pool": status["pool"]})
