"""Binance's control messages on a market-data socket: pure request -> answer.

Source: "Live Subscribing/Unsubscribing to streams" of the Binance spot WebSocket documentation.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

_METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")

#: Most streams of one connection, and most incoming messages a second; beyond it is cut.
MAX_STREAMS = 1_024
MESSAGES_PER_S = 5


@dataclass(slots=True)
class Subscriptions:
    """What one connection gets: its streams in order of subscription, wrapped or bare."""

    combined: bool
    streams: dict[str, None] = field(default_factory=dict)

    def add(self, names: list[str]) -> None:
        self.streams |= dict.fromkeys(names)

    def remove(self, names: list[str]) -> None:
        for name in names:
            self.streams.pop(name, None)


def from_url(path: str, query: str) -> Subscriptions:
    """Subscriptions that the address asks for: `/stream?streams=a/b` or `/ws/a/b`."""
    if path.startswith("/stream"):
        return Subscriptions(True, dict.fromkeys(name for name in query.split("/") if name))
    names = path.removeprefix("/ws").strip("/").split("/")
    return Subscriptions(False, dict.fromkeys(name for name in names if name))


class _Refused(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.answer = {"code": code, "msg": text}


def answer(text: str | bytes, subscriptions: Subscriptions) -> str:
    """Carry out one control message and return the answer, an error as Binance words it."""
    ident: Any = None
    try:
        request = _parsed(text)
        ident = request.get("id")
        _check_id(ident)
        reply: dict[str, Any] = {"result": _carry_out(request, subscriptions), "id": ident}
    except _Refused as refused:
        reply = refused.answer if ident is None else {**refused.answer, "id": ident}
    return json.dumps(reply, separators=(",", ":"))


def _check_id(ident: Any) -> None:
    if ident is not None and (isinstance(ident, bool) or not isinstance(ident, int | str)):
        raise _Refused(2, "Invalid request: request ID must be an unsigned integer")


def _parsed(text: str | bytes) -> dict[str, Any]:
    try:
        request = json.loads(text)
    except (ValueError, RecursionError) as exc:
        where = f"line {getattr(exc, 'lineno', 1)} column {getattr(exc, 'colno', 1)}"
        raise _Refused(3, f"Invalid JSON: expected value at {where}") from exc
    if not isinstance(request, dict) or "method" not in request:
        raise _Refused(2, "Invalid request: missing field `method`")
    return request


def _carry_out(request: dict[str, Any], subscriptions: Subscriptions) -> Any:
    method, params = request["method"], request.get("params", [])
    if method == "LIST_SUBSCRIPTIONS":
        return list(subscriptions.streams)
    if method in {"SUBSCRIBE", "UNSUBSCRIBE"}:
        return _change(method, params, subscriptions)
    if method in {"SET_PROPERTY", "GET_PROPERTY"}:
        return _property(method, params, subscriptions)
    known = ", ".join(f"`{name}`" for name in _METHODS)
    raise _Refused(2, f"Invalid request: unknown variant `{method}`, expected one of {known}")


def _change(method: str, params: Any, subscriptions: Subscriptions) -> None:
    if not isinstance(params, list) or not all(isinstance(name, str) for name in params):
        raise _Refused(2, "Invalid request: params must be a list of stream names")
    if method == "UNSUBSCRIBE":
        subscriptions.remove(params)
    elif len(subscriptions.streams.keys() | set(params)) > MAX_STREAMS:
        raise _Refused(2, "Invalid request: too many parameters")
    else:
        subscriptions.add(params)


def _property(method: str, params: Any, subscriptions: Subscriptions) -> bool | None:
    if not isinstance(params, list) or not params or not isinstance(params[0], str):
        raise _Refused(2, "Invalid request: property name must be a string")
    if params[0] != "combined":
        raise _Refused(0, "Unknown property")
    if method == "GET_PROPERTY":
        return subscriptions.combined
    if len(params) != 2 or not isinstance(params[1], bool):
        raise _Refused(1, "Invalid value type: expected Boolean")
    subscriptions.combined = params[1]
    return None


class MessageLimit:
    """Binance's limit of incoming messages (pings, pongs, control): a sliding second."""

    def __init__(self, per_s: int = MESSAGES_PER_S) -> None:
        self._times_s: deque[float] = deque(maxlen=per_s)

    def exceeded(self, now_s: float) -> bool:
        """Count a message that came at `now_s`; True when it is one too many."""
        full = len(self._times_s) == self._times_s.maxlen
        too_many = full and now_s - self._times_s[0] < 1.0
        self._times_s.append(now_s)
        return too_many
