"""The demo: what it counts, what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner, Result
from rich.console import Console

from k2.cli.demo import report
from k2.cli.demo.client import ExchangeClient, WorkerClient, answers, free_port
from k2.cli.demo.processes import Child, ChildFailed
from k2.cli.demo.report import Drain, NotDrained, drained, final_report
from k2.cli.demo.screen import render
from k2.cli.main import cli
from tests.data import BTC_0808, require
from tests.e2e.harness import Stack, gap_ranges, quote_ids, trade_ids

STATUS: dict[str, Any] = {
    "drained": True,
    "lag": 0,
    "active_seconds": 2.0,
    "degradation": {"level": 0, "name": "NORMAL"},
    "source": {"frames": 10, "trades": 4, "quotes": 5, "refused": 1, "queued": 0},
    "validate": {"records": 9, "duplicates": 2, "dead_letters": 3, "missing_ids": 7},
    "sink": {
        "rows": 6,
        "tables": {"trades": {"last_commit_ms": 12.5}, "quotes": {"last_commit_ms": None}},
    },
    "lake": {"trades": 100, "quotes": 200},
    "freshness_ms": {"p50": 12.3, "p99": 45.6},
    "symbols": [
        {
            "symbol": "BTCUSDT",
            "last_price": "61837.63",
            "trades_per_s": 3.2,
            "quotes_per_s": 1_234.0,
        },
        {"symbol": "ETHUSDT", "last_price": None, "trades_per_s": 0.0, "quotes_per_s": 0.0},
    ],
}
SENT = {"finished": True, "frames_sent": 10}


def status(**changes: Any) -> dict[str, Any]:
    """`STATUS` with entries changed; `source_queued=1` changes one inside `source`."""
    made: dict[str, Any] = json.loads(json.dumps(STATUS))
    for name, value in changes.items():
        group, _, field = name.partition("_")
        if isinstance(made.get(group), dict):
            made[group][field] = value
        else:
            made[name] = value
    return made


@pytest.mark.parametrize(
    ("changes", "sent", "done"),
    [
        ({}, SENT, True),
        ({}, {"finished": False, "frames_sent": 10}, False),
        ({"source_frames": 9}, SENT, False),
        ({"source_frames": 11}, SENT, True),
        ({"source_queued": 1}, SENT, False),
        ({"drained": False}, SENT, False),
    ],
)
def test_a_replay_is_drained_when_nothing_is_left_anywhere(
    changes: dict[str, Any], sent: dict[str, Any], done: bool
) -> None:
    assert drained(status(**changes), sent) is done


def test_the_report_counts_this_run_and_what_the_lake_has() -> None:
    stored = {"trades": 104, "quotes": 205, "gaps": 1}
    assert final_report(STATUS, {**SENT, "frames_sent": 11}, stored, 8) == {
        "source": {"frames": 10, "trades": 4, "quotes": 5, "sent_by_exchange": 11},
        "lake": {"trades": 104, "quotes": 205},
        "duplicates_dropped": 2,
        "dead_letters": 4,
        "gaps": 8,
        "seconds": 2.0,
        "rows_per_s": 3.0,
        "freshness_ms": {"p50": 12.3, "p99": 45.6},
    }


def test_a_run_without_a_replay_or_without_any_frame_has_a_report_too() -> None:
    made = final_report(status(active_seconds=0.0), None, {"trades": 0, "quotes": 0}, 0)
    assert made["source"]["sent_by_exchange"] is None
    assert (made["seconds"], made["rows_per_s"]) == (0.0, 0.0)


class Answers:
    """A process that always runs, and clients that answer from a list, the last for ever."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self._answers = list(answers)

    async def status(self) -> dict[str, Any]:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    def check(self) -> None:
        pass

    def log_tail(self) -> str:
        return "the last words"


def drain(worker: Answers, exchange: Answers, stop: asyncio.Event | None = None) -> Drain:
    return Drain(worker, worker, exchange, stop or asyncio.Event())  # type: ignore[arg-type]


async def test_waiting_ends_when_it_is_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_POLL_S", 0.0)
    worker = Answers(status(lag=5, drained=False), status(lag=3, drained=False), STATUS)
    found = await drain(worker, Answers({**SENT, "finished": False}, SENT)).wait()
    assert found == STATUS


async def test_a_standstill_ends_with_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_STALL_S", 0.0)
    monkeypatch.setattr(report, "_POLL_S", 0.0)
    with pytest.raises(NotDrained, match=r"nothing has moved(.|\n)*the last words"):
        await drain(Answers(status(drained=False)), Answers(SENT)).wait()


async def test_a_stop_before_the_end_says_how_far_it_came() -> None:
    stop = asyncio.Event()
    stop.set()
    with pytest.raises(NotDrained, match="stopped before the replay was stored"):
        await drain(Answers(status(drained=False)), Answers(SENT), stop).wait()


def test_the_screen_shows_prices_level_and_freshness() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(STATUS, "replay", "http://127.0.0.1:8000", "the-key"))
    text = console.export_text()
    for shown in ("BTCUSDT", "61837.63", "1,234.0", "NORMAL", "12 / 46 ms", "100", "200", "12 ms"):
        assert shown in text, shown
    assert "curl -s -H 'X-API-Key: the-key'" in text


def test_a_free_port_is_the_preferred_one_unless_it_is_taken() -> None:
    port = free_port()
    assert free_port(port) == port


async def test_a_taken_port_is_left_alone() -> None:
    server = TestServer(web.Application())
    await server.start_server()
    assert server.port is not None
    assert free_port(server.port) != server.port
    await server.close()


