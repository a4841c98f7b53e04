"""`k2 exchange` as a process: it says where it listens, serves, and ends cleanly."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

from k2.cli.exchange import exchange
from k2.errors import CaptureError
from tests.exchange.feeds import trade


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Any]]:
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "k2.cli", "exchange", *arguments, "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert started.stdout is not None
    try:
        async with asyncio.timeout(20):
            yield started, json.loads(await started.stdout.readline())
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def receive(url: str, count: int) -> list[bytes]:
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{url}/stream?streams=btcusdt@trade/btcusdt@bookTicker") as ws,
    ):
        return [(await ws.receive_str()).encode() for _ in range(count)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_serve_replays_and_stops_cleanly(tmp_path: Path, number: int) -> None:
    frames = [trade(n) for n in range(5)]
    first, second = tmp_path / "first", tmp_path / "second.gz"
    lines = [b"%d %s\n" % (frame.recv_ns, frame.data) for frame in frames]
    first.write_bytes(b"".join(lines[:3]))
    second.write_bytes(gzip.compress(b"".join(lines[3:])))
    arguments = ("serve", "--capture", str(first), "--capture", str(second), "--speed", "max")
    async with process(*arguments) as (started, said):
        assert await receive(said["url"], 5) == [frame.data for frame in frames]
        started.send_signal(number)
        assert await started.wait() == 0


async def test_simulate_makes_a_market() -> None:
    arguments = ("simulate", "--symbols", "btcusdt,ETHUSDT", "--rate", "5000", "--seed", "3")
    async with process(*arguments) as (started, said):
        received = await receive(said["url"], 50)
        assert all(b'"s":"BTCUSDT"' in frame for frame in received)
        started.send_signal(signal.SIGINT)
        assert await started.wait() == 0


async def test_a_damaged_capture_ends_the_process_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "half.gz"
    lines = b"".join(b"%d %s\n" % (frame.recv_ns, frame.data) for frame in map(trade, range(9_000)))
    path.write_bytes(gzip.compress(lines)[:-500])
    async with process("serve", "--capture", str(path), "--speed", "max") as (started, said):
        assert started.stderr is not None
        with pytest.raises(TypeError):  # the server closes the connection at the damage
            await receive(said["url"], 9_000)
        assert await started.wait() == 2
        assert "middle of its gzip" in (await started.stderr.read()).decode()


@pytest.mark.parametrize("speed", ["0", "-1", "fast", "inf", "nan"])
def test_impossible_speeds_are_usage_errors(speed: str) -> None:
    result = CliRunner().invoke(exchange, ["serve", "--capture", "x", "--speed", speed])
    assert result.exit_code == 2
    assert "above 0, or max" in result.output


def test_a_missing_capture_is_named_before_anything_starts() -> None:
    result = CliRunner().invoke(exchange, ["serve", "--capture", "no-such-file"])
    assert isinstance(result.exception, CaptureError)
    assert "no-such-file" in str(result.exception)
