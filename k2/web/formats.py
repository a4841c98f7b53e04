"""Rows as JSON, CSV, Parquet or an Arrow stream, encoded in threads and sent piece by piece."""

from __future__ import annotations

import asyncio
import csv
import datetime as dt
import hashlib
import io
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from aiohttp import web

from k2 import metrics
from k2.clock import SYSTEM_CLOCK
from k2.errors import InvalidParameter
from k2.query.answers import Answer, HotAnswer, Seen, Show
from k2.query.bounds import Bounds
from k2.query.encode import JSON_COLUMNS, rows_of
from k2.query.json_text import INLINE_CELLS, json_rows
from k2.web.context import CONTEXT, KeptPage
from k2.web.envelope import ROWS, answer, meta, page

Format = Literal["json", "csv", "parquet", "arrow"]

MEDIA_TYPES: Final[Mapping[str, str]] = {
    "json": "application/json",
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
    "arrow": "application/vnd.apache.arrow.stream",
}
_SUFFIX: Final = {"csv": "csv", "parquet": "parquet", "arrow": "arrows"}
#: Rows per piece: what an answer holds of its encoded form at once.
_PIECE_ROWS: Final = 4_096


def chosen(request: web.Request, given: str | None) -> Format:
    """`format`, else the first known type of `Accept`, else JSON."""
    if given is not None:
        return given  # type: ignore[return-value]
    for part in request.headers.get("Accept", "").split(","):
        wanted = part.partition(";")[0].strip().lower()
        for name, media_type in MEDIA_TYPES.items():
            if wanted == media_type:
                return name  # type: ignore[return-value]
    return "json"


def json_at_once(
    request: web.Request, given: str | None, rows: int, columns: int, show: Show
) -> Show | None:
    """`show`, where the engine is to make JSON of what it finds: so many values that the loop would
    be held up, few enough for one piece. None: `rows_response` makes it, if the client lacks it.
    """
    many = rows * columns > INLINE_CELLS and rows <= _PIECE_ROWS
    needed = chosen(request, given) == "json" and "If-None-Match" not in request.headers
    return show if many and needed else None


async def rows_response(
    request: web.Request,
    found: Answer,
    *,
    name: str,
    format: str | None,  # noqa: A002
    pagination: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
    max_age_s: int = 0,
    question: Hashable = None,
    moment: Hashable = None,
) -> web.StreamResponse:
    """The rows of an answer. 304 when the client has them already.

    `found.json`, where there is any, is of `found.rows`. `max_age_s`: how long an answer that may
    still change is good enough; one of a fixed snapshot is good for ever. `question`: what
    `kept_response` will be asked for. `moment`: what the clock made of the question, such as the
    end of its period.
    """
    shown = chosen(request, format)
    request[ROWS] = found.rows.num_rows
    headers = _headers(request, found, shown, max_age_s, moment)
    if _has(request, headers):
        return web.Response(status=304, headers=headers)
    facts = {**as_of(found), **(more or {})}
    pages = pagination or {**page(found.rows.num_rows, found.truncated)}
    if shown != "json":
        return await _stream(
            request, found.rows, shown, {**headers, **_facts(found, name, shown, pages)}
        )
    if found.rows.num_rows > _PIECE_ROWS:
        return await _stream_json(request, found.rows, pages, facts, headers)
    data = await _encoded(found.rows) if found.json is None else found.json
    if question is not None and found.read is not None and not found.cut_short:
        kept = KeptPage(data, found.rows.num_rows, pages, found.files_read)
        request.config_dict[CONTEXT].kept.put(question, found.read, kept, len(data))
    fragment = orjson.Fragment(data)
    return answer(request, fragment, pagination=pages, more=facts, headers=headers)


