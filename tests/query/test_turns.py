"""Answers on the event loop leave turns to everybody else."""

from __future__ import annotations

import asyncio

import pytest

from k2.query.turns import Turns


async def test_others_have_a_turn_between_two() -> None:
    turns, told = Turns(), list[str]()

    async def answer(name: str) -> None:
        async with turns:
            told.append(name)

    async def other() -> None:
        for _ in range(4):
            told.append("other")
            await asyncio.sleep(0)

    await asyncio.gather(answer("a"), answer("b"), answer("c"), other())
    assert [name for name in told if name != "other"] == ["a", "b", "c"]
    assert "other" in told[1 : told.index("b")], told
    assert "other" in told[told.index("b") : told.index("c")], told


async def test_one_that_fails_or_is_given_up_keeps_nobody_waiting() -> None:
    turns = Turns()
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
