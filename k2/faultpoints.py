"""Marked points in the pipeline where a fault can strike; nothing happens unless one is armed.

Armed for a process by `K2_FAULTPOINTS=DIR` at its start; then the file `DIR/armed`, written by the
fault harness, names a point and an action: `kill` (SIGKILL), `stop` (SIGSTOP) or `raise`. The first
process that reaches the point takes the file, so that one order strikes once.
"""

from __future__ import annotations

import os
import signal
from enum import StrEnum
from pathlib import Path
from typing import Final

VARIABLE: Final = "K2_FAULTPOINTS"
_DIRECTORY: Final = os.environ.get(VARIABLE)


class Point(StrEnum):
    """Where a fault can strike, in the order a record meets them."""

    AFTER_DECODE = "after-decode"
    AFTER_PRODUCE = "after-produce"
    AFTER_TABLE_UPDATE = "after-table-update"
    BEFORE_ACK = "before-ack"
    BEFORE_PARQUET = "before-parquet"
    AFTER_PARQUET = "after-parquet"
    BEFORE_COMMIT = "before-commit"
    AFTER_COMMIT = "after-commit"
    BEFORE_SINK_ACK = "before-sink-ack"
    BEFORE_REVOKE = "before-revoke"
    ON_ASSIGN = "on-assign"


class FaultInjectedError(OSError):
    """What the action `raise` raises: an outcome nobody heard of."""


def reached(point: Point) -> None:
    """Strike if this point is armed. Raises `FaultInjectedError` for the action `raise`."""
    if _DIRECTORY is not None:
        _strike(Path(_DIRECTORY), point)


def _strike(directory: Path, point: Point) -> None:
    try:
        wanted, action = (directory / "armed").read_text(encoding="ascii").split()
    except (FileNotFoundError, ValueError):
        return
    if wanted != point:
        return
    taken = directory / f"taken-{os.getpid()}"
    try:
        (directory / "armed").rename(taken)
    except FileNotFoundError:
        return  # another process was first
    if action == "raise":
        raise FaultInjectedError(f"injected at {point}")
    os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)


def arm(directory: Path, point: Point, action: str) -> None:
    """Arm one point for the processes started with this directory."""
    directory.mkdir(parents=True, exist_ok=True)
    disarm(directory)
    partial = directory / "armed.partial"
    partial.write_text(f"{point} {action}", encoding="ascii")
    partial.rename(directory / "armed")


def taken_by(directory: Path) -> int | None:
    """The process that was struck; None while none was."""
    return next((int(path.name[6:]) for path in directory.glob("taken-*")), None)


def disarm(directory: Path) -> None:
    """Take back what has not struck, and forget what has."""
    for path in (directory / "armed", *directory.glob("taken-*")):
        path.unlink(missing_ok=True)
