"""GET /v1/stream: the newest rows, then every new one as it can be queried; pushed.

Server-Sent Events, or a WebSocket where the request asks for one. Both carry the same messages:

- `snapshot`: the newest hot rows; after it comes whatever is newer, once, with no hole between;
- `rows`: new rows, at most `_MOST` at a time;
- `skipped`: so many rows were left out, the reader being too slow: it goes on with the newest;
- `heartbeat`: nothing new for `_HEARTBEAT_S`;
- `error`: it cannot go on, and why; nothing follows. A WebSocket closes with 1013 where asking
  again later is worth it, else with 1011.

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
from aiohttp import WSCloseCode, WSMsgType, web

from k2.clock import SYSTEM_CLOCK
from k2.errors import LakeError, Overloaded, QueryError, QueryTimeout
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
_AGAIN_S: Final = 5
#: A close frame has room for 125 bytes, two of which are its code.
_REASON_BYTES: Final = 123
_CLOCK: Final = SYSTEM_CLOCK


@dataclass
class Readers:
    """The tasks that push to somebody now."""

    tasks: set[asyncio.Task[Any]] = field(default_factory=set)


READERS: Final = web.AppKey("k2_stream_readers", Readers)

Send = Callable[[str, dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why pushing ended, when it was not the reader who ended it. `again`: worth asking again."""

    error: str
    message: str
    again: bool = False

    def body(self) -> dict[str, Any]:
        later = {"retry_after_s": _AGAIN_S} if self.again else {}
        return {"error": self.error, "message": self.message, **later}

    def close_code(self) -> int:
        return WSCloseCode.TRY_AGAIN_LATER if self.again else WSCloseCode.INTERNAL_ERROR

    def reason(self) -> bytes:
        """As much of the message as a close frame has room for."""
        return self.message.encode()[:_REASON_BYTES].decode(errors="ignore").encode()


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
        await response.write(
            b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(body) + b"\n\n"
        )

    await _push(request, given, send)
    return response


async def _websocket(request: web.Request, given: StreamRequest) -> web.StreamResponse:
    socket = web.WebSocketResponse(heartbeat=_HEARTBEAT_S, max_msg_size=4_096)
    await socket.prepare(request)

    async def send(kind: str, body: dict[str, Any]) -> None:
        await socket.send_str(orjson.dumps({"type": kind, **body}).decode())

    pushing = asyncio.create_task(_push(request, given, send))
    reading = asyncio.create_task(_read(socket))
    try:
        # Whichever ends first ends the other: a socket nobody pushes to would be silent for good.
        await asyncio.wait((pushing, reading), return_when=asyncio.FIRST_COMPLETED)
    finally:
        pushing.cancel()
        reading.cancel()
        ended, _ = await asyncio.gather(pushing, reading, return_exceptions=True)
        if isinstance(ended, Failure):
            await socket.close(code=ended.close_code(), message=ended.reason())
        else:
            await socket.close()
    return socket


async def _read(socket: web.WebSocketResponse) -> None:
    """Until the reader closes: answering its pings and closing frame needs somebody to listen."""
    async for message in socket:
        if message.type in (WSMsgType.ERROR, WSMsgType.CLOSE):
            return


async def _push(request: web.Request, given: StreamRequest, send: Send) -> Failure | None:
    """Send messages until the reader is gone, which is the normal end, or until something fails.

    Whatever fails is told in a last message: the answer has begun, so there can be no other one.
    """
    try:
        async for kind, body in _messages(request.config_dict[CONTEXT], given):
            if not await _sent(request, send, kind, body):
                return None
    except (QueryError, LakeError, Overloaded) as exc:
        again = isinstance(exc, Overloaded | QueryTimeout | LakeError)
        failure = Failure(exc.code, exc.message, again)
        log.warning("stream_failed", error=exc.code, message=exc.message)
    except Exception:
        # Whatever it is, the reader learns only the id under which the log tells more.
        failure = Failure("internal", "the stream failed; quote the correlation id when reporting")
        log.exception("stream_failed")
    await _sent(request, send, "error", failure.body())
    return failure


async def _sent(request: web.Request, send: Send, kind: str, body: dict[str, Any]) -> bool:
    """Whether the reader took it. One that takes nothing is cut off with what is still to write."""
    try:
        await asyncio.wait_for(send(kind, body), _WRITE_S)
    except (ConnectionError, TimeoutError) as exc:
        log.info("stream_ended", reason=str(exc) or "the reader takes nothing")
        if request.transport is not None:
            request.transport.abort()
        return False
    return True


async def _messages(
    context: ApiContext, given: StreamRequest
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    if given.data_type == "candles":
        async for message in _candle_messages(context, given):
            yield message
        return
    follower = Follower(given.symbols, _MOST)
    view = _view(context, given)
    newest = await asyncio.to_thread(follower.begin, view, given.snapshot)
    yield "snapshot", {"data": await _encoded(newest)}
    quiet_since_s = _CLOCK.monotonic_s()
    while True:
        await _CLOCK.sleep(_EVERY_S)
        newer = _view(context, given)
        if newer is view:
            if _CLOCK.monotonic_s() - quiet_since_s >= _HEARTBEAT_S:
                quiet_since_s = _CLOCK.monotonic_s()
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
            quiet_since_s = _CLOCK.monotonic_s()
            yield "rows", {"data": await _encoded(news.rows)}


async def _candle_messages(
    context: ApiContext, given: StreamRequest
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The newest candles, then each as it changes; from the start again for a slow reader."""
    follower = CandleFollower(
        context.queries, given.symbols, given.timeframe, context.exclude_conditions
    )
    yield "snapshot", {"data": await _encoded(await follower.begin(given.snapshot))}
    quiet_since_s = _CLOCK.monotonic_s()
    while True:
        await _CLOCK.sleep(_CANDLES_EVERY_S)
        changed = await follower.news()
        if changed is None:
            yield "snapshot", {"data": await _encoded(await follower.begin(given.snapshot))}
        elif changed.num_rows:
            yield "rows", {"data": await _encoded(changed)}
        elif _CLOCK.monotonic_s() - quiet_since_s < _HEARTBEAT_S:
            continue
        else:
            yield "heartbeat", {}
        quiet_since_s = _CLOCK.monotonic_s()


def _view(context: ApiContext, given: StreamRequest) -> TailView:
    return context.queries.tail(given.data_type)


async def _encoded(rows: Any) -> list[dict[str, Any]]:
    if rows.num_rows <= _INLINE_ROWS:
        return rows_of(rows, parse_json=JSON_COLUMNS)
    return await asyncio.to_thread(rows_of, rows, parse_json=JSON_COLUMNS)
