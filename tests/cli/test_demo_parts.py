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
from rich.console import Console

from k2.ask import reachable
from k2.cli.demo import feed, report
from k2.cli.demo.client import ExchangeClient, WorkerClient, free_port
from k2.cli.demo.enter import Enter
from k2.cli.demo.feed import Options, choose, no_answer
from k2.cli.demo.processes import Child, ChildFailed
from k2.cli.demo.report import Drain, NotDrained, drained, final_report
from k2.cli.demo.screen import Place, price_text, render
from k2.data_kind import REAL, SIMULATED, check_feed, claim, data_dir
from k2.errors import ConfigError, SourceError
from k2.setting_feeds import Binance
from k2.settings import load_settings
from k2.testing.clock import eventually, turns

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


async def test_enter_is_heard_while_the_walk_goes_on() -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs) as keyboard, Enter(keyboard, waits=True) as enter:
        stay = enter.wait_for(0.0)
        await turns()
        assert stay(), "no time is over where somebody sits"
        os.write(ours, b"\n")
        await eventually(lambda: not stay())
        again = enter.wait_for(0.0)
        assert again(), "one Enter is one step"
        os.close(ours)
        await eventually(lambda: not again())
        assert not enter.waits, "the terminal is gone"
    with Enter(sys.stdin, waits=False) as nobody:
        assert not nobody.wait_for(0.0)()
        assert nobody.wait_for(60.0)()
