"""The demo: what it counts, what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
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

from k2.ask import reachable
from k2.cli.demo import feed, report
from k2.cli.demo.client import ExchangeClient, WorkerClient, free_port
from k2.cli.demo.feed import Options, Recorded, choose, no_answer, recorded
from k2.cli.demo.processes import Child, ChildFailed
from k2.cli.demo.report import Drain, NotDrained, drained, final_report
from k2.cli.demo.screen import Place, price_text, render
from k2.cli.main import cli
from k2.data_kind import REAL, SIMULATED, check_feed, claim, data_dir
from k2.errors import CaptureError, ConfigError, SourceError
from k2.setting_feeds import Binance
from k2.settings import load_settings
from tests.data import BTC_0808, require
from tests.e2e.harness import Stack, gap_ranges, quote_ids, run_demo, trade_ids
from tests.sources.cases import COINBASE, KRAKEN_V1

STATUS: dict[str, Any] = {
    "drained": True,
    "lag": 0,
    "active_seconds": 2.0,
    "degradation": {"level": 0, "name": "NORMAL"},
    "source": {"frames": 10, "trades": 4, "quotes": 5, "refused": 1, "queued": 0, "control": 0},
    "validate": {"records": 9, "duplicates": 2, "dead_letters": 3, "missing_ids": 7},
    "sink": {
        "rows": 6,
        "tables": {"trades": {"last_commit_ms": 12.5}, "quotes": {"last_commit_ms": None}},
    },
    "lake": {"trades": 100, "quotes": 200},
    "memory": {"rss_mb": 251.3, "arrow_mb": 20.5, "tail_mb": 12.0},
    "uptime_s": 61.2,
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


def shown(status_: dict[str, Any], width: int) -> str:
    """The screen as text."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render(status_, Place("replay", "http://127.0.0.1:8000", "k2-dev-api-key-2026")))
    return console.export_text()


def test_the_screen_shows_prices_level_and_freshness() -> None:
    text = shown(STATUS, 120)
    for part in ("BTCUSDT", "61,837.63", "1,234.0", "NORMAL", "12 ms", "46 ms", "100", "200"):
        assert part in text, part
    assert "curl -H X-API-Key:k2-dev-api-key-2026 'http://127.0.0.1:8000/v1/trades?limit=3'" in text


def test_the_screen_fits_80_columns_with_the_largest_numbers() -> None:
    full = status(
        lag=5_000_000,
        degradation_level=4,
        degradation_name="CIRCUIT_BREAK",
        lake_trades=99_999_999,
        lake_quotes=99_999_999,
        validate_duplicates=1_234_567,
        freshness_ms={"p50": 12_345.0, "p99": 99_999.0},
    )
    lines = shown(full, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) == len(shown(full, 120).splitlines()), "nothing wraps"
    for part in ("CIRCUIT_BREAK", "99,999,999", "1,234,567", "99,999 ms", "trades stored"):
        assert any(part in line for line in lines), part
    assert any(line.rstrip().endswith("limit=3'") and line.startswith("curl") for line in lines)


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        ("61709.25", "61,709.25"),
        ("61709.2", "61,709.20"),
        ("61709", "61,709.00"),
        ("2681.6", "2,681.600"),
        ("2681.627", "2,681.627"),
        ("0.6112", "0.6112000"),
        ("0.0000081", "0.00000810"),
        ("0.0000000001", "0.0000000001"),
        ("100000000", "100,000,000.00"),
        ("0", "0.00"),
        (None, "-"),
    ],
)
def test_a_price_keeps_its_decimals(stored: str | None, text: str) -> None:
    assert price_text(stored) == text


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


def options(**changes: Any) -> Options:
    usual: dict[str, Any] = {
        "captures": (),
        "speed": "1",
        "until_drained": False,
        "by_clock": False,
        "data_dir": None,
        "as_json": False,
        "source": "auto",
        "symbols": (),
        "rate": 200,
    }
    return Options(**{**usual, **changes})


