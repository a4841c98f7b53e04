"""The exchange server as Kraken, in both of its protocols.

Source: "Spot WebSockets API v2" and "v1" of the Kraken documentation, and recorded dialogues.
"""

from __future__ import annotations

import json
from typing import Any

from k2.exchange.capture import Frame
from k2.exchange.control import Subscriptions
from k2.exchange.dialect import Dialect, Recent

_CHANNELS = ("trade", "ticker")
_BAD_REQUEST = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class KrakenV2Dialect(Dialect):
    """Objects by channel; a subscription of trades begins with a snapshot of the newest."""

    name = "kraken"
    paths = ("/v2",)
    # A client needs one message per channel, and may wait between them.
    settle_s = 1.0

    def greeting(self) -> list[str]:
        status = {"version": "2.0.10", "system": "online", "api_version": "v2", "connection_id": 1}
        return [json.dumps({"channel": "status", "type": "update", "data": [status]})]

    def answer(self, text: str | bytes, subscriptions: Subscriptions, recent: Recent) -> list[str]:
        try:
            request = json.loads(text)
            method = request["method"]
            if method == "ping":
                return [json.dumps({"method": "pong", "req_id": request.get("req_id")})]
            params = request["params"]
            channel, symbols = params["channel"], params["symbol"]
            names = [f"{channel}:{symbol}" for symbol in symbols]
        except _BAD_REQUEST as exc:
            return [json.dumps({"error": f"Malformed request: {exc}", "success": False})]
        if channel not in _CHANNELS or method not in {"subscribe", "unsubscribe"}:
            error = f"{method} of channel {channel!r} not supported"
            return [json.dumps({"error": error, "method": method, "success": False})]
        if method == "unsubscribe":
            subscriptions.remove(names)
        else:
            subscriptions.add(names)
        acks = [_ack(method, channel, symbol, request.get("req_id")) for symbol in symbols]
        if method == "subscribe" and channel == "trade" and params.get("snapshot", False):
            acks += [snapshot for name in names if (snapshot := _snapshot(recent.of(name)))]
        return acks

    def heartbeat(self, subscriptions: Subscriptions, recent: Recent, now_us: int) -> list[str]:
        return ['{"channel":"heartbeat"}'] if subscriptions.streams else []


def _ack(method: str, channel: str, symbol: str, ident: Any) -> str:
    result = {"channel": channel, "symbol": symbol}
    return json.dumps({"method": method, "result": result, "success": True, "req_id": ident})


def _snapshot(frames: tuple[Frame, ...] | Any) -> str:
    """The trades of `frames` as one snapshot; their text as it was, so that no digit changes."""
    inner = []
    for frame in frames:
        text = frame.data.decode()
        inner.append(text[text.index('"data":[') + len('"data":[') : text.rindex("]")])
    if not inner:
        return ""
    return f'{{"channel":"trade","type":"snapshot","data":[{",".join(inner)}]}}'


class KrakenV1Dialect(Dialect):
    """Arrays, after events that tell of subscriptions; nothing is sent again."""

    name = "kraken-v1"

    def greeting(self) -> list[str]:
        status = {"connectionID": 1, "event": "systemStatus", "status": "online"}
        return [json.dumps({**status, "version": "1.9.6"})]

    def answer(self, text: str | bytes, subscriptions: Subscriptions, recent: Recent) -> list[str]:
        try:
            request = json.loads(text)
            event = request["event"]
            if event == "ping":
                return [json.dumps({"event": "pong", "reqid": request.get("reqid")})]
            pairs, channel = request["pair"], request["subscription"]["name"]
            names = [f"{channel}:{pair}" for pair in pairs]
        except _BAD_REQUEST as exc:
            return [_status("error", errorMessage=f"Malformed request: {exc}")]
        if event not in {"subscribe", "unsubscribe"} or channel != "trade":
            return [_status("error", errorMessage="Subscription name invalid")]
        if event == "unsubscribe":
            subscriptions.remove(names)
        else:
            subscriptions.add(names)
        return [
            _status(f"{event}d", pair=pair, channelName="trade", subscription={"name": "trade"})
            for pair in pairs
        ]

    def heartbeat(self, subscriptions: Subscriptions, recent: Recent, now_us: int) -> list[str]:
        return ['{"event":"heartbeat"}'] if subscriptions.streams else []


def _status(status: str, **more: Any) -> str:
    return json.dumps({"event": "subscriptionStatus", "status": status, **more})
