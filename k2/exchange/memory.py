"""Where a simulated market stopped, in a file: the next run goes on from there.

To the platform the simulator is one exchange that was closed in between. What counts is what
clients were sent: a trade made while nobody listened is not missing, its id is given again. A
market that is not closed in order (`kill -9`) goes on above every id it can have used.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from k2.errors import ConfigError
from k2.exchange.market import MOST_FILLS
from k2.exchange.simulator import MarketState, Simulator
from k2.exchange.tally import Tally

#: A burst of a few seconds is five times the rate, and at low rates a few of the largest orders;
#: one update id in four is used.
_BURST, _BURST_IDS, _UPDATE_STEP = 5, 10 * MOST_FILLS, 50


class MarketMemory:
    """The file at `path`; the market is played at `speed` times real time."""

    def __init__(self, path: Path, speed: float = 1.0) -> None:
        self._path = path
        self._speed = speed
        self._known: dict[str, MarketState] = {}

    def load(self) -> dict[str, MarketState]:
        """Symbol -> state; empty when there is no file. Raises `ConfigError` when it is damaged."""
        try:
            self._known = _parsed(json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            self._known = {}
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as exc:
            raise ConfigError(
                f"--state {self._path} is not a file this simulator wrote ({exc}); give another "
                "path, or remove it to begin a new market",
                path=str(self._path),
            ) from exc
        return self._known

    def save(self, simulator: Simulator, sent: Tally) -> None:
        """Note where the market is now that it closes."""
        self._write(reached(simulator, sent))

    def reserve(self, simulator: Simulator, sent: Tally) -> None:
        """Note ids above all that can be sent until the next note, at most a few seconds on."""
        spare = int(_BURST * simulator.config.rate * self._speed) + _BURST_IDS
        self._write(
            {
                symbol: MarketState(
                    state.trade_id + spare, state.update_id + _UPDATE_STEP * spare, state.level
                )
                for symbol, state in reached(simulator, sent).items()
            }
        )

    def _write(self, states: dict[str, MarketState]) -> None:
        states = {**self._known, **states}  # symbols of other runs stay
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f"{self._path.name}.new")
        content = {symbol: asdict(state) for symbol, state in states.items()}
        beside.write_text(json.dumps({"symbols": content}), encoding="utf-8")
        beside.replace(self._path)  # whole or not at all, also when we are killed here


def reached(simulator: Simulator, sent: Tally) -> dict[str, MarketState]:
    """Each symbol's state after what was `sent`; what was sent to nobody does not count."""
    config, levels = simulator.config, simulator.levels()
    states = {}
    for symbol in config.symbols:
        first = config.resume.get(symbol) or MarketState(
            config.first_trade_id, config.first_trade_id * 7
        )
        trade = sent.stream(f"{symbol.lower()}@trade").last_id
        update = sent.stream(f"{symbol.lower()}@bookTicker").last_id
        states[symbol] = MarketState(
            first.trade_id if trade is None else trade + 1,
            first.update_id if update is None else update,
            levels[symbol],
        )
    return states


def _parsed(content: dict[str, Any]) -> dict[str, MarketState]:
    return {
        str(symbol): MarketState(
            int(state["trade_id"]), int(state["update_id"]), float(state["level"])
        )
        for symbol, state in content["symbols"].items()
    }
