"""A simulated market whose rate is turned up and down while it is played."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from k2.clock import SYSTEM_CLOCK, Clock
from k2.exchange.capture import Frame
from k2.exchange.simulator import SimulatorConfig, frames

#: Rate at which the simulator's own clock runs: above what is ever sent, so that the times in the
#: frames fall behind the wall clock and never run ahead of it.
_FASTEST: Final = 200_000.0
#: Arrears that are made up for: what falls due while the server sleeps or writes.
_ARREARS_NS: Final = 50_000_000


class Tide:
    """A feed for the exchange server: `rate` frames a second from now on, until `ebb` is called.

    What a client was too slow to take is not sent later on top of the rate.
    """

    def __init__(
        self, symbols: tuple[str, ...], rate: float, first_id: int, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.rate = rate
        self._config = SimulatorConfig(symbols, _FASTEST, first_trade_id=first_id)
        self._clock = clock
        self._over = False

    def symbols(self) -> tuple[str, ...]:
        return self._config.symbols

    def segments(self) -> Iterator[Iterator[Frame]]:
        return iter((self._paced(),))

    def ebb(self) -> None:
        """Send nothing more."""
        self._over = True

    def _paced(self) -> Iterator[Frame]:
        due_ns = self._clock.now_us() * 1_000
        for frame in frames(self._config, due_ns):
            if self._over:
                return
            due_ns = max(due_ns, self._clock.now_us() * 1_000 - _ARREARS_NS)
            due_ns += int(1e9 / self.rate)
            yield Frame(due_ns, frame.stream, frame.data)
