"""The exchange server as Binance's spot market."""

from __future__ import annotations

from k2.exchange.capture import Frame
from k2.exchange.control import MESSAGES_PER_S, Subscriptions, answer, from_url
from k2.exchange.dialect import Dialect, Recent

_INNER = b'"data":'


def bare(data: bytes) -> bytes:
    """The payload inside a combined-stream frame, as `/ws/` addresses deliver it."""
    start = data.find(_INNER)
    return data[start + len(_INNER) : data.rfind(b"}")] if start >= 0 else data


class BinanceDialect(Dialect):
    """Streams in the address or by message, combined or bare."""

    name = "binance"
    paths = ("/stream", "/ws", "/ws/{streams:.*}")
    messages_per_s = MESSAGES_PER_S
    settle_s = 0.0
    heartbeat_s = 0.0

    def open(self, path: str, query: str) -> Subscriptions:
        return from_url(path, query)

    def answer(self, text: str | bytes, subscriptions: Subscriptions, recent: Recent) -> list[str]:
        return [answer(text, subscriptions)]

    def render(self, frame: Frame, subscriptions: Subscriptions) -> bytes:
        return frame.data if subscriptions.combined else bare(frame.data)
