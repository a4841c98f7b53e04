"""Requests and answers of the client: what goes over the wire, and what its errors mean."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import orjson
import pyarrow as pa

from k2.client.rows import Rows
from k2.errors import (
    ApiAccessError,
    ApiBusyError,
    ApiError,
    ApiNotFoundError,
    ApiRequestError,
    ApiUnreachableError,
)

#: What a time may be given as: ISO 8601 text, microseconds since 1970, or an aware datetime.
Time = str | int | dt.datetime

_KINDS: Final[Mapping[int, type[ApiError]]] = {
    400: ApiRequestError,
    401: ApiAccessError,
    403: ApiAccessError,
    404: ApiNotFoundError,
    413: ApiRequestError,
    422: ApiRequestError,
    429: ApiBusyError,
    503: ApiBusyError,
    504: ApiBusyError,
}


class Http:
    """One connection pool to one server; an async context manager."""

    def __init__(
        self,
        url: str,
        key: str,
        timeout_s: float,
        connector: aiohttp.BaseConnector | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._key, self._timeout_s, self._connector = key, timeout_s, connector
        self._opened: aiohttp.ClientSession | None = None

    @property
    def _session(self) -> aiohttp.ClientSession:
        """Opened by the first request: a client may be made where no event loop runs yet."""
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                headers={"X-API-Key": self._key},
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=10, sock_read=self._timeout_s
                ),
                connector=self._connector,
            )
        return self._opened

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connections; the next request opens new ones."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()

    async def json(self, method: str, path: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer. Raises `ApiError`."""
        raw, _ = await self._ask(method, path, given, "application/json")
        body: dict[str, Any] = orjson.loads(raw)
        return body

    async def facts(self, path: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What an answer without rows says. Raises `ApiError`."""
        found: dict[str, Any] = (await self.json("GET", path, given or {}))["data"]
        return found

    async def rows(self, method: str, path: str, given: Mapping[str, Any]) -> Rows:
        """An answer with rows, sent as an Arrow stream. Raises `ApiError`."""
        raw, headers = await self._ask(method, path, given, "application/vnd.apache.arrow.stream")
        table = await asyncio.to_thread(_table, raw)
        return Rows(
            table,
            orjson.loads(headers.get("X-K2-As-Of", "{}")),
            headers.get("X-K2-Partial") == "true",
            headers.get("X-Next-Cursor"),
        )

    async def listed(self, method: str, path: str, given: Mapping[str, Any]) -> Rows:
        """Rows of an endpoint that has them in JSON only."""
        body = await self.json(method, path, given)
        meta = body["meta"]
        table = pa.Table.from_pylist(body["data"])
        return Rows(table, meta.get("as_of", {}), meta.get("partial", False))

    async def paged(self, method: str, path: str, given: Mapping[str, Any]) -> AsyncIterator[Rows]:
        """Every page, each where the one before ended. Raises `ApiError`."""
        cursor: str | None = None
        while True:
            page = await self.rows(method, path, {**given, "cursor": cursor})
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return

    async def events(self, path: str, given: Mapping[str, Any]) -> AsyncIterator[tuple[str, bytes]]:
        """(name, data) of server-sent events, until the server ends them. Raises `ApiError`."""
        params = {name: _text(_plain(value)) for name, value in given.items() if value is not None}
        try:
            async with self._session.get(
                self._url + path, params=params, headers={"Accept": "text/event-stream"}
            ) as answer:
                if answer.status != 200:
                    raise _error(answer, await answer.read())
                name = ""
                # Events may be longer than a line that aiohttp would take.
                async for line in _lines(answer.content):
                    if line.startswith(b"event: "):
                        name = line.removeprefix(b"event: ").decode()
                    elif line.startswith(b"data: "):
                        yield name, line.removeprefix(b"data: ")
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise self._unreachable(exc) from exc

    def _unreachable(self, exc: Exception) -> ApiUnreachableError:
        return ApiUnreachableError(
            f"{self._url} does not answer ({exc or type(exc).__name__}); is a worker with the "
            "role `query` running there?",
            url=self._url,
        )

    async def _ask(
        self, method: str, path: str, given: Mapping[str, Any], accept: str
    ) -> tuple[bytes, Mapping[str, str]]:
        values = {name: _plain(value) for name, value in given.items() if value is not None}
        options: dict[str, Any] = {"headers": {"Accept": accept}}
        if method == "GET":
            options["params"] = {name: _text(value) for name, value in values.items()}
        else:
            options["json"] = values
        try:
            async with self._session.request(method, self._url + path, **options) as answer:
                raw = await answer.read()
                if answer.status != 200:
                    raise _error(answer, raw)
                return raw, answer.headers
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise self._unreachable(exc) from exc


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    held = b""
    async for chunk in content.iter_any():
        *whole, held = (held + chunk).split(b"\n")
        for line in whole:
            yield line


def _table(raw: bytes) -> pa.Table:
    return pa.ipc.open_stream(raw).read_all()


def _plain(value: Any) -> Any:
    """A parameter as JSON has it."""
    if isinstance(value, dt.datetime):
        if value.tzinfo is None:
            raise ApiRequestError(
                f"{value} has no time zone; give an aware datetime, such as "
                "datetime(2024, 8, 8, tzinfo=UTC)"
            )
        return value.astimezone(dt.UTC).isoformat()
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items() if one is not None}
    if isinstance(value, set | frozenset | tuple | list):
        return [_plain(one) for one in value]
    return value


def _text(value: Any) -> str:
    """A parameter as a query string has it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _error(answer: aiohttp.ClientResponse, raw: bytes) -> ApiError:
    try:
        detail = dict(orjson.loads(raw)["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        detail = {"message": f"{answer.url} answered {answer.status} {answer.reason}"}
    message = str(detail.pop("message"))
    if "Retry-After" in answer.headers:
        detail["retry_after_s"] = float(answer.headers["Retry-After"])
    detail["correlation_id"] = answer.headers.get("X-Correlation-ID")
    kind = _KINDS.get(answer.status, ApiError)
    return kind(message, status=answer.status, **detail)
