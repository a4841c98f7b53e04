"""A worker that cannot start for a wrong setting: one message, status 2, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


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
