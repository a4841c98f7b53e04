"""The exchange server's HTTP side: Binance's REST basics, and its own control interface."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from k2.errors import InvalidParameter
from k2.exchange.faults import parse_fault
from k2.sources.symbols import split_symbol

if TYPE_CHECKING:
    from k2.exchange.server import ExchangeServer


def market_routes(server: ExchangeServer) -> list[web.RouteDef]:
    """`/api/v3/ping`, `/api/v3/time` and a minimal `/api/v3/exchangeInfo`."""

    async def ping(_: web.Request) -> web.Response:
        return web.json_response({})

    async def time(_: web.Request) -> web.Response:
        return web.json_response({"serverTime": server.clock.now_us() // 1_000})

    async def exchange_info(_: web.Request) -> web.Response:
        symbols = await asyncio.to_thread(server.feed.symbols)
        return web.json_response(
            {
                "timezone": "UTC",
                "serverTime": server.clock.now_us() // 1_000,
                "rateLimits": [],
                "exchangeFilters": [],
                "symbols": [_symbol_info(symbol) for symbol in symbols],
            }
        )

    return [
        web.get("/api/v3/ping", ping),
        web.get("/api/v3/time", time),
        web.get("/api/v3/exchangeInfo", exchange_info),
    ]


def _symbol_info(symbol: str) -> dict[str, Any]:
    base, quote = split_symbol(symbol)
    return {
        "symbol": symbol,
        "status": "TRADING",
        "baseAsset": base,
        "baseAssetPrecision": 8,
        "quoteAsset": quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "isSpotTradingAllowed": True,
        "filters": [],
        "permissions": ["SPOT"],
    }


def control_routes(server: ExchangeServer) -> list[web.RouteDef]:
    """`GET /k2/status`, `GET /k2/sends?stream=`, `POST /k2/fault`."""

    async def status(_: web.Request) -> web.Response:
        return web.json_response(server.status())

    async def sends(request: web.Request) -> web.Response:
        stream = request.query.get("stream", "")
        return web.json_response({"stream": stream, "sends": server.sent.sends_of(stream)})

    async def fault(request: web.Request) -> web.Response:
        try:
            kind, values = parse_fault(await request.json())
        except (InvalidParameter, json.JSONDecodeError) as exc:
            return web.json_response({"error": str(exc)}, status=400)
        await _FAULTS[kind](server, values)
        return web.json_response({"kind": kind, **values, "clients": len(server.clients)})

    return [
        web.get("/k2/status", status),
        web.get("/k2/sends", sends),
        web.post("/k2/fault", fault),
    ]


async def _disconnect(server: ExchangeServer, values: dict[str, Any]) -> None:
    for client in tuple(server.clients):
        if values["abort"]:
            client.abort()
        else:
            await client.close(values["code"], b"fault")


async def _stall(server: ExchangeServer, values: dict[str, Any]) -> None:
    server.faults.stall(values["seconds"], values["pongs"])


async def _garbage(server: ExchangeServer, values: dict[str, Any]) -> None:
    await _inject(server, values["text"].encode())


async def _raw(server: ExchangeServer, values: dict[str, Any]) -> None:
    await _inject(server, bytes.fromhex(values["hex"]))


async def _huge(server: ExchangeServer, values: dict[str, Any]) -> None:
    await _inject(server, b'{"stream":"huge","data":"' + b"x" * values["bytes"] + b'"}')


async def _inject(server: ExchangeServer, payload: bytes) -> None:
    for client in tuple(server.clients):
        with contextlib.suppress(ConnectionError):  # a client may well leave over such a frame
            await client.inject(payload)


async def _drop_ids(server: ExchangeServer, values: dict[str, Any]) -> None:
    server.faults.drop_ids = set(values["ids"])


async def _duplicate(server: ExchangeServer, values: dict[str, Any]) -> None:
    server.faults.duplicates = values["n"]


async def _refuse(server: ExchangeServer, values: dict[str, Any]) -> None:
    server.faults.refusals = values["n"]


async def _reorder(server: ExchangeServer, values: dict[str, Any]) -> None:
    server.faults.reorders = values["n"]


async def _resend(server: ExchangeServer, values: dict[str, Any]) -> None:
    server.resend(values["n"])


async def _cut(server: ExchangeServer, _: dict[str, Any]) -> None:
    for client in tuple(server.clients):
        client.cut()


_FAULTS: dict[str, Callable[[ExchangeServer, dict[str, Any]], Awaitable[None]]] = {
    "disconnect": _disconnect,
    "stall": _stall,
    "garbage": _garbage,
    "raw": _raw,
    "huge": _huge,
    "drop_ids": _drop_ids,
    "duplicate": _duplicate,
    "refuse": _refuse,
    "reorder": _reorder,
    "resend": _resend,
    "cut": _cut,
}