def kept_response(
    request: web.Request,
    table: str,
    bounds: Bounds,
    question: Hashable,
    *,
    format: str | None,  # noqa: A002
    max_age_s: int = 0,
    moment: Hashable = None,
) -> web.Response | None:
    """The answer that `rows_response` gave to the same question, if it would be the same again.

    `bounds`: of what the question reads of `table`.
    """
    context = request.config_dict[CONTEXT]
    if chosen(request, format) != "json":
        return None
    seen = context.queries.glance(table, bounds)
    if seen is None or seen.read is None:
        return None
    kept = context.kept.get(question, seen.read)
    (metrics.QUERY_CACHE_MISSES if kept is None else metrics.QUERY_CACHE_HITS).labels(
        "answers"
    ).inc()
    if kept is None:
        return None
    request[ROWS] = kept.rows
    headers = _headers(request, seen, "json", max_age_s, moment)
    if _has(request, headers):
        return web.Response(status=304, headers=headers)
    facts = as_of(replace(seen, files_read=None if kept.files_read is None else 0))
    data = orjson.Fragment(kept.data)
    return answer(request, data, pagination=kept.pagination, more=facts, headers=headers)


def hot_response(
    request: web.Request,
    found: HotAnswer[Any],
    *,
    pagination: Mapping[str, Any],
    max_age_s: int = 0,
) -> web.Response:
    """The same as JSON, of rows that were made JSON before."""
    request[ROWS] = len(found.rows)
    headers = _headers(request, found, "json", max_age_s)
    if _has(request, headers):
        return web.Response(status=304, headers=headers)
    data = orjson.Fragment(b"[" + b",".join(found.texts(found.rows)) + b"]")
    return answer(request, data, pagination=pagination, more=as_of(found), headers=headers)


def _headers(
    request: web.Request, found: Seen, shown: Format, max_age_s: int, moment: Hashable = None
) -> dict[str, str]:
    headers = {"Vary": "Accept, X-API-Key", **cache_headers(found, max_age_s)}
    if not (found.clock or found.cut_short):
        # What can be seen does not tell two answers apart that lack other rows, or that were made
        # at other times.
        headers["ETag"] = etag(request, found, shown, moment)
    return headers


def as_of(found: Seen) -> dict[str, Any]:
    """What of `meta` says which rows were seen, and how fresh they are."""
    facts: dict[str, Any] = {
        "as_of": found.as_of,
        "fresh_ms": _fresh_ms(found),
        "partial": found.partial,
    }
    if found.cut_short:
        facts["cut_short"] = "deadline"
    if found.files_read is not None:
        facts["files_read"] = found.files_read
    return facts


