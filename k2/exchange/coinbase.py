"""The exchange server as Coinbase Exchange.

Source: "WebSocket Overview" and "Channels" of the Coinbase Exchange documentation.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from k2.exchange.capture import Frame
from k2.exchange.control import Subscriptions
from k2.exchange.dialect import Dialect, Recent

_CHANNELS = ("matches", "ticker", "heartbeat", "level2")


class CoinbaseDialect(Dialect):
    """Products and channels by message; the last match of a product again on each subscription."""

    name = "coinbase"
    trades = "matches"

    def answer(self, text: str | bytes, subscriptions: Subscriptions, recent: Recent) -> list[str]:
        try:
            request = json.loads(text)
            kind, wanted = request["type"], _wanted(request)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            return [_error("Malformed JSON", str(exc))]
        unknown = [channel for channel, _ in wanted if channel not in _CHANNELS]
        if kind not in {"subscribe", "unsubscribe"} or unknown:
            reason = f"{unknown[0]} is not a valid channel" if unknown else f"type {kind!r}"
            return [_error("Failed to subscribe", reason)]
        names = [f"{channel}:{product}" for channel, product in wanted]
        if kind == "unsubscribe":
            subscriptions.remove(names)
            return [_listing(subscriptions)]
        subscriptions.add(names)
        again = [recent.of(name)[-1] for name in names if recent.of(name)]
        return [*(_last_match(frame) for frame in again), _listing(subscriptions)]

    def heartbeat(self, subscriptions: Subscriptions, recent: Recent, now_us: int) -> list[str]:
        return [
            _heartbeat(product, recent, now_us)
            for channel, _, product in (name.partition(":") for name in subscriptions.streams)
            if channel == "heartbeat"
        ]


def _wanted(request: dict[str, Any]) -> list[tuple[str, str]]:
    """(channel, product) of every one asked for."""
    found = []
    for channel in request["channels"]:
        own = isinstance(channel, dict)
        products = channel["product_ids"] if own else request["product_ids"]
        found += [(str(channel["name"] if own else channel), str(product)) for product in products]
    return found


def _listing(subscriptions: Subscriptions) -> str:
    channels: dict[str, list[str]] = {}
    for name in subscriptions.streams:
        channel, _, product = name.partition(":")
        channels.setdefault(channel, []).append(product)
    listed = [{"name": name, "product_ids": products} for name, products in channels.items()]
    return json.dumps({"type": "subscriptions", "channels": listed}, separators=(",", ":"))


def _error(message: str, reason: str) -> str:
    return json.dumps({"type": "error", "message": message, "reason": reason})


def _last_match(frame: Frame) -> str:
    text = frame.data.decode()
    return text.replace('"type":"match"', '"type":"last_match"', 1)


def _heartbeat(product: str, recent: Recent, now_us: int) -> str:
    held = recent.of(f"matches:{product}")
    last = json.loads(held[-1].data) if held else {}
    time = dt.datetime.fromtimestamp(now_us / 1e6, dt.UTC).isoformat().replace("+00:00", "Z")
    return json.dumps(
        {
            "type": "heartbeat",
            "sequence": last.get("sequence", 0),
            "last_trade_id": last.get("trade_id", 0),
            "product_id": product,
            "time": time,
        }
    )
