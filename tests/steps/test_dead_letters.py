"""Frames that never became records: all in the dead letters, in batches the log can take."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from k2.codecs import Codecs
from k2.sources.refused import Refused
from k2.steps.dead_letters import NO_PLACE, DeadLetters
from k2.testing.log import MemoryLog
from tests.steps.parts import TRADES, dead_letters

NOW_US = 1_723_161_253_000_000


def letters(codecs: Codecs, log: MemoryLog, max_bytes: int = 500_000) -> DeadLetters:
    return DeadLetters(TRADES, log, codecs.of(TRADES.dlq), max_bytes)


def counted(reason: str) -> float:
    labels = {"exchange": "BINANCE", "asset_class": "crypto", "data_type": "trades"}
    value = REGISTRY.get_sample_value("k2_dead_letters_total", {**labels, "reason": reason})
    return value or 0.0


async def test_a_refused_frame_is_kept_as_received_and_has_no_place(
    codecs: Codecs, log: MemoryLog
) -> None:
    before = counted("bad_json")
    refused = [
        Refused("bad_json", b"{not json\xff", "unexpected end", NOW_US),
        Refused("unknown_symbol", b"{}", "'XYZ' is not subscribed", NOW_US + 1),
    ]
    await asyncio.gather(*letters(codecs, log).frames(refused))
    rows = dead_letters(codecs, log.values(TRADES.dlq))
    assert [(row["reason"], row["value"], row["detail"]) for row in rows] == [
        (entry.reason, entry.raw, entry.detail) for entry in refused
    ]
    assert {(row["topic"], row["partition"], row["offset"], row["log_epoch"]) for row in rows} == {
        (TRADES.log, NO_PLACE, NO_PLACE, "")
    }
    assert [int(row["timestamp"].timestamp() * 1e6) for row in rows] == [NOW_US, NOW_US + 1]
    assert [key for batch in log.sent for key in batch.keys] == [b"bad_json", b"unknown_symbol"]
    assert counted("bad_json") == before + 1


@given(sizes=st.lists(st.integers(0, 3_000), min_size=1, max_size=20))
@settings(deadline=None)
async def test_any_amount_of_refused_frames_makes_batches_within_the_limit(
    registered: Codecs, sizes: list[int]
) -> None:
    log, limit = MemoryLog(), 2_000
    refused = [
        Refused("bad_json", b"%d|" % i + b"x" * size, "d" * size, NOW_US)
        for i, size in enumerate(sizes)
    ]
    await asyncio.gather(*letters(registered, log, limit).frames(refused))
    assert all(sum(map(len, batch.values)) <= 2 * limit for batch in log.sent)
    rows = dead_letters(registered, log.values(TRADES.dlq))
    for entry, row in zip(refused, rows, strict=True):
        assert row["value"] == entry.raw[:limit]
        cut = len(entry.raw) > limit
        assert row["detail"].endswith(f"the first {limit} of {len(entry.raw)} bytes") == cut
        assert len(row["detail"]) < 1_100
