"""What the exchange server must know to speak like one exchange."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from typing import ClassVar, Final

from k2.exchange.capture import Frame
from k2.exchange.control import Subscriptions

#: Trades of one stream that a new subscriber may be shown again (Kraken sends 50).
_RECENT: Final = 50


class Recent:
    """The newest trade frames of every stream: what exchanges send again on a subscription."""

    def __init__(self, trades: str) -> None:
        self._prefix = f"{trades}:"
        self._frames: dict[str, deque[Frame]] = {}

    def add(self, frames: Iterable[Frame]) -> None:
        for frame in frames:
            if frame.stream.startswith(self._prefix):
                held = self._frames.get(frame.stream)
                if held is None:
                    held = self._frames[frame.stream] = deque(maxlen=_RECENT)
                held.append(frame)

    def of(self, stream: str) -> Sequence[Frame]:
        """Oldest first."""
        return tuple(self._frames.get(stream, ()))


class Dialect(ABC):
    """One exchange's manners on a socket. Streams are named `channel:symbol`, Binance's own aside.

    `trades`: the channel of trades; `messages_per_s`: more incoming messages end a connection;
    `settle_s`: a replay begins when a client has said nothing for so long, because what it wants
    may take several messages.
    """

    name: ClassVar[str]
    paths: ClassVar[tuple[str, ...]] = ("/",)
    trades: ClassVar[str] = "trade"
    messages_per_s: ClassVar[int] = 100
    settle_s: ClassVar[float] = 0.2
    heartbeat_s: ClassVar[float] = 1.0

    def open(self, path: str, query: str) -> Subscriptions:
        """Subscriptions that the address itself asks for."""
        return Subscriptions(combined=True)

    def greeting(self) -> list[str]:
        """What a client is told before it says anything."""
        return []

    @abstractmethod
    def answer(self, text: str | bytes, subscriptions: Subscriptions, recent: Recent) -> list[str]:
        """Carry out one message; what to send back, in order."""

    def heartbeat(self, subscriptions: Subscriptions, recent: Recent, now_us: int) -> list[str]:
        """What is sent every `heartbeat_s` (0: never)."""
        return []

    def render(self, frame: Frame, subscriptions: Subscriptions) -> bytes:
        """A frame as this client gets it."""
        return frame.data
