"""The loop watch: every lateness is counted, and the worst of the last seconds is the gauge."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from k2.clock import SYSTEM_CLOCK
from k2.looplag import LoopWatch


def counted() -> float:
    return REGISTRY.get_sample_value("k2_event_loop_delay_seconds_count") or 0.0


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 2)), min_size=1, max_size=60))
def test_the_gauge_is_the_worst_of_fifteen_seconds(steps: list[tuple[float, float]]) -> None:
    watch, now_s = LoopWatch(SYSTEM_CLOCK), 0.0
    seen: list[tuple[float, float]] = []
    before = counted()
    for waited_s, late_s in steps:
        now_s += waited_s
        seen.append((now_s, late_s))
        watch.note(now_s, late_s)
        worst = max(late for at, late in seen if at >= now_s - 15.0)
        assert watch.worst_s == worst
        assert REGISTRY.get_sample_value("k2_event_loop_lag_seconds") == worst
    assert counted() - before == len(steps)


class EnoughError(Exception):
    """Ends a loop that has no end."""


class Stalled:
    """A clock on which each sleep takes 0.2 s longer than asked, twice."""

    def __init__(self) -> None:
        self.now_s, self.sleeps = 0.0, 0

    def now_us(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        if self.sleeps > 2:
            raise EnoughError
        self.now_s += seconds + 0.2


async def test_a_loop_that_was_held_shows() -> None:
    clock = Stalled()
    watch = LoopWatch(clock)
    with pytest.raises(EnoughError):
        await watch.run()
    assert watch.worst_s == pytest.approx(0.2)
