"""The circuit breaker: its three states against a plain model, and around real calls."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requests.exceptions import ConnectionError as NoConnection

from k2.breaker import Circuit, Limits, State
from k2.breakers import Breaker, Breakers
from k2.errors import LakeError, Overloaded
from k2.testing.clock import ManualClock

LIMITS = Limits(failures=5, successes=2, open_s=60.0)

#: What a service does at a call, and seconds until the next one.
steps = st.lists(
    st.tuples(st.sampled_from(["good", "bad", "neither", "lost"]), st.floats(0, 45)), max_size=80
)


@given(steps)
def test_as_the_rule_says(calls: list[tuple[str, float]]) -> None:
    """Five failures in a row open it for 60 s; then one call at a time, two good ones close it."""
    circuit, now_s = Circuit(LIMITS), 0.0
    opened_s: float | None = None
    bad = good = 0
    probe_s: float | None = None
    for outcome, pause_s in calls:
        waiting = opened_s is not None and now_s - opened_s < 60.0
        probing = probe_s is not None and now_s - probe_s < 60.0
        allowed = not waiting and not probing
        assert circuit.enter(now_s) is allowed
        assert (circuit.wait_s(now_s) == 0.0) == (allowed and opened_s is None)
        if allowed:
            probe_s = now_s if opened_s is not None else None
            match outcome:
                case "good":
                    circuit.succeeded(now_s)
                    bad, good, probe_s = 0, good + 1, None
                    if opened_s is not None and good >= 2:
                        opened_s = None
                case "bad":
                    circuit.failed(now_s)
                    bad, good = bad + 1, 0
                    if opened_s is not None or bad >= 5:
                        opened_s, bad, probe_s = now_s, 0, None
                case "neither":
                    circuit.dropped(now_s)
                    probe_s = None
        now_s += pause_s
    expected = (
        State.CLOSED
        if opened_s is None
        else State.OPEN
        if now_s - opened_s < 60.0
        else State.HALF_OPEN
    )
    assert circuit.state(now_s) is expected


@given(steps, st.integers(1, 5))
def test_good_answers_close_it_whatever_was_before(
    calls: list[tuple[str, float]], successes: int
) -> None:
    circuit, now_s = Circuit(Limits(3, successes, 10.0)), 0.0
    for outcome, pause_s in calls:
        if circuit.enter(now_s) and outcome == "bad":
            circuit.failed(now_s)
        now_s += pause_s
    now_s += 10.0
    for _ in range(successes):
        assert circuit.enter(now_s), "it never stays shut"
        circuit.succeeded(now_s)
    assert circuit.state(now_s) is State.CLOSED


@given(steps)
def test_a_watcher_that_never_asks_opens_and_closes_it(calls: list[tuple[str, float]]) -> None:
    """The writers of the lake tell outcomes without asking: two good ones always close it."""
    circuit, now_s = Circuit(LIMITS), 0.0
    for outcome, pause_s in calls:
        (circuit.succeeded if outcome == "good" else circuit.failed)(now_s)
        now_s += pause_s
    circuit.succeeded(now_s)
    circuit.succeeded(now_s)
    assert circuit.state(now_s) is State.CLOSED


def test_failures_while_open_do_not_keep_it_open() -> None:
    circuit = Circuit(LIMITS)
    for second in range(60):
        circuit.failed(float(second) / 2)
    assert circuit.state(61.9) is State.OPEN
    assert circuit.state(62.0) is State.HALF_OPEN


def _fail(breaker: Breaker) -> None:
    with pytest.raises(LakeError, match="away"), breaker.guarding(lambda e: True):
        raise LakeError("away")


async def test_a_refusal_says_when_to_come_again() -> None:
    clock = ManualClock()
    breaker = Breaker("catalog", LIMITS, clock, LakeError)
    for _ in range(5):
        _fail(breaker)
    await clock.advance(20)
    with pytest.raises(
        LakeError, match=r"left alone for 40 s more; the last error: .*away"
    ) as told:
        breaker.enter()
    assert told.value.details == {"breaker": "catalog", "retry_after_s": 40, "status": 503}
    assert breaker.facts()["state"] == "OPEN"
    await clock.advance(40)
    assert breaker.state is State.HALF_OPEN
    _fail(breaker)
    assert breaker.state is State.OPEN, "one failure is enough"
    await clock.advance(60)
    for _ in range(2):
        with breaker.guarding(lambda e: True):
            pass
    assert breaker.facts() == {
        "name": "catalog",
        "state": "CLOSED",
        "retry_after_s": 0.0,
        "last_error": "",
    }


async def test_a_caller_that_goes_away_blames_nobody() -> None:
    clock = ManualClock()
    breaker = Breaker("query", Limits(1, 1, 60.0), clock)
    with pytest.raises(asyncio.CancelledError), breaker.guarding(lambda e: True):
        raise asyncio.CancelledError
    with pytest.raises(ValueError, match="mine"), breaker.guarding(lambda e: False):
        raise ValueError("mine")
    assert breaker.state is State.CLOSED
    with pytest.raises(ValueError, match="its"), breaker.guarding(lambda e: True):
        raise ValueError("its")
    await clock.advance(60)
    with pytest.raises(asyncio.CancelledError), breaker.guarding(lambda e: True):
        raise asyncio.CancelledError
    assert breaker.ready, "the probe that was cancelled does not keep others out"
    breaker.enter()
    with pytest.raises(Overloaded):
        breaker.enter()


def test_what_a_writer_meets_tells_of_catalog_or_store() -> None:
    breakers = Breakers(Limits(1, 1, 60.0), ManualClock())
    breakers.watch_lake(FileNotFoundError("warehouse"))
    assert (breakers.store.state, breakers.catalog.state) == (State.OPEN, State.CLOSED)
    assert not breakers.lake_ready
    breakers.watch_lake(None)
    assert breakers.lake_ready
    breakers.watch_lake(NoConnection("refused"))
    assert (breakers.store.state, breakers.catalog.state) == (State.CLOSED, State.OPEN)
    assert breakers.history("binance") is breakers.history("binance")
    assert {b.name for b in breakers.all()} == {
        "catalog",
        "store",
        "registry",
        "query",
        "history_binance",
    }
