"""GET /v1/stream: the newest rows, then every new one as it can be queried; pushed.

Server-Sent Events, or a WebSocket where the request asks for one. Both carry the same messages:

- `snapshot`: the newest hot rows; after it comes whatever is newer, once, with no hole between;
- `rows`: new rows, at most `_MOST` at a time;
- `skipped`: so many rows were left out, the reader being too slow: it goes on with the newest;
- `heartbeat`: nothing new for `_HEARTBEAT_S`.

Of candles, `rows` are those that have changed, as they are now; a reader that is too slow gets a
new `snapshot`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import structlog
from aiohttp import WSMsgType, web

from k2.errors import Overloaded
from k2.query.candle_stream import CandleFollower
from k2.query.encode import JSON_COLUMNS, rows_of
from k2.query.stream import Follower
from k2.query.tail import TailView
from k2.web.context import CONTEXT, ApiContext
from k2.web.models import StreamRequest

log = structlog.get_logger(__name__)

_EVERY_S: Final = 0.05
#: Between two looks at what has changed of candles.
_CANDLES_EVERY_S: Final = 0.2
_HEARTBEAT_S: Final = 10.0
_MOST: Final = 5_000
_MOST_READERS: Final = 200
_INLINE_ROWS: Final = 200
#: A reader that takes nothing for so long is gone.
_WRITE_S: Final = 30.0


@dataclass
class Readers:
    """The tasks that push to somebody now."""

    tasks: set[asyncio.Task[Any]] = field(default_factory=set)


READERS: Final = web.AppKey("k2_stream_readers", Readers)

Send = Callable[[str, dict[str, Any]], Awaitable[None]]


async def stream(request: web.Request, given: StreamRequest) -> web.StreamResponse:
    """Push until the reader goes away. Raises `Overloaded` when too many listen."""
    readers = request.config_dict[READERS].tasks
    if len(readers) >= _MOST_READERS:
        raise Overloaded(f"{len(readers)} readers listen already; try again later", retry_after_s=5)
    task = asyncio.current_task()
    assert task is not None
    readers.add(task)
    try:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await _websocket(request, given)
        return await _events(request, given)
    finally:
        readers.discard(task)


async def close_streams(app: web.Application) -> None:
    """Before the server stops: listeners must not hold it up."""
    for task in list(app[READERS].tasks):
        task.cancel()


async def _events(request: web.Request, given: StreamRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    response.content_type = "text/event-stream"
    await response.prepare(request)

    async def send(kind: str, body: dict[str, Any]) -> None:
        text = b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(body) + b"\n\n"
        await asyncio.wait_for(response.write(text), _WRITE_S)

    await _push(request, given, send)
    return response


async def _websocket(request: web.Request, given: StreamRequest) -> web.StreamResponse:
    socket = web.WebSocketResponse(heartbeat=_HEARTBEAT_S, max_msg_size=4_096)
    await socket.prepare(request)

    async def send(kind: str, body: dict[str, Any]) -> None:
        text = orjson.dumps({"type": kind, **body}).decode()
        await asyncio.wait_for(socket.send_str(text), _WRITE_S)

    pushing = asyncio.create_task(_push(request, given, send))
    try:
        async for message in socket:
            if message.type in (WSMsgType.ERROR, WSMsgType.CLOSE):
                break
    finally:
        pushing.cancel()
        await asyncio.gather(pushing, return_exceptions=True)
        await socket.close()
    return socket


async def _push(request: web.Request, given: StreamRequest, send: Send) -> None:
    """Send messages until the reader is gone: a connection that ends is the normal end."""
    try:
        async for kind, body in _messages(request.config_dict[CONTEXT], given):
            await send(kind, body)
    except (ConnectionError, TimeoutError) as exc:
        log.info("stream_ended", reason=str(exc) or "the reader takes nothing")


async def _messages(
    context: ApiContext, given: StreamRequest
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    if given.data_type == "candles":
        async for message in _candle_messages(context, given):
            yield message
        return
    loop = asyncio.get_running_loop()
    follower = Follower(given.symbols, _MOST)
    view = _view(context, given)
    newest = await asyncio.to_thread(follower.begin, view, given.snapshot)
    yield "snapshot", {"data": await _encoded(newest)}
    quiet_since_s = loop.time()
    while True:
        await asyncio.sleep(_EVERY_S)
        newer = _view(context, given)
        if newer is view:
            if loop.time() - quiet_since_s >= _HEARTBEAT_S:
                quiet_since_s = loop.time()
                yield "heartbeat", {}
            continue
        view = newer
        if follower.waiting(view) <= _INLINE_ROWS:
            news = follower.news(view)
        else:
            news = await asyncio.to_thread(follower.news, view)
        if news.skipped:
            yield "skipped", {"count": news.skipped}
        if news.rows.num_rows:
            quiet_since_s = loop.time()
            yield "rows", {"data": await _encoded(news.rows)}


async def _candle_messages(
    context: ApiContext, given: StreamRequest
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The newest candles, then each as it changes; from the start again for a slow reader."""
    loop = asyncio.get_running_loop()
    follower = CandleFollower(
        context.queries, given.symbols, given.timeframe, context.exclude_conditions
    )
    yield "snapshot", {"data": await _encoded(await follower.begin(given.snapshot))}
    quiet_since_s = loop.time()
    while True:
        await asyncio.sleep(_CANDLES_EVERY_S)
        changed = await follower.news()
        if changed is None:
            yield "snapshot", {"data": await _encoded(await follower.begin(given.snapshot))}
        elif changed.num_rows:
            yield "rows", {"data": await _encoded(changed)}
        elif loop.time() - quiet_since_s < _HEARTBEAT_S:
            continue
        else:
            yield "heartbeat", {}
        quiet_since_s = loop.time()


def _view(context: ApiContext, given: StreamRequest) -> TailView:
    return context.queries.tail(given.data_type)


async def _encoded(rows: Any) -> list[dict[str, Any]]:
    if rows.num_rows <= _INLINE_ROWS:
        return rows_of(rows, parse_json=JSON_COLUMNS)
    return await asyncio.to_thread(rows_of, rows, parse_json=JSON_COLUMNS)
