"""A TCP proxy that fails on demand: down, slow, silent, torn, deaf to answers, or answering 500.

For tests and the fault harness: it stands before a registry, a catalog, a store or an exchange.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Final, Self

_CHUNK: Final = 65_536
_SERVER_ERROR: Final = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n"
    b"Content-Type: application/json\r\nConnection: close\r\n\r\n{}"
)


@dataclass(slots=True)
class Behaviour:
    """What the proxy does to connections from now on; `swallowed` counts answers it dropped.

    `down`: no connection lives. `delay_s`: before each piece of an answer. `error_500`: every
    request gets an HTTP 500 without reaching the server. `swallow`: after a request that contains
    these bytes the answer is waited for and dropped, the connection with it, `swallow_left` times.
    `tear_after`: bytes of answers after which the connection is dropped, once.
    """

    down: bool = False
    delay_s: float = 0.0
    error_500: bool = False
    swallow: bytes = b""
    swallow_left: int = 0
    swallowed: int = 0
    tear_after: int | None = None


@dataclass(slots=True, eq=False)
class _Link:
    """One client's connection through the proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    swallowing: bool = False


@dataclass(eq=False)
class TcpProxy:
    """Forwards `127.0.0.1:port` (0: a free one, see after `start`) to `target_port`."""

    target_port: int
    port: int = 0
    behaviour: Behaviour = field(default_factory=Behaviour)
    _links: set[_Link] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Drop every connection and stop listening."""
        if self._server is not None:
            self._server.close()
            self.drop()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._server.wait_closed(), 2.0)
            self._server = None

    def behave(self, behaviour: Behaviour | None = None) -> None:
        """Misbehave from now on; None: forward faithfully again. Cuts what a fault concerns."""
        self.behaviour = behaviour or Behaviour()
        if self.behaviour.down or self.behaviour.error_500:
            self.drop()

    def drop(self) -> None:
        """Cut every connection."""
        for link in tuple(self._links):
            link.client.close()
            link.server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.behaviour.down:
            writer.close()
            return
        if self.behaviour.error_500:
            await self._refuse(reader, writer)
            return
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.close()
            return
        link = _Link(writer, to_server)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._requests(reader, link))
                group.create_task(self._answers(from_server, link))
        finally:
            self._links.discard(link)
            writer.close()
            to_server.close()

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            if await reader.read(_CHUNK):
                writer.write(_SERVER_ERROR)
                await writer.drain()
        writer.close()

    async def _requests(self, reader: asyncio.StreamReader, link: _Link) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                state = self.behaviour
                if state.swallow_left > 0 and state.swallow in data:
                    state.swallow_left -= 1
                    link.swallowing = True
                link.server.write(data)
                await link.server.drain()
        link.server.close()

    async def _answers(self, reader: asyncio.StreamReader, link: _Link) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                state = self.behaviour
                if link.swallowing:
                    # The server has answered, so what was asked for is done.
                    state.swallowed += 1
                    break
                if state.delay_s:
                    await asyncio.sleep(state.delay_s)
                if state.tear_after is not None:
                    data, torn = data[: state.tear_after], len(data) > state.tear_after
                    state.tear_after = None if torn else state.tear_after - len(data)
                    link.client.write(data)
                    await link.client.drain()
                    if torn:
                        break
                    continue
                link.client.write(data)
                await link.client.drain()
        link.client.close()
        link.server.close()
