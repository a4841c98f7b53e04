"""What the demo asks of its worker and of the exchange server, over their own HTTP interfaces."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any, Final, cast
from urllib.parse import urlencode

import aiohttp

from k2.cli.demo.processes import Child, ChildFailed
from k2.errors import ConfigError
from k2.pipeline.open_gaps import open_ranges

_GAPS: Final = (
    "select exchange, data_type, symbol, event, expected, received from gaps "
    "order by log_topic, log_partition, platform_sequence"
)


class WorkerClient:
    """The worker's HTTP interface at `base`."""

    def __init__(self, session: aiohttp.ClientSession, base: str, key: str) -> None:
        self.base = base
        self._session = session
        self._headers = {"X-API-Key": key}

    async def status(self) -> dict[str, Any]:
        """`data` of `/v1/status`. Raises `aiohttp.ClientError` while the worker is not there."""
        return cast("dict[str, Any]", await self._get("/v1/status"))

    async def ready(self) -> bool:
        async with self._session.get(f"{self.base}/health/ready") as answer:
            return answer.status == 200

    async def wait_ready(self, worker: Child, timeout_s: float) -> None:
        """Return when the worker serves. Raises `ChildFailed` when it ends or takes too long."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while asyncio.get_running_loop().time() < deadline:
            worker.check()
            try:
                if await self.ready():
                    return
            except aiohttp.ClientError:
                pass  # not listening yet; the deadline bounds it
            await asyncio.sleep(0.05)
        raise ChildFailed(
            f"the {worker.name} was not ready within {timeout_s:.0f} s:\n{worker.log_tail()}"
        )

    async def open_gaps(self) -> int:
        """Ranges of ids that never came, as the lake knows them."""
        events = await self._get(f"/v1/sql?{urlencode({'sql': _GAPS, 'limit': 100_000})}")
        return sum(len(ranges) for ranges in open_ranges(events).values())

    async def _get(self, path: str) -> Any:
        async with self._session.get(f"{self.base}{path}", headers=self._headers) as answer:
            answer.raise_for_status()
            body = await answer.json()
        return body["data"]


class ExchangeClient:
    """The exchange server's control interface at `base` (http://host:port)."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self.base = base
        self._session = session

    async def status(self) -> dict[str, Any]:
        async with self._session.get(f"{self.base}/k2/status") as answer:
            answer.raise_for_status()
            return cast("dict[str, Any]", await answer.json())

    async def wait_up(self, exchange: Child, timeout_s: float) -> None:
        """Return when the server answers. Raises `ChildFailed` when it ends or takes too long."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while asyncio.get_running_loop().time() < deadline:
            exchange.check()
            try:
                await self.status()
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)
            else:
                return
        raise ChildFailed(
            f"the {exchange.name} did not answer within {timeout_s:.0f} s:\n{exchange.log_tail()}"
        )


def free_port(preferred: int = 0, host: str = "127.0.0.1") -> int:
    """`preferred` when nobody listens there, else a port the system chooses.

    Raises `ConfigError` when `host` is no address of this machine.
    """
    try:
        (family, kind, _, _, address), *_ = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise _no_such_host(host, exc) from exc
    for port in (preferred, 0):
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address[0], port))
            except OSError as exc:
                if exc.errno == errno.EADDRNOTAVAIL:
                    raise _no_such_host(host, exc) from exc
                continue
            return int(probe.getsockname()[1])
    raise ChildFailed(f"no free port on {host}")


def _no_such_host(host: str, exc: OSError) -> ConfigError:
    return ConfigError(
        f"K2_API_HOST={host!r} is not an address of this machine ({exc.strerror}); allowed: one of "
        "its own, e.g. 127.0.0.1, or 0.0.0.0 for all of them",
        variable="K2_API_HOST",
    )
