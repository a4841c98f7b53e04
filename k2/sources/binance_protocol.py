"""How Binance wants to be asked for streams.

Streams named in the address flow from the moment the socket is open; only what does not fit there
is subscribed with messages, at most `MAX_PARAMS` streams each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

#: Keeps the request line below the 8 KB that servers and proxies commonly allow.
_MAX_QUERY = 6_000

MAX_PARAMS = 200

#: How answers to control messages begin; everything else is data.
_ANSWERS = (b'{"result"', b'{"code"', b'{"error"', b'{"id"')


@dataclass(frozen=True, slots=True)
class BinanceProtocol:
    """Combined streams of the spot market."""

    streams: tuple[str, ...]

    def url(self, base: str) -> str:
        """The address below `base` (`wss://host:port`, with or without `/stream`)."""
        base = base.rstrip("/").removesuffix("/stream")
        return f"{base}/stream?streams={'/'.join(self.streams[: self._in_url()])}"

    def messages(self) -> list[str]:
        """What to send once connected."""
        rest = self.streams[self._in_url() :]
        chunks = [rest[at : at + MAX_PARAMS] for at in range(0, len(rest), MAX_PARAMS)]
        return [_subscribe(chunk, number) for number, chunk in enumerate(chunks, start=1)]

    def is_data(self, frame: bytes) -> bool:
        """False for answers to control messages, errors included."""
        return not frame.startswith(_ANSWERS)

    def _in_url(self) -> int:
        length = 0
        for count, stream in enumerate(self.streams):
            length += len(stream) + 1
            if length > _MAX_QUERY:
                return count
        return len(self.streams)


def _subscribe(streams: Sequence[str], ident: int) -> str:
    return json.dumps({"method": "SUBSCRIBE", "params": list(streams), "id": ident})