async def test_a_feed_is_live_when_an_address_opens_a_socket_and_says_why_not() -> None:
    app = web.Application()
    app.router.add_get("/stream", socket_handler)
    server = TestServer(app)
    await server.start_server()
    base = f"ws://127.0.0.1:{server.port}"
    nobody = f"ws://127.0.0.1:{free_port()}"
    assert (await choose(options(), Binance(url=base))).live
    assert (await choose(options(), Binance(url=nobody, failover_urls=(base,)))).live
    refused = await choose(options(), Binance(url=f"{base}/elsewhere"))
    assert (refused.live, refused.market) == (False, SIMULATED)
    assert "answered 404 instead of opening a WebSocket" in refused.why
    await server.close()
    gone = await choose(options(), Binance(url=base))
    assert gone.why.startswith("Binance did not answer: 127.0.0.1:")
    assert gone.why.endswith("using the built-in simulator.")
    with pytest.raises(SourceError, match=r"did not answer.*check the network"):
        await choose(options(source="live"), Binance(url=base))


async def test_a_silent_exchange_is_given_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "PROBE_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        base = f"ws://127.0.0.1:{silent.getsockname()[1]}"
        assert await no_answer(Binance(url=base)) == f"{base} within 0.05 s"


# -- where data goes -------------------------------------------------------------------------


def test_simulated_data_has_a_directory_of_its_own(tmp_path: Path) -> None:
    assert data_dir(None, tmp_path, REAL) == tmp_path
    assert data_dir(None, tmp_path, SIMULATED) == tmp_path / "simulated"
    assert data_dir(tmp_path / "mine", tmp_path, SIMULATED) == tmp_path / "mine"


@pytest.mark.parametrize(("first", "second"), [(REAL, SIMULATED), (SIMULATED, REAL)])
def test_simulated_and_real_data_are_never_put_together(
    tmp_path: Path, first: str, second: str
) -> None:
    claim(tmp_path / "data", first)
    claim(tmp_path / "data", first)
    with pytest.raises(ConfigError, match=f"holds {first} market data, and {second} data must not"):
        claim(tmp_path / "data", second)


def test_data_without_a_mark_counts_as_an_exchanges(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(ConfigError, match="holds real market data"):
        claim(tmp_path, SIMULATED)


def test_data_beside_a_simulated_market_is_simulated(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "simulator.json").write_text("{}")
    claim(tmp_path, SIMULATED)
    with pytest.raises(ConfigError, match="holds simulated market data"):
        claim(tmp_path, REAL)


def test_a_worker_adds_no_exchange_to_simulated_data(tmp_path: Path) -> None:
    claim(tmp_path, SIMULATED)
    made = load_settings()
    core = made.core.model_copy(update={"data_dir": tmp_path})
    live = made.model_copy(update={"core": core, "binance": Binance(url="wss://exchange:9443")})
    with pytest.raises(ConfigError, match="holds simulated market data and K2_BINANCE_URL"):
        check_feed(live)
    check_feed(live.model_copy(update={"binance": Binance(url="ws://127.0.0.1:9443")}))
    check_feed(made)
    both = core.model_copy(update={"exchanges": ("binance", "kraken")})
    near = {"core": both, "binance": Binance(url="ws://127.0.0.1:9443")}
    with pytest.raises(ConfigError, match=r"K2_KRAKEN_URL='wss://ws[.]kraken[.]com' is"):
        check_feed(made.model_copy(update=near))


async def test_a_port_of_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"K2_API_HOST='192\.0\.2\.1' is not an address of this"):
        free_port(8000, "192.0.2.1")
    with pytest.raises(ConfigError, match="K2_API_HOST='no such host'"):
        free_port(8000, "no such host")
    assert [reachable(host) for host in ("0.0.0.0", "::", "127.0.0.1", "::1", "me")] == [
        *("127.0.0.1", "[::1]", "127.0.0.1", "[::1]", "me")
    ]


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
