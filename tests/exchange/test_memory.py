"""A simulated market goes on where it stopped: nothing missing, no id twice."""

from __future__ import annotations

import asyncio
import json
import signal
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from k2.errors import ConfigError
from k2.exchange.memory import MarketMemory, reached
from k2.exchange.simulator import MarketState, Simulator, SimulatorConfig
from k2.exchange.tally import Tally
from tests.exchange.test_cli import process, receive

SYMBOLS = ("BTCUSDT", "ETHUSDT")


def trade_ids(received: list[bytes]) -> list[int]:
    frames = [json.loads(frame)["data"] for frame in received]
    return [frame["t"] for frame in frames if frame.get("e") == "trade"]


def play(simulator: Simulator, tally: Tally, count: int, skip_last: int = 0) -> list[Any]:
    """Take `count` frames, all but the last few of them sent."""
    (segment,) = simulator.segments()
    made = list(islice(segment, count))
    for frame in made[: count - skip_last]:
        tally.add(frame, 0)
    return made


def test_what_nobody_got_is_given_again(tmp_path: Path) -> None:
    memory, sent = MarketMemory(tmp_path / "state.json"), Tally()
    simulator = Simulator(SimulatorConfig(SYMBOLS, first_trade_id=100))
    made = play(simulator, sent, 2_000, skip_last=500)
    memory.save(simulator, sent)
    known = MarketMemory(tmp_path / "state.json").load()
    delivered = trade_ids([f.data for f in made[:1_500] if f.stream == "btcusdt@trade"])
    assert known["BTCUSDT"].trade_id == delivered[-1] + 1
    again = Simulator(SimulatorConfig(SYMBOLS, resume=known))
    more = play(again, Tally(), 2_000)
    resumed = trade_ids([f.data for f in more if f.stream == "btcusdt@trade"])
    assert resumed[0] == delivered[-1] + 1
    assert [f.data for f in more] != [f.data for f in made], "another market than before"


def test_prices_and_update_ids_go_on_too(tmp_path: Path) -> None:
    sent = Tally()
    simulator = Simulator(SimulatorConfig(SYMBOLS))
    made = play(simulator, sent, 20_000)
    last = json.loads(next(f for f in reversed(made) if "btcusdt@book" in f.stream).data)["data"]
    resumed = play(
        Simulator(SimulatorConfig(SYMBOLS, resume=reached(simulator, sent))), Tally(), 99
    )
    first = json.loads(next(f for f in resumed if "btcusdt@book" in f.stream).data)["data"]
    assert first["u"] > last["u"]
    assert float(first["b"]) == pytest.approx(float(last["b"]), rel=2e-3)


def test_a_reserve_is_above_what_a_second_can_bring(tmp_path: Path) -> None:
    memory, sent = MarketMemory(tmp_path / "state.json", speed=2.0), Tally()
    simulator = Simulator(SimulatorConfig(SYMBOLS, rate=1_000))
    memory.reserve(simulator, sent)
    play(simulator, sent, 2_000)
    now, reserved = reached(simulator, sent), MarketMemory(tmp_path / "state.json").load()
    for symbol in SYMBOLS:
        assert reserved[symbol].trade_id > now[symbol].trade_id
        assert reserved[symbol].update_id > now[symbol].update_id


def test_symbols_of_other_runs_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    first = MarketMemory(path)
    first.save(Simulator(SimulatorConfig(("SOLUSDT",), first_trade_id=7)), Tally())
    second = MarketMemory(path)
    assert second.load() == {"SOLUSDT": MarketState(7, 49)}
    second.save(Simulator(SimulatorConfig(SYMBOLS)), Tally())
    assert set(MarketMemory(path).load()) == {"SOLUSDT", *SYMBOLS}


@pytest.mark.parametrize("content", ["", "[]", '{"symbols": {"A": {}}}', '{"symbols": 1}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"--state .*state.json is not a file this simulator"):
        MarketMemory(path).load()
    assert MarketMemory(tmp_path / "none").load() == {}


async def run_once(state: Path, number: int) -> list[int]:
    """Trade ids of a run that ends by a signal."""
    arguments = ("simulate", "--symbols", "btcusdt", "--rate", "2000", "--state", str(state))
    async with process(*arguments) as (started, said):
        async with asyncio.timeout(20):
            received = await receive(said["url"], 400)
        started.send_signal(number)
        await started.wait()
    return trade_ids(received)


async def test_a_second_run_goes_on_after_a_stop_and_after_a_kill(tmp_path: Path) -> None:
    state = tmp_path / "made" / "state.json"
    first = await run_once(state, signal.SIGTERM)
    second = await run_once(state, signal.SIGKILL)
    third = await run_once(state, signal.SIGTERM)
    assert first == list(range(1, len(first) + 1))
    # The client left before the signal: the server may have sent a little more by then.
    assert second[0] > first[-1]
    assert second[0] - first[-1] < 2_000
    assert third[0] > second[-1]