async def socket_handler(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    await ws.close()
    return ws


async def test_a_live_feed_is_one_whose_socket_opens() -> None:
    app = web.Application()
    app.router.add_get("/ws/btcusdt@trade", socket_handler)
    server = TestServer(app)
    await server.start_server()
    base = f"ws://127.0.0.1:{server.port}"
    assert await answers(f"{base}/ws/btcusdt@trade", 5.0)
    assert not await answers(f"{base}/elsewhere", 5.0)
    await server.close()
    assert not await answers(f"{base}/ws/btcusdt@trade", 5.0)


# -- processes -------------------------------------------------------------------------------


def child(tmp_path: Path, code: str, name: str = "worker") -> Child:
    return Child(name, [sys.executable, "-c", code], tmp_path / "logs" / f"{name}.log")


async def test_a_process_that_ends_by_itself_is_told_with_its_last_words(tmp_path: Path) -> None:
    made = child(tmp_path, "print('so it goes'); raise SystemExit(3)")
    assert made.log_tail() == "(no log)"
    made.check()
    await made.start()
    assert await made.ended(20)
    with pytest.raises(ChildFailed, match=r"worker ended with status 3(.|\n)*so it goes") as caught:
        made.check()
    assert caught.value.details == {"child": "worker", "status": 3}
    assert await made.stop(1) == 3


async def test_a_worker_says_why_it_ends_and_only_this_run_counts(tmp_path: Path) -> None:
    line = json.dumps({"event": "worker_cannot_start", "error": "the data directory is in use"})
    noisy = child(tmp_path, f"print('noise'); print({line!r}); print('[]'); print('{{}}'); exit(1)")
    await noisy.start()
    assert await noisy.ended(20)
    with pytest.raises(ChildFailed, match=r"status 1: the data directory is in use; its log: /"):
        noisy.check()
    quiet = child(tmp_path, "raise SystemExit(1)")
    await quiet.start()
    assert await quiet.ended(20)
    assert quiet.reason() == ""


async def test_a_process_that_does_not_stop_is_ended_by_force(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)"
    made = child(tmp_path, f"{code}; time.sleep(600)")
    await made.start()
    while made.log_tail() != "up":  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.01)
    assert not await made.ended(0)
    assert await made.stop(0.1) == -signal.SIGKILL
    assert await child(tmp_path, "pass").stop(1) == 0, "one that was never started"


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_waiting_for_a_process_ends_when_it_does(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    made = child(tmp_path, "print('no such thing'); raise SystemExit(2)")
    await made.start()
    base = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ChildFailed, match="no such thing"):
        await WorkerClient(http, base, "key").wait_ready(made, 20)
    with pytest.raises(ChildFailed, match="no such thing"):
        await ExchangeClient(http, base).wait_up(made, 20)


async def test_waiting_for_a_process_that_never_answers_ends_too(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    made = child(tmp_path, "import time; time.sleep(600)")
    await made.start()
    base = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ChildFailed, match="not ready within 0 s"):
        await WorkerClient(http, base, "key").wait_ready(made, 0.1)
    with pytest.raises(ChildFailed, match="did not answer within 0 s"):
        await ExchangeClient(http, base).wait_up(made, 0.1)
    await made.stop(20)


# -- the command -----------------------------------------------------------------------------


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["demo", *arguments])


@pytest.mark.parametrize("speed", ["0", "-1", "fast", "nan", "inf", ""])
def test_a_speed_is_a_positive_number_or_max(speed: str) -> None:
    result = invoke("--speed", speed)
    assert result.exit_code == 2
    assert "--speed" in result.output
    assert "a positive number or max" in result.output


def test_until_drained_needs_a_capture() -> None:
    result = invoke("--until-drained")
    assert result.exit_code == 2
    assert "--until-drained needs --capture" in result.output


@pytest.mark.parametrize("arguments", [["--source", "kraken"], ["--rate", "x"], ["--nonsense"]])
def test_other_wrong_options_are_named(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.output


def test_a_capture_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gz", tmp_path):
        result = invoke("--capture", str(path), "--data-dir", str(tmp_path / "data"))
        assert result.exit_code == 2
        assert f"--capture {path}: no such file" in result.output
    assert not (tmp_path / "data").exists(), "nothing was begun"


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


@pytest.mark.timeout(120)
async def test_without_a_network_the_simulator_takes_over_and_ctrl_c_stores_everything(
    tmp_path: Path,
) -> None:
    nobody = f"ws://127.0.0.1:{free_port()}"
    command = Command(
        tmp_path,
        *("--json", "--rate", "500", "--symbols", "BTCUSDT"),
        K2_BINANCE_URL=nobody,
        K2_BINANCE_FAILOVER_URLS="",
    )
    process = await command.start()
    assert process.stderr is not None
    said = ""
    while "try " not in said:
        line = (await process.stderr.readline()).decode()
        assert line, said
        said += line
    assert "Source: built-in exchange simulator." in said
    base = said.split("API    ")[1].split("/ ")[0]
    async with aiohttp.ClientSession() as session:
        client = WorkerClient(session, base, "k2-dev-api-key-2026")
        while (await client.status())["source"]["trades"] < 100:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    final = json.loads(out.decode().strip().splitlines()[-1])
    trades, quotes = trade_ids(command.data), quote_ids(command.data)
    assert final["lake"] == {"trades": len(trades), "quotes": len(quotes)}
    assert len(trades) >= final["source"]["trades"] >= 100
    assert trades == list(range(trades[0], trades[0] + len(trades)))
    assert gap_ranges(command.data) == []


@pytest.mark.timeout(120)
async def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The data directory of another worker, and its port."""
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
        assert f"cannot listen on 127.0.0.1:{stack.port}" in out.decode()
        assert "worker_cannot_start" in out.decode()
