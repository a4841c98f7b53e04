"""A worker that cannot start for a wrong setting: one message, status 2, no traceback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from k2.cli.demo.client import free_port
from tests.e2e.harness import Stack


def start(directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The production entry, in a directory without an `.env` file."""
    return subprocess.run(
        [sys.executable, "-m", "faust", "-A", "k2.app", "worker", "-l", "info"],
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_wrong_setting_is_one_json_line_where_logs_are_json(tmp_path: Path) -> None:
    ended = start(tmp_path, K2_BINANCE_URL="foo")
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    told = json.loads(line)
    assert told["event"] == "worker_cannot_start"
    assert told["error"].startswith("K2_BINANCE_URL='foo' is not usable; allowed: ws://")


def test_a_wrong_setting_is_one_plain_line_on_a_console(tmp_path: Path) -> None:
    ended = start(tmp_path, K2_API_PORT="x", K2_LOG_FORMAT="console")
    assert ended.returncode == 2
    assert ended.stderr.startswith("k2: K2_API_PORT='x' is not usable; allowed: a whole number")
    assert len(ended.stderr.splitlines()) == 1


def told(ended: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """K2's own lines, every line being JSON: a traceback would not be."""
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    return [line for line in lines if line["logger"].startswith("k2.") and "error" in line]


def test_a_kafka_that_is_not_there_is_named_and_given_up(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    ended = start(
        tmp_path,
        K2_KAFKA_BOOTSTRAP_SERVERS=address,
        K2_KAFKA_START_TIMEOUT_S="0.1",
        K2_API_PORT=str(free_port()),
        K2_LOG_FORMAT="json",
    )
    assert ended.returncode == 1
    (reason,) = told(ended)
    assert reason["event"] == "worker_cannot_start"
    assert f"Kafka does not answer at {address} (connection refused)" in reason["error"]
    assert '"event": "kafka_unreachable"' in ended.stderr


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = start(tmp_path, K2_API_PORT=port, K2_LOG_FORMAT="json")
    assert ended.returncode == 1
    (reason,) = told(ended)
    assert reason["event"] == "worker_cannot_start"
    assert f"K2_API_PORT={port}: the API cannot listen there" in reason["error"]


@pytest.mark.timeout(120)
async def test_a_log_in_json_is_json_on_every_line_from_start_to_stop(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        await stack.start_worker(
            K2_BINANCE_ENABLED="false", K2_LOG_FORMAT="json", K2_API_PROT="8000"
        )
        assert stack.worker is not None
        os.kill(stack.worker.pid, signal.SIGINT)
        assert await stack.worker.ended(30)
        lines = [json.loads(line) for line in stack.log_file.read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert "worker_ready" in events
    assert [line["path"] for line in lines if line["event"] == "http_request"] == []
    (unknown,) = [line for line in lines if line["event"] == "setting_unknown"]
    assert "did you mean K2_API_PORT?" in unknown["message"]
