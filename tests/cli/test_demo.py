"""The demo: what it counts, what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner, Result

from k2.cli.demo.client import WorkerClient, free_port
from k2.cli.demo.feed import Recorded, recorded
from k2.cli.main import cli
from k2.data_kind import SIMULATED, claim
from k2.errors import CaptureError
from tests.data import BTC_0808, require
from tests.e2e.harness import Stack, gap_ranges, quote_ids, run_demo, trade_ids
from tests.sources.cases import COINBASE, KRAKEN_V1


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["demo", *arguments])


@pytest.mark.parametrize("speed", ["0", "-1", "fast", "nan", "inf", ""])
def test_a_speed_is_a_positive_number_or_max(speed: str) -> None:
    result = invoke("--speed", speed)
    assert result.exit_code == 2
    assert "--speed" in result.output
    assert "a positive number or max" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--until-drained"], "--until-drained needs --capture"),
        (["--by-clock"], "--by-clock needs --capture"),
        (["--speed", "max"], "--speed needs --capture"),
        (["--capture", "x", "--source", "live"], "exclude each other"),
        (["--source", "kraken"], "--source"),
        (["--rate", "x"], "--rate"),
        (["--rate", "0"], "--rate"),
        (["--symbols", ","], "letters and digits"),
        (["--symbols", "BTC/USDT"], "letters and digits"),
        (["--data-dir", __file__], "--data-dir"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_options_are_named(arguments: list[str], said: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize("symbols", [(), ("--symbols", "BTCUSDT")])
def test_a_capture_that_cannot_be_replayed_is_named(
    tmp_path: Path, symbols: tuple[str, ...]
) -> None:
    require(BTC_0808)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "noise").write_bytes(b"noise\n" * 9)
    (tmp_path / "text.gz").write_bytes(b"\x1f\x8bnot gzip at all")
    for name, said in {
        "none.gz": "no such file",
        ".": "is a directory",
        "empty": "is empty",
        "noise": "of no known layout",
        "text.gz": "is a damaged gzip",
    }.items():
        path = tmp_path / name
        result = invoke(
            *("--capture", str(BTC_0808), "--capture", str(path), *symbols),
            *("--data-dir", str(tmp_path / "data")),
        )
        assert result.exit_code == 2, name
        assert f"k2: capture {path}" in result.output
        assert said in result.output
    assert not (tmp_path / "data").exists(), "nothing was begun"


def test_a_capture_without_a_stream_is_told_what_one_looks_like(tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_text('1723161254000000000 {"type":"ticker"}\n')
    result = invoke("--capture", str(path))
    assert result.exit_code == 2
    assert "has no stream of an exchange in it" in result.output


class Command:
    """`k2 demo` as a process of its own."""

    def __init__(self, tmp_path: Path, *arguments: str, **environment: str) -> None:
        self.data = tmp_path / "data"
        self._arguments = [sys.executable, "-m", "k2.cli", "demo", "--data-dir", str(self.data)]
        self._arguments += arguments
        self._environment = {**os.environ, "K2_API_PORT": str(free_port()), **environment}

    async def start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
        )

    async def run(self) -> tuple[int, str, str]:
        """Status, standard output, standard error."""
        process = await self.start()
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()


async def test_ctrl_c_while_starting_ends_at_once_and_leaves_nothing_running(
    tmp_path: Path,
) -> None:
    command = Command(tmp_path, "--source", "simulator", "--rate", "5")
    process = await command.start()
    while not (command.data / "logs" / "worker.log").exists():  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode == 130, err.decode()
    assert "Stopped before K2 was up." in out.decode()


@pytest.mark.parametrize("damage", ["cut", "noise"])
async def test_a_damaged_capture_ends_the_demo_with_the_place(tmp_path: Path, damage: str) -> None:
    require(BTC_0808)
    capture = tmp_path / "capture.gz"
    capture.write_bytes(BTC_0808.read_bytes()[:300_000] if damage == "cut" else b"noise\n" * 9)
    options = ["--speed", "max", "--until-drained", "--json", "--symbols", "BTCUSDT"]
    status_, _, err = await Command(tmp_path, "--capture", str(capture), *options).run()
    assert status_ == 2
    assert str(capture) in err
    assert "Traceback" not in err, err


async def run_until(command: Command, trades: int) -> tuple[str, dict[str, Any]]:
    """Run until so many trades came, then Ctrl-C: (what it said while starting, its report)."""
    process = await command.start()
    assert process.stderr is not None
    said = ""
    while "try " not in said:
        line = (await process.stderr.readline()).decode()
        assert line, said
        said += line
    base = said.split("API    ")[1].split("/ ")[0]
    async with aiohttp.ClientSession() as session:
        client = WorkerClient(session, base, "k2-dev-api-key-2026")
        while (await client.status())["source"]["trades"] < trades:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return said, json.loads(out.decode().strip().splitlines()[-1])


@pytest.mark.timeout(300)
async def test_without_a_network_the_simulator_takes_over_and_goes_on_where_it_stopped(
    tmp_path: Path,
) -> None:
    busy = TestServer(web.Application())
    await busy.start_server()
    command = Command(
        tmp_path,
        *("--json", "--rate", "500", "--symbols", "BTCUSDT"),
        K2_BINANCE_URL=f"ws://127.0.0.1:{free_port()}",
        K2_BINANCE_FAILOVER_URLS="",
        K2_BINANCE_ENABLED="false",
        K2_EXCHANGES="binance,kraken",
        K2_ROLES="query",
        K2_API_PORT=str(busy.port),
    )
    stored: list[int] = []
    for _ in range(2):
        said, final = await run_until(command, 100)
        assert "Binance did not answer: 127.0.0.1:" in said
        assert f"Port {busy.port} (K2_API_PORT) is taken; the API is on port " in said
        assert "Source: built-in simulator." in said
        trades, quotes = trade_ids(command.data), quote_ids(command.data)
        assert final["lake"] == {"trades": len(trades), "quotes": len(quotes)}
        assert len(trades) - len(stored) >= final["source"]["trades"] >= 100
        assert trades == list(range(trades[0], trades[0] + len(trades)))
        assert (final["gaps"], final["duplicates_dropped"]) == (0, 0)
        stored = trades
    await busy.close()
    assert gap_ranges(command.data) == []


@pytest.mark.timeout(120)
async def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The data directory of another worker, and its port."""
    claim(tmp_path / "data", SIMULATED)
    async with Stack(tmp_path) as stack:
        await stack.start_worker(K2_BINANCE_ENABLED="false")
        status_, _, err = await Command(tmp_path, "--json", "--source", "simulator").run()
        assert status_ == 1
        assert "the worker ended with status 1: the embedded log in" in err
        assert "is in use by process" in err
        assert "Traceback" not in err
        up = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "k2.cli", "up", "--data-dir", str(tmp_path / "other")),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "K2_API_PORT": str(stack.port), "K2_LOG_FORMAT": "json"},
        )
        out, _ = await up.communicate()
        assert up.returncode == 1
        assert f"K2_API_PORT={stack.port}: the API cannot listen there" in out.decode()
        assert "worker_cannot_start" in out.decode()


async def test_a_recording_of_another_exchange_is_replayed_as_that_exchange(tmp_path: Path) -> None:
    require(COINBASE)
    report = await run_demo(tmp_path, COINBASE)
    assert report["lake"] == {"trades": 107, "quotes": 107}
    assert (report["dead_letters"], report["gaps"]) == (0, 0)


def test_the_feed_is_the_one_the_recordings_are_of() -> None:
    require(COINBASE, KRAKEN_V1, BTC_0808)
    stop = asyncio.Event()
    assert recorded((BTC_0808,), stop) == Recorded("binance", ("BTCUSDT",))
    old = recorded((KRAKEN_V1,), stop)
    assert (old.feed, old.settings) == ("kraken", {"PROTOCOL": "v1"})
    assert {"SC/EUR", "XMR/USD"} <= set(old.symbols)
    with pytest.raises(CaptureError, match="coinbase and kraken-v1"):
        recorded((COINBASE, KRAKEN_V1), stop)
