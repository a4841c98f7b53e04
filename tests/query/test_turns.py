"""Answers on the event loop leave turns to everybody else."""

from __future__ import annotations

import asyncio

import pytest

from k2.query.turns import Turns


class Clock:
    """Each look at it is a millisecond later."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.001
        return self.now_s


async def test_after_a_few_milliseconds_others_have_a_turn() -> None:
    turns, told = Turns(Clock()), list[str]()

    async def answer(number: int) -> None:
        async with turns:
            told.append(str(number))

    async def other() -> None:
        for _ in range(4):
            told.append("other")
            await asyncio.sleep(0)

    await asyncio.gather(*(answer(number) for number in range(22)), other())
    answers = [name for name in told if name != "other"]
    assert answers == [str(number) for number in range(22)], "first come, first served"
    runs = " ".join(told).split("other")
    assert max(len(run.split()) for run in runs) == 10, told


async def test_one_that_fails_or_is_given_up_keeps_nobody_waiting() -> None:
    turns = Turns(Clock())
    for _ in range(10):
        with pytest.raises(ValueError, match="wrong"):
            async with turns:
                raise ValueError("wrong")

    async def answer() -> None:
        async with turns:
            pass

    task = asyncio.create_task(answer())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait_for(answer(), 1)
