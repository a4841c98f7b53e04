"""The controller: lag and memory in, a level out. Up at once, down with patience."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

from k2.clock import Clock
from k2.degradation.levels import Level

#: Memory triggers, fractions of the worker's limit (DEG-01).
MEMORY_TRIGGERS: Final = {
    Level.SOFT: 0.70,
    Level.GRACEFUL: 0.80,
    Level.AGGRESSIVE: 0.90,
    Level.CIRCUIT_BREAK: 0.95,
}
#: A level falls when what raised it is below this part of its trigger (DEG-04): without the
#: distance it would swing around the trigger.
_LAG_RECOVERY: Final = 0.5
_MEMORY_RECOVERY: Final = 0.9
_HISTORY: Final = 100


class Inputs(NamedTuple):
    """`lag`: messages not yet read, of live topics; `memory`: fraction of the limit."""

    lag: int
    memory: float


class Held(NamedTuple):
    """What holds the level: lag and memory, each its own, or a person."""

    lag: Level = Level.NORMAL
    memory: Level = Level.NORMAL
    hand: Level | None = None

    @property
    def level(self) -> Level:
        """A level set by hand stands; else the higher of the two."""
        return max(self.lag, self.memory) if self.hand is None else self.hand


class Transition(NamedTuple):
    """A change of level: why, from what, and when (microseconds UTC)."""

    before: Level
    after: Level
    reason: str
    inputs: Inputs
    at_us: int


class Triggers(Protocol):
    """What the controller needs of `k2.settings.Degradation`."""

    @property
    def lag_soft(self) -> int: ...

    @property
    def lag_graceful(self) -> int: ...

    @property
    def lag_aggressive(self) -> int: ...

    @property
    def lag_break(self) -> int: ...

    @property
    def cooldown_s(self) -> float: ...

    @property
    def exempt(self) -> bool: ...


class _Input:
    """The level of one input. The other one has no say in it, or what never came near a trigger
    would keep up what the other one raised."""

    def __init__(
        self, triggers: Mapping[Level, float], recovery: float, cooldown_s: float, clock: Clock
    ) -> None:
        self.triggers = triggers
        self._recovery = recovery
        self._cooldown_s = cooldown_s
        self._clock = clock
        self.level = Level.NORMAL
        self._since_s = clock.monotonic_s()

    def update(self, value: float) -> None:
        """Up at once; down once `value` has recovered and the level has stood for a while."""
        called_for = self.called_for(value)
        if called_for > self.level or (called_for < self.level and self._recovered(value)):
            self.set(called_for)

    def called_for(self, value: float) -> Level:
        """The level of the highest trigger that `value` reaches."""
        reached = (level for level, trigger in self.triggers.items() if value >= trigger)
        return max(reached, default=Level.NORMAL)

    def set(self, level: Level) -> None:
        if level is not self.level:
            self.level, self._since_s = level, self._clock.monotonic_s()

    def _recovered(self, value: float) -> bool:
        return (
            value < self.triggers[self.level] * self._recovery
            and self._clock.monotonic_s() - self._since_s >= self._cooldown_s
        )


class Controller:
    """Holds the level."""

    def __init__(self, settings: Triggers, clock: Clock) -> None:
        lags = {
            Level.SOFT: settings.lag_soft,
            Level.GRACEFUL: settings.lag_graceful,
            Level.AGGRESSIVE: settings.lag_aggressive,
            Level.CIRCUIT_BREAK: settings.lag_break,
        }
        self._lag = _Input(lags, _LAG_RECOVERY, settings.cooldown_s, clock)
        self._memory = _Input(MEMORY_TRIGGERS, _MEMORY_RECOVERY, settings.cooldown_s, clock)
        self._hand: Level | None = None
        self._exempt = settings.exempt
        self._clock = clock
        self.history: deque[Transition] = deque(maxlen=_HISTORY)

    @property
    def held(self) -> Held:
        """What holds the level now."""
        return Held(self._lag.level, self._memory.level, self._hand)

    @property
    def level(self) -> Level:
        return self.held.level

    def take_over(self, held: Held) -> None:
        """Go on from what another controller decided; the patience before a fall starts anew."""
        self._lag.set(held.lag)
        self._memory.set(held.memory)
        self._hand = held.hand

    def update(self, inputs: Inputs) -> Transition | None:
        """Take new inputs; the transition they cause, if any."""
        if self._exempt:
            inputs = Inputs(0, 0.0)
        before = self.held
        self._lag.update(inputs.lag)
        self._memory.update(inputs.memory)
        return self._moved(before, inputs, self._reason(before, inputs))

    def hold(self, held: tuple[Level, str] | None, inputs: Inputs) -> Transition | None:
        """As `update`, but a level `held` by hand (with its reason) stands whatever the inputs.

        Once it is let go the level is what the inputs call for, at once.
        """
        before = self.held
        if held is not None:
            self._hand, reason = held
            return self._moved(before, inputs, reason)
        if self._hand is None:
            return self.update(inputs)
        self._hand = None
        self._lag.set(self._lag.called_for(inputs.lag))
        self._memory.set(self._memory.called_for(inputs.memory))
        return self._moved(before, inputs, "the level is no longer set by hand")

    def called_for(self, inputs: Inputs) -> Level:
        """The level of the highest trigger that `inputs` reach."""
        return max(self._lag.called_for(inputs.lag), self._memory.called_for(inputs.memory))

    def _moved(self, before: Held, inputs: Inputs, reason: str) -> Transition | None:
        if self.level is before.level:
            return None
        at_us = self._clock.now_us()
        transition = Transition(before.level, self.level, reason, inputs, at_us)
        self.history.append(transition)
        return transition

    def _reason(self, before: Held, inputs: Inputs) -> str:
        """What raised the level, or let it fall."""
        lag, memory = f"lag {inputs.lag} messages", f"memory {inputs.memory:.0%}"
        after = self.level
        if after <= before.level:
            return " and ".join(
                f"{text} has recovered"
                for text, level in ((lag, before.lag), (memory, before.memory))
                if level > after
            )
        causes = []
        if self._lag.level is after:
            causes.append(f"{lag} (trigger {self._lag.triggers[after]})")
        if self._memory.level is after:
            causes.append(f"{memory} (trigger {self._memory.triggers[after]:.0%})")
        return " and ".join(causes)
