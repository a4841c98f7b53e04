"""kill -9 in the middle of a feed: what the log acknowledged is stored once, the rest is a gap."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from k2.testing.kafka import running_kafka
from tests.data import BTC_0808, require
from tests.e2e.harness import Stack, candles_compared, gap_ranges, quote_ids, trade_ids
from tests.services.require import require_services

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def log_environment(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Settings of the log; a Kafka of its own, since the topics' names are always the same."""
    if request.param == "embedded":
        yield {}
        return
    require_services("kafka")
    with running_kafka() as server:
        yield {
            "K2_KAFKA_BOOTSTRAP_SERVERS": server.bootstrap,
            "K2_KAFKA_SESSION_TIMEOUT_S": "6",
        }


async def test_killed_worker_loses_nothing_the_log_acknowledged(
    tmp_path: Path, log_environment: dict[str, str]
) -> None:
    require(BTC_0808)
    async with Stack(tmp_path, log_environment) as stack:
        await stack.start_exchange(
            "serve", "--capture", str(BTC_0808), "--speed", "10", "--by-clock"
        )
        for _ in range(2):
            await stack.start_worker()
            before = await stack.until("trades flow", lambda s: s["source"]["trades"] > 300)
            assert before["source"]["trades"] > 0
            await stack.kill_worker()
            await asyncio.sleep(1.0)  # the exchange sends on: these ids are lost
        await stack.start_worker()
        for _ in range(1200):
            if (await stack.exchange_client.status())["finished"]:
                break
            await asyncio.sleep(0.1)
        await stack.until("drained", lambda s: s["drained"], 120)
        assert await stack.stop_worker() == 0
    data = tmp_path / "data"
    ids = trade_ids(data)
    assert len(ids) == len(set(ids)), "a trade is stored twice"
    missing = set(range(ids[0], ids[-1] + 1)) - set(ids)
    disclosed = {i for first, last in gap_ranges(data) for i in range(first, last + 1)}
    assert disclosed == missing
    assert missing, "the kills lost nothing: the test did not test"
    compared = candles_compared(data)
    assert (compared.different, compared.behind, compared.trades) == (0, 0, len(ids))
    quotes = quote_ids(data)
    assert len(quotes) == len(set(quotes)), "a quote is stored twice"
