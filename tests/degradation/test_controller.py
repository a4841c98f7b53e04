"""The controller: up at once, down with patience, never stuck."""

from hypothesis import given
from hypothesis import strategies as st

from k2.degradation.controller import MEMORY_TRIGGERS, Controller, Held, Inputs
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
    lag_s = memory_s = clock.at_s
    for seconds, given_ in path:
        clock.at_s += seconds
        before = made.held
        transition = made.update(given_)
        assert (transition is not None) == (made.level != before.level)
        if made.held.lag < before.lag:
            assert clock.at_s - lag_s >= 30
            assert given_.lag < LAGS[before.lag] * 0.5
        if made.held.memory < before.memory:
            assert clock.at_s - memory_s >= 30
            assert given_.memory < MEMORY_TRIGGERS[before.memory] * 0.9
        lag_s = clock.at_s if made.held.lag != before.lag else lag_s
        memory_s = clock.at_s if made.held.memory != before.memory else memory_s
        if transition is None:
            continue
        assert transition == made.history[-1]
        assert (transition.before, transition.after) == (before.level, made.level)
        assert transition.inputs == given_
        assert transition.at_us == clock.now_us()
        assert transition.reason


@given(steps)
def test_each_input_has_a_level_of_its_own_and_the_higher_one_counts(path):
    (both, clock), (lag, lag_clock), (memory, memory_clock) = (controller() for _ in range(3))
    for seconds, given_ in path:
        for one in (clock, lag_clock, memory_clock):
            one.at_s += seconds
        both.update(given_)
        lag.update(Inputs(given_.lag, 0.0))
        memory.update(Inputs(0, given_.memory))
        assert both.level == max(lag.level, memory.level)


calm = st.one_of(st.floats(0, 0.7, exclude_max=True), st.floats(0.63, 0.7, exclude_max=True))
calm_steps = st.lists(st.tuples(st.integers(0, 45), st.builds(Inputs, lags, calm)), max_size=30)


@given(calm_steps, st.integers(0, 49_999), calm)
def test_a_memory_that_never_reached_its_trigger_holds_nothing(path, lag, memory):
    made, clock = controller()
    walked(made, clock, path)
    clock.at_s += 30
    made.update(Inputs(lag, memory))
    assert made.level is Level.NORMAL


def test_a_steady_memory_does_not_keep_up_what_lag_raised():
    made, clock = controller()
    made.update(Inputs(5_000_000, 0.86))
    clock.at_s += 30
    transition = made.update(Inputs(0, 0.86))
    assert (transition.before, transition.after) == (Level.CIRCUIT_BREAK, Level.GRACEFUL)
    assert transition.reason == "lag 0 messages has recovered"
    clock.at_s += 30
    assert made.update(Inputs(0, 0.65)).after is Level.NORMAL


def test_what_holds_the_level_is_taken_over():
    made, clock = controller()
    made.take_over(Held(lag=Level.SOFT, memory=Level.AGGRESSIVE))
    clock.at_s += 30
    assert made.update(Inputs(0, 0.85)) is None, "memory is above nine tenths of its trigger"
    assert made.held == Held(memory=Level.AGGRESSIVE)


def test_a_level_by_hand_stands_until_it_is_let_go():
    made, clock = controller()
    made.update(Inputs(5_000_000, 0.1))
    by_hand = made.hold((Level.SOFT, "rehearsal"), Inputs(5_000_000, 0.1))
    assert (by_hand.after, by_hand.reason) == (Level.SOFT, "rehearsal")
    assert made.hold((Level.SOFT, "rehearsal"), Inputs(0, 0.1)) is None
    let_go = made.hold(None, Inputs(600_000, 0.65))
    assert let_go.after is Level.GRACEFUL
    clock.at_s += 30
    assert made.hold(None, Inputs(0, 0.65)).after is Level.NORMAL


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
    made.take_over(Held(lag=Level.AGGRESSIVE))
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
