"""Trades that wait in the log before a worker starts."""

from __future__ import annotations

import asyncio

from k2.clock import SYSTEM_CLOCK
from k2.open_log import opened
from k2.settings import Settings
from k2.topics import BINANCE_TRADES
from tests.steps.parts import trade_rows


async def write_backlog(settings: Settings, symbols: tuple[str, ...], ids: int) -> None:
    """Trades 1..ids of every symbol in the embedded log, as a source leaves them."""
    step = 10_000
    async with opened(settings, BINANCE_TRADES) as log:
        for first in range(1, ids + 1, step):
            for symbol in symbols:
                records = [(symbol, ident) for ident in range(first, min(first + step, ids + 1))]
                rows = trade_rows(records, SYSTEM_CLOCK.now_us() - ids * 1_000)
                await asyncio.gather(*log.publisher.publish(rows, "backlog"))
