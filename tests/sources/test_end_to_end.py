"""From the wire to columns: exchange server, session and mapper together."""

from __future__ import annotations

import asyncio

from k2.exchange.feed import CaptureFeed
from k2.sources.binance import BinanceMapper
from k2.sources.binance_protocol import BinanceProtocol
from k2.sources.connector import AiohttpConnector
from k2.sources.plan import plan_sessions
from k2.sources.session import Session, SessionConfig
from tests import data
from tests.exchange.feeds import serving


async def test_both_captures_arrive_as_every_trade_and_quote_once() -> None:
    data.require(data.BTC_0808, data.BTC_0809)
    (spec,) = plan_sessions(["BTCUSDT"])
    mapper = BinanceMapper(spec.symbols)
    ids: list[int] = []
    quotes = 0
    async with serving(CaptureFeed((data.BTC_0808, data.BTC_0809))) as server:
        config = SessionConfig((server.url,))
        session = Session(BinanceProtocol(spec.streams), config, AiohttpConnector(), name=spec.key)
        task = asyncio.create_task(session.run())
        while len(ids) + quotes < data.TRADES + data.QUOTES:
            mapped = mapper.map(await session.batch(8_192), ingestion_us=0)
            assert not mapped.refused
            ids += mapped.trades["source_sequence"].to_pylist() if mapped.trades else []
            quotes += mapped.quotes.num_rows if mapped.quotes else 0
        await session.close()
        await task
        assert server.finished
    assert ids == list(range(data.FIRST_TRADE, data.LAST_TRADE + 1))
    assert quotes == data.QUOTES
