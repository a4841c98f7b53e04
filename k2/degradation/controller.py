"""The controller: lag and memory in, a level out. Up at once, down with patience."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
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
#: The level falls when lag is below this part of its trigger, and memory below that of its own
#: (DEG-04): without the distance it would swing around the trigger.
_LAG_RECOVERY: Final = 0.5
_MEMORY_RECOVERY: Final = 0.9
_HISTORY: Final = 100


class Inputs(NamedTuple):
    """`lag`: messages not yet read, of live topics; `memory`: fraction of the limit."""

    lag: int
    memory: float


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


@dataclass(frozen=True, slots=True)
class _Trigger:
    lag: int
    memory: float


class Controller:
    """Holds the level. `level` may be set to what another controller decided before."""

    def __init__(self, settings: Triggers, clock: Clock) -> None:
        lags = (
            settings.lag_soft,
            settings.lag_graceful,
            settings.lag_aggressive,
            settings.lag_break,
        )
        self._triggers = {
            level: _Trigger(lag, memory)
            for (level, memory), lag in zip(MEMORY_TRIGGERS.items(), lags, strict=True)
        }
        self._cooldown_s = settings.cooldown_s
        self._exempt = settings.exempt
        self._clock = clock
        self._since_s = clock.monotonic_s()
        self.level = Level.NORMAL
        self._held = False
        self.history: deque[Transition] = deque(maxlen=_HISTORY)

    def update(self, inputs: Inputs) -> Transition | None:
        """Take new inputs; the transition they cause, if any."""
        if self._exempt:
            inputs = Inputs(0, 0.0)
        called_for = self.called_for(inputs)
        if called_for > self.level:
            return self._move(called_for, inputs)
        if called_for < self.level and self._recovered(inputs):
            return self._move(called_for, inputs)
        return None

    def hold(self, held: tuple[Level, str] | None, inputs: Inputs) -> Transition | None:
        """As `update`, but a level `held` by hand (with its reason) stands whatever the inputs.

        Once it is let go the level is what the inputs call for, at once.
        """
        if held is not None:
            self._held = True
            level, reason = held
            return None if level is self.level else self._move(level, inputs, reason)
        if not self._held:
            return self.update(inputs)
        self._held = False
        called_for = self.called_for(inputs)
        if called_for is self.level:
            return None
        return self._move(called_for, inputs, "the level is no longer set by hand")

    def called_for(self, inputs: Inputs) -> Level:
        """The level of the highest trigger that `inputs` reach."""
        return max(
            (
                level
                for level, trigger in self._triggers.items()
                if inputs.lag >= trigger.lag or inputs.memory >= trigger.memory
            ),
            default=Level.NORMAL,
        )

    def _recovered(self, inputs: Inputs) -> bool:
        trigger = self._triggers[self.level]
        return (
            inputs.lag < trigger.lag * _LAG_RECOVERY
            and inputs.memory < trigger.memory * _MEMORY_RECOVERY
            and self._clock.monotonic_s() - self._since_s >= self._cooldown_s
        )

    def _move(self, after: Level, inputs: Inputs, reason: str = "") -> Transition:
        reason = reason or self._reason(after, inputs)
        transition = Transition(self.level, after, reason, inputs, self._clock.now_us())
        self.level, self._since_s = after, self._clock.monotonic_s()
        self.history.append(transition)
        return transition

    def _reason(self, after: Level, inputs: Inputs) -> str:
        if after <= self.level:
            return f"lag {inputs.lag} messages and memory {inputs.memory:.0%} have recovered"
        trigger = self._triggers[after]
        causes = []
        if inputs.lag >= trigger.lag:
            causes.append(f"lag {inputs.lag} messages (trigger {trigger.lag})")
        if inputs.memory >= trigger.memory:
            causes.append(f"memory {inputs.memory:.0%} (trigger {trigger.memory:.0%})")
        return " and ".join(causes)