def _fresh_ms(found: Seen) -> dict[str, int | None]:
    """By table: how long ago the newest row came; not below 0, for an exchange's clock may lead."""
    now_us = SYSTEM_CLOCK.now_us()
    return {
        name: None if us is None else max(0, (now_us - us) // 1_000)
        for name, us in found.newest_us.items()
    }


def etag(request: web.Request, found: Seen, shown: str, moment: Hashable = None) -> str:
    """Changes with the question, the rows it could see, and the format."""
    asked = [request.path, sorted(request.query.items()), shown, moment]
    seen = orjson.dumps([*asked, found.as_of, found.partial], default=str)
    return f'"{hashlib.sha256(seen).hexdigest()[:24]}"'


def cache_headers(found: Seen, max_age_s: int) -> dict[str, str]:
    """How long an answer is good for whoever has it."""
    if found.partial or found.clock:
        return {"Cache-Control": "no-store"}
    if found.fixed:
        return {"Cache-Control": "private, max-age=86400, immutable"}
    return {"Cache-Control": f"private, max-age={max_age_s}" if max_age_s else "private, no-cache"}


def _has(request: web.Request, headers: Mapping[str, str]) -> bool:
    known = request.headers.get("If-None-Match", "")
    parts = [part.strip() for part in known.split(",")]
    return request.method == "GET" and headers.get("ETag") in parts


async def encoded(rows: pa.Table) -> orjson.Fragment:
    """JSON of rows; in a thread when there are many."""
    return orjson.Fragment(await _encoded(rows))


async def _encoded(rows: pa.Table) -> bytes:
    if rows.num_rows * rows.num_columns > INLINE_CELLS:
        return await asyncio.to_thread(_json_rows, rows)
    return _json_rows(rows)


def _json_rows(rows: pa.Table) -> bytes:
    return json_rows(rows, parse_json=JSON_COLUMNS)


def _facts(found: Answer, name: str, shown: str, pages: Mapping[str, Any]) -> dict[str, str]:
    """What the envelope would say, as headers."""
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    headers = {
        "Content-Type": MEDIA_TYPES[shown] + ("; charset=utf-8" if shown == "csv" else ""),
        "Content-Disposition": f'attachment; filename="{name}_{stamp}.{_SUFFIX[shown]}"',
        "X-Record-Count": str(found.rows.num_rows),
        "X-K2-As-Of": orjson.dumps(found.as_of).decode(),
        "X-K2-Fresh-Ms": orjson.dumps(_fresh_ms(found)).decode(),
        "X-K2-Partial": str(found.partial).lower(),
    }
    if pages.get("next_cursor"):
        headers["X-Next-Cursor"] = pages["next_cursor"]
    return headers


async def _stream(
    request: web.Request, rows: pa.Table, shown: str, headers: Mapping[str, str]
) -> web.StreamResponse:
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    await _send(response, _ENCODERS[shown](rows))
    return response


async def _stream_json(
    request: web.Request,
    rows: pa.Table,
    pages: Mapping[str, Any],
    facts: Mapping[str, Any],
    headers: Mapping[str, str],
) -> web.StreamResponse:
    end = orjson.dumps({"pagination": pages, "meta": meta(request, **facts)}, default=str)
    response = web.StreamResponse(headers={**headers, "Content-Type": MEDIA_TYPES["json"]})
    await response.prepare(request)
    await response.write(b'{"success":true,"data":[')
    await _send(response, _json_pieces(rows))
    await response.write(b"]," + end[1:])
    await response.write_eof()
    return response


async def _send(response: web.StreamResponse, pieces: Iterator[bytes]) -> None:
    """The next piece is encoded when the client has taken the one before."""
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        if piece:
            await response.write(piece)


def _slices(rows: pa.Table) -> Iterator[pa.Table]:
    for first in range(0, max(rows.num_rows, 1), _PIECE_ROWS):
        yield rows.slice(first, _PIECE_ROWS)


def _json_pieces(rows: pa.Table) -> Iterator[bytes]:
    for index, piece in enumerate(_slices(rows)):
        yield (b"," if index else b"") + _json_rows(piece)[1:-1]


def _csv(rows: pa.Table) -> Iterator[bytes]:
    """Header and lines; values as in JSON, lists and objects as JSON text, null empty."""
    for index, piece in enumerate(_slices(rows)):
        out = io.StringIO()
        records = rows_of(piece)
        names = list(records[0]) if records else piece.column_names
        writer = csv.writer(out, lineterminator="\r\n")
        if not index:
            writer.writerow(names)
        writer.writerows([_cell(value) for value in record.values()] for record in records)
        yield out.getvalue().encode()


def _cell(value: Any) -> Any:
    return orjson.dumps(value).decode() if isinstance(value, list | dict | bool) else value


class _Pipe(io.RawIOBase):
    """A file that is written at one end and taken from at the other."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        self._written += len(self._parts[-1])
        return len(self._parts[-1])

    def tell(self) -> int:
        return self._written

    def take(self) -> bytes:
        data, self._parts = b"".join(self._parts), []
        return data


def _arrow(rows: pa.Table) -> Iterator[bytes]:
    yield from _written(rows, pa.ipc.new_stream)


def _parquet(rows: pa.Table) -> Iterator[bytes]:
    yield from _written(
        rows, lambda pipe, schema: pq.ParquetWriter(pipe, schema, compression="zstd")
    )


def _written(rows: pa.Table, opened: Callable[[Any, pa.Schema], Any]) -> Iterator[bytes]:
    pipe = _Pipe()
    plain = rows.replace_schema_metadata(None)
    with opened(pipe, plain.schema) as writer:
        for piece in _slices(plain):
            if piece.num_rows:
                writer.write_table(piece)
                yield pipe.take()
    yield pipe.take()


_ENCODERS: Final[Mapping[str, Callable[[pa.Table], Iterator[bytes]]]] = {
    "csv": _csv,
    "parquet": _parquet,
    "arrow": _arrow,
}


def chosen_columns(
    fields: tuple[str, ...] | None, columns: list[str], more: Sequence[str] = ()
) -> list[str]:
    """The columns asked for, of `columns` and `more`, else `columns`.

    Raises `InvalidParameter` for one that is not there."""
    if fields is None:
        return columns
    allowed = [*columns, *more]
    wrong = next((name for name in fields if name not in allowed), None)
    if wrong is not None:
        raise InvalidParameter("fields", wrong, ", ".join(allowed))
    return list(fields)
