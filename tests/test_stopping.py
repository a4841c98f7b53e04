"""Stopping is bounded, whatever a part does."""

from __future__ import annotations

import asyncio
import threading

from structlog.testing import capture_logs

from k2.errors import LakeError
from k2.stopping import close_all, end_overdue


async def test_no_part_keeps_the_others_from_closing() -> None:
    closed: list[str] = []

    async def defect() -> None:
        raise RuntimeError("a defect")

    async def refused() -> None:
        raise LakeError("the lake is away")

    async def last() -> None:
        closed.append("last")

    hangs = asyncio.Event().wait
    with capture_logs() as said:
        await close_all(
            [("defect", defect), ("lake", refused), ("hangs", hangs), ("last", last)], limit_s=0.01
        )
    assert closed == ["last"]
    assert [(line["part"], line["log_level"]) for line in said] == [
        ("defect", "error"),
        ("lake", "warning"),
        ("hangs", "warning"),
    ]


def test_a_stop_that_hangs_is_ended_and_says_on_what() -> None:
    left: list[int] = []
    ended, hold = threading.Event(), threading.Event()

    def leave(status: int) -> None:
        left.append(status)
        ended.set()

    hanging = threading.Thread(target=hold.wait, name="hanging-commit")
    hanging.start()
    try:
        with capture_logs() as said:
            end_overdue(0.01, leave)
            assert ended.wait(10)
    finally:
        hold.set()
        hanging.join()
    assert left == [1]
    (line,) = said
    assert line["event"] == "stop_overdue"
    assert "hanging-commit" in line["threads"]
