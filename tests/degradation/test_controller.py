"""The controller: up at once, down with patience, never stuck."""

from hypothesis import given
from hypothesis import strategies as st

from k2.degradation.controller import MEMORY_TRIGGERS, Controller, Inputs
from k2.degradation.levels import Level
from k2.settings import Degradation


class ManualClock:
    def __init__(self):
        self.at_s = 100.0

    def now_us(self):
        return int(self.at_s * 1e6)

    def monotonic_s(self):
        return self.at_s

    async def sleep(self, seconds):
        self.at_s += seconds


LAGS = {
    Level.SOFT: 100_000,
    Level.GRACEFUL: 500_000,
    Level.AGGRESSIVE: 1_000_000,
    Level.CIRCUIT_BREAK: 5_000_000,
}
lags = st.one_of(
    st.integers(0, 6_000_000),
    st.sampled_from([v + d for v in LAGS.values() for d in (-1, 0)]),
    st.sampled_from([v // 2 + d for v in LAGS.values() for d in (-1, 0)]),
)
memories = st.floats(0, 1.2, allow_nan=False)
inputs = st.builds(Inputs, lags, memories)
steps = st.lists(st.tuples(st.integers(0, 45), inputs), max_size=30)


def controller(**options):
    clock = ManualClock()
    return Controller(Degradation(_env_file=None, **options), clock), clock


def walked(made, clock, path):
    for seconds, given_ in path:
        clock.at_s += seconds
        made.update(given_)


@given(steps, inputs)
def test_never_below_what_the_inputs_call_for(path, last):
    made, clock = controller()
    walked(made, clock, path)
    made.update(last)
    assert made.level >= made.called_for(last)


@given(steps)
def test_never_stuck(path):
    made, clock = controller()
    walked(made, clock, path)
    clock.at_s += 30
    made.update(Inputs(0, 0.0))
    assert made.level is Level.NORMAL


@given(inputs, inputs)
def test_more_lag_or_memory_never_calls_for_less(one, two):
    made, _ = controller()
    both = Inputs(max(one.lag, two.lag), max(one.memory, two.memory))
    assert made.called_for(both) == max(made.called_for(one), made.called_for(two))


@given(steps)
def test_falls_only_when_recovered_and_rested_and_says_why(path):
    made, clock = controller()
    moved_s = clock.at_s
    for seconds, given_ in path:
        clock.at_s += seconds
        before = made.level
        transition = made.update(given_)
        assert (transition is not None) == (made.level != before)
        if transition is None:
            continue
        assert transition == made.history[-1]
        assert (transition.before, transition.after) == (before, made.level)
        assert transition.inputs == given_
        assert transition.at_us == clock.now_us()
        assert transition.reason
        assert made.level == made.called_for(given_)
        if made.level < before:
            assert clock.at_s - moved_s >= 30
            assert given_.lag < LAGS[before] * 0.5
            assert given_.memory < MEMORY_TRIGGERS[before] * 0.9
        moved_s = clock.at_s


@given(st.integers(0, 400_000), st.integers(1, 4))
def test_does_not_swing_around_a_trigger(lag, level):
    """Between half a trigger and the trigger nothing changes, however long it lasts."""
    made, clock = controller()
    trigger = LAGS[Level(level)]
    made.update(Inputs(trigger, 0.0))
    for _ in range(5):
        clock.at_s += 60
        assert made.update(Inputs(trigger // 2 + lag % (trigger // 2), 0.0)) is None
    assert made.level == Level(level)


def test_falls_several_steps_at_once():
    made, clock = controller()
    made.update(Inputs(5_000_000, 0.1))
    assert made.level is Level.CIRCUIT_BREAK
    clock.at_s += 29
    assert made.update(Inputs(150_000, 0.1)) is None
    clock.at_s += 1
    assert made.update(Inputs(150_000, 0.1)).after is Level.SOFT


def test_the_reason_names_input_and_trigger():
    made, _ = controller()
    assert made.update(Inputs(500_000, 0.91)).reason == "memory 91% (trigger 90%)"
    made, _ = controller()
    assert made.update(Inputs(600_000, 0.8)).reason == (
        "lag 600000 messages (trigger 500000) and memory 80% (trigger 80%)"
    )


def test_the_level_another_decided_is_taken_over():
    made, clock = controller()
    made.level = Level.AGGRESSIVE
    assert made.update(Inputs(0, 0.0)) is None
    clock.at_s += 30
    assert made.update(Inputs(0, 0.0)).before is Level.AGGRESSIVE


def test_history_keeps_the_newest_hundred():
    made, clock = controller(cooldown_s=0)
    for _ in range(80):
        made.update(Inputs(100_000, 0.0))
        clock.at_s += 1
        made.update(Inputs(0, 0.0))
    assert len(made.history) == 100
    assert made.history[-1].after is Level.NORMAL


def test_exempt_workers_never_degrade():
    made, _ = controller(exempt=True)
    assert made.update(Inputs(10_000_000, 1.0)) is None
    assert made.level is Level.NORMAL
