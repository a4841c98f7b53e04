"""WebSocket connections, as the session needs them."""

from __future__ import annotations

import enum
import ssl
import struct
from pathlib import Path
from typing import Protocol

import aiohttp
from aiohttp import WSCloseCode, WSMsgType

from k2.errors import ConfigError, SourceError

#: A frame above this ends the connection; below it, a frame above the session's limit is only
#: refused. It is what one frame may cost in memory.
FRAME_CEILING_BYTES = 32 * 1024 * 1024


class Event(enum.Enum):
    """What a socket can bring."""

    FRAME = enum.auto()
    PING = enum.auto()
    PONG = enum.auto()
    CLOSED = enum.auto()
    TOO_LARGE = enum.auto()
    ERROR = enum.auto()


class Socket(Protocol):
    """An open WebSocket."""

    async def receive(self) -> tuple[Event, bytes]:
        """The next event with its data: the frame's bytes, or text saying what happened."""

    async def send(self, text: str) -> None:
        """Send one text frame. Raises `ConnectionError` when the socket is gone."""

    async def ping(self) -> None:
        """Send a ping. Raises `ConnectionError` when the socket is gone."""

    async def say_goodbye(self) -> None:
        """Send close 1000 and go on receiving: frames under way still come, then CLOSED."""

    async def close(self) -> None:
        """Be done with it, whatever its state."""


class Connector(Protocol):
    """Opens sockets."""

    async def connect(self, url: str) -> Socket:
        """Raises `SourceError`; its `retry_after_s` detail, if any, is the exchange's wish."""

    async def close(self) -> None:
        """Free what the sockets shared."""


class AiohttpConnector:
    """aiohttp's client, TLS verified unless told otherwise."""

    def __init__(
        self, *, ssl_verify: bool = True, ca_bundle: str = "", prefix: str = "K2_BINANCE_"
    ) -> None:
        self._variable = f"{prefix}CUSTOM_CA_BUNDLE"
        self._ssl = _ssl_context(ssl_verify, ca_bundle, self._variable)
        self._session: aiohttp.ClientSession | None = None

    async def connect(self, url: str) -> Socket:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        try:
            ws = await self._session.ws_connect(
                url,
                autoclose=False,
                autoping=False,
                # Bytes as they came: a frame that is not UTF-8 is the mapper's to refuse, not a
                # reason to lose the connection.
                decode_text=False,
                max_msg_size=FRAME_CEILING_BYTES,
                ssl=self._ssl,
                timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
            )
        except aiohttp.WSServerHandshakeError as exc:
            wish = exc.headers.get("Retry-After", "") if exc.headers else ""
            raise SourceError(
                f"{url} answered {exc.status} instead of opening a WebSocket",
                url=url,
                status=exc.status,
                retry_after_s=float(wish) if wish.isdigit() else 0.0,
            ) from exc
        except aiohttp.ClientConnectorCertificateError as exc:
            raise SourceError(
                f"{url}: certificate refused ({exc.certificate_error}); for a private authority "
                f"set {self._variable}",
                url=url,
            ) from exc
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise SourceError(f"{url} cannot be reached: {exc}", url=url) from exc
        return _AiohttpSocket(ws)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


class _AiohttpSocket:
    def __init__(self, ws: aiohttp.ClientWebSocketResponse[bool]) -> None:
        self._ws = ws

    async def receive(self) -> tuple[Event, bytes]:
        message = await self._ws.receive()
        kind = message.type
        if kind is WSMsgType.TEXT or kind is WSMsgType.BINARY:
            return Event.FRAME, message.data
        if kind is WSMsgType.PING:
            return await self._answer(message.data)
        if kind is WSMsgType.PONG:
            return Event.PONG, b""
        if kind is WSMsgType.ERROR:
            too_large = self._ws.close_code == WSCloseCode.MESSAGE_TOO_BIG
            return Event.TOO_LARGE if too_large else Event.ERROR, str(message.data).encode()
        return Event.CLOSED, f"close code {self._ws.close_code}".encode()

    async def _answer(self, payload: bytes) -> tuple[Event, bytes]:
        try:
            await self._ws.pong(payload)
        except ConnectionError as exc:
            return Event.CLOSED, str(exc).encode()
        return Event.PING, b""

    async def send(self, text: str) -> None:
        await self._ws.send_str(text)

    async def ping(self) -> None:
        await self._ws.ping()

    async def say_goodbye(self) -> None:
        # `ws.close()` would throw away the frames that are still under way.
        await self._ws.send_frame(struct.pack("!H", WSCloseCode.OK), WSMsgType.CLOSE)

    async def close(self) -> None:
        await self._ws.close()


def _ssl_context(verify: bool, ca_bundle: str, variable: str) -> ssl.SSLContext | bool:
    if not verify:
        return False
    if not ca_bundle:
        return True
    if not Path(ca_bundle).is_file():
        raise ConfigError(
            f"{variable}={ca_bundle!r}: no such file; give a PEM file of certificates",
            variable=variable,
        )
    try:
        return ssl.create_default_context(cafile=ca_bundle)
    except ssl.SSLError as exc:
        raise ConfigError(
            f"{variable}={ca_bundle!r} holds no usable certificates: {exc}",
            variable=variable,
        ) from exc
