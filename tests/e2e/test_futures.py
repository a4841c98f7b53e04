"""USD-M futures from frames to SQL: trades, aggregates and book tickers apart from spot's."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from k2.exchange.capture import read_capture
from k2.topics import FEED_TOPICS
from tests import data
from tests.e2e.harness import Stack, log_values
from tests.e2e.test_backfill import until_gaps
from tests.e2e.test_exchanges import worker

#: Aggregates left out of the capture.
_MISSING = range(1_000, 1_005)
#: Aggregates that the exchange does not send, but has in its history.
_DROPPED = range(2_000, 2_012)


def as_futures(path: Path, frames: int) -> tuple[Path, dict[str, int]]:
    """Spot frames in the words of the futures market, each trade its own aggregate too."""
    lines, counts, number = [], {"trade": 0, "bookTicker": 0, "aggTrade": 0}, 0

    def add(recv_ns: int, channel: str, content: dict[str, Any]) -> None:
        counts[channel] += 1
        frame = {"stream": f"btcusdt@{channel}", "data": content}
        lines.append(f"{recv_ns} {json.dumps(frame, separators=(',', ':'))}")

    for frame in islice(read_capture(data.BTC_0808), frames):
        channel = frame.stream.partition("@")[2]
        if channel not in counts:
            continue
        content = json.loads(frame.data)["data"]
        if channel == "bookTicker":
            now_ms = frame.recv_ns // 1_000_000
            add(frame.recv_ns, channel, {"e": channel, "E": now_ms, "T": now_ms - 5, **content})
            continue
        content.pop("M")
        add(frame.recv_ns, channel, {**content, "X": "MARKET"})
        if number not in _MISSING:
            ident = content.pop("t")
            agg = {**content, "e": "aggTrade", "a": number, "f": ident, "l": ident}
            add(frame.recv_ns, "aggTrade", agg)
        number += 1
    path.write_text("\n".join(lines) + "\n")
    return path, counts


async def test_futures_have_topics_and_a_table_of_their_own(tmp_path: Path) -> None:
    data.require(data.BTC_0808)
    capture, counts = as_futures(tmp_path / "futures", 20_000)
    frames = sum(counts.values())
    async with Stack(tmp_path) as stack:
        await stack.start_exchange("serve", "--capture", str(capture), "--speed", "max")
        await stack.fault("drop_ids", ids=list(_DROPPED))
        environment = worker(
            "binance_futures",
            stack,
            SYMBOLS="BTCUSDT",
            STREAMS="trade,aggTrade,bookTicker",
            RAW="true",
            BACKFILL="true",
        )
        await stack.start_worker(**environment)
        status = await stack.until(
            "everything", lambda s: s["validate"]["records"] == frames and s["drained"]
        )
        assert status["source"]["agg_trades"] == counts["aggTrade"] - len(_DROPPED)
        (row,) = await stack.sql(
            "select count(*) n, min(exchange) x, min(asset_class) c, "
            "count(distinct trade_id) ids from trades"
        )
        trades = counts["trade"]
        assert row == {"n": trades, "x": "BINANCE_FUTURES", "c": "futures", "ids": trades}
        (row,) = await stack.sql(
            "select count(*) n, count(*) filter (where first_trade_id = last_trade_id) one, "
            "bool_and(timestamp < receive_timestamp + interval 1 hour) sane from agg_trades"
        )
        assert row == {"n": counts["aggTrade"], "one": counts["aggTrade"], "sane": True}
        # Both say the same of the same trades; what was left out is the difference.
        (row,) = await stack.sql(
            "select count(*) n from trades t join agg_trades a on "
            "t.trade_id = a.first_trade_id::varchar and t.price = a.price and "
            "t.quantity = a.quantity and t.side = a.side and t.timestamp = a.timestamp"
        )
        assert row == {"n": counts["trade"] - len(_MISSING)}
        (row,) = await stack.sql(
            "select count(*) n, count(*) filter (where json_extract_string(vendor_data, "
            "'$.timestamp_source') = 'exchange') timed from quotes"
        )
        assert row == {"n": counts["bookTicker"], "timed": counts["bookTicker"]}
        await until_gaps(stack, 1, state="closed")
        code, body = await stack.get("/v1/gaps", state="all")
        found = {(one["expected"], one["received"], one["how"]) for one in body["data"]}
        # What the exchange has no more stays open.
        assert (code, found) == (
            200,
            {
                (_MISSING.start, _MISSING.stop, "jump"),
                (_DROPPED.start, _DROPPED.stop, "backfill"),
            },
        )
        assert {one["data_type"] for one in body["data"]} == {"agg_trades"}
        await stack.stop_worker()
    raw = log_values(tmp_path / "data", FEED_TOPICS["binance_futures"][0].raw)
    sent = [frame.data for frame in read_capture(capture)]
    assert len(raw) == len(sent) - len(_DROPPED)
    assert set(raw) < set(sent)
