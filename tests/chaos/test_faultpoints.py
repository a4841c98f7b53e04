"""Marked points strike once, in one process, and only when armed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from k2 import faultpoints
from k2.faultpoints import Point

_PROGRAM = """
from k2.faultpoints import Point, reached
reached(Point.AFTER_DECODE)
print("passed decode", flush=True)
try:
    reached(Point.BEFORE_COMMIT)
except OSError:
    print("raised", flush=True)
reached(Point.BEFORE_COMMIT)
print("ended", flush=True)
"""


def program(directory: Path | None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ}
    environment.pop(faultpoints.VARIABLE, None)
    if directory is not None:
        environment[faultpoints.VARIABLE] = str(directory)
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("with_variable", [False, True])
def test_nothing_happens_unless_armed(tmp_path: Path, with_variable: bool) -> None:
    done = program(tmp_path if with_variable else None)
    assert done.stdout.split("\n")[:2] == ["passed decode", "ended"], done.stderr


def test_a_kill_strikes_at_its_point(tmp_path: Path) -> None:
    faultpoints.arm(tmp_path, Point.BEFORE_COMMIT, "kill")
    done = program(tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == "passed decode\n"
    assert faultpoints.taken_by(tmp_path) is not None
    faultpoints.disarm(tmp_path)
    assert faultpoints.taken_by(tmp_path) is None


def test_a_raise_strikes_once(tmp_path: Path) -> None:
    faultpoints.arm(tmp_path, Point.BEFORE_COMMIT, "raise")
    assert program(tmp_path).stdout == "passed decode\nraised\nended\n"
    assert program(tmp_path).stdout == "passed decode\nended\n"
