"""What can be made to go wrong on purpose: `POST /k2/fault` with `{"kind": ..., ...}`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from k2.clock import Clock
from k2.errors import InvalidParameter

#: kind -> its parameters with their defaults.
KINDS: dict[str, dict[str, Any]] = {
    "disconnect": {"code": 1001, "abort": False},
    "stall": {"seconds": 10.0, "pongs": False},
    "garbage": {"text": "{not json"},
    "raw": {"hex": ""},
    "huge": {"bytes": 10_000_000},
    "drop_ids": {"ids": []},
    "duplicate": {"n": 1},
    "refuse": {"n": 1},
    "reorder": {"n": 1},
    "resend": {"n": 100},
    "cut": {},
}


@dataclass(slots=True)
class Faults:
    """The faults in force."""

    clock: Clock
    drop_ids: set[int] = field(default_factory=set)
    duplicates: int = 0
    refusals: int = 0
    reorders: int = 0
    stalled_until_s: float = 0.0
    pongs_while_stalled: bool = False

    def stall(self, seconds: float, pongs: bool) -> None:
        """Send no frame for `seconds`; without `pongs` answer no ping either."""
        self.stalled_until_s = self.clock.monotonic_s() + seconds
        self.pongs_while_stalled = pongs

    async def wait_stall(self) -> None:
        """Return when no stall is in force."""
        while (left_s := self.stalled_until_s - self.clock.monotonic_s()) > 0:
            await self.clock.sleep(left_s)

    @property
    def deaf(self) -> bool:
        """True while pings stay unanswered."""
        return not self.pongs_while_stalled and self.stalled_until_s > self.clock.monotonic_s()

    def take_refusal(self) -> bool:
        """True when this connection is to be turned away."""
        if self.refusals <= 0:
            return False
        self.refusals -= 1
        return True

    def copies(self, ident: int | None) -> int:
        """How often a frame goes out: 0 dropped, 1 normally, 2 duplicated."""
        if ident is not None and ident in self.drop_ids:
            return 0
        if self.duplicates > 0:
            self.duplicates -= 1
            return 2
        return 1

    @property
    def touch_frames(self) -> bool:
        """True when single frames must be looked at."""
        return bool(self.drop_ids) or self.duplicates > 0

    def take_reorder(self) -> bool:
        """True when this frame is to go out after the next one of its stream."""
        if self.reorders <= 0:
            return False
        self.reorders -= 1
        return True


def parse_fault(body: Any) -> tuple[str, dict[str, Any]]:
    """(kind, parameters) of a request. Raises `InvalidParameter`."""
    kind = body.get("kind") if isinstance(body, dict) else None
    if kind not in KINDS:
        raise InvalidParameter("kind", kind, ", ".join(KINDS))
    wanted = KINDS[kind]
    given = {name: value for name, value in body.items() if name != "kind"}
    for name, value in given.items():
        if name not in wanted:
            raise InvalidParameter(name, value, ", ".join(wanted))
    values = {**wanted, **given}
    for name, value in values.items():
        _check(name, value, wanted[name])
    return kind, values


def _check(name: str, value: Any, like: Any) -> None:
    allowed = (int, float) if isinstance(like, float) else type(like)
    if not isinstance(value, allowed) or (isinstance(value, bool) and not isinstance(like, bool)):
        raise InvalidParameter(name, value, f"a value like {like!r}")
    if isinstance(value, int | float) and value < 0:
        raise InvalidParameter(name, value, "0 or more")
    if isinstance(value, list) and not _integers(value):
        raise InvalidParameter(name, value, "a list of integers")
    if name == "hex" and isinstance(value, str):
        try:
            bytes.fromhex(value)
        except ValueError as exc:
            raise InvalidParameter(name, value, "hexadecimal digits") from exc


def _integers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)
