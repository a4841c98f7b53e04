"""The benchmarks' data: trade records as the Binance source makes them, by the million.

1,000 symbols with Zipf weights, contiguous ids per symbol with 0.1 % missing, 1 % of the records
sent twice; 16 partitions by the key's hash. Seeded, so two runs have the same records but for their
times, which are now: rules reject records that are too old.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2.clock import SYSTEM_CLOCK

_CHUNK = 100_000
_VENDOR_KEYS = (
    "is_buyer_maker",
    "event_type",
    "event_time",
    "trade_time",
    "base_asset",
    "quote_asset",
    "is_best_match",
)


@dataclass(frozen=True, slots=True)
class Shape:
    """How many records of what."""

    records: int
    symbols: int = 1_000
    duplicates: float = 0.01
    missing: float = 0.001
    seed: int = 7


def chunks(shape: Shape) -> Iterator[pa.RecordBatch]:
    """Record batches (wire schema of trades) of up to 100,000 rows, `shape.records` in all."""
    rng = np.random.default_rng(shape.seed)
    names = np.array([f"{_base(rank)}USDT" for rank in range(shape.symbols)])
    weights = 1.0 / np.arange(1, shape.symbols + 1)
    weights /= weights.sum()
    next_id = np.full(shape.symbols, 1_000_000_000, np.int64)
    start_us = SYSTEM_CLOCK.now_us() - shape.records * 10
    done = 0
    while done < shape.records:
        rows = min(_CHUNK, shape.records - done)
        ranks = rng.choice(shape.symbols, size=rows, p=weights)
        ids = _ids(ranks, next_id, rng, shape)
        yield _batch(names[ranks], ranks, ids, start_us + (done + np.arange(rows)) * 10, rng)
        done += rows


def _base(rank: int) -> str:
    """AAA, AAB, …: an upper-case asset name."""
    letters = ""
    for _ in range(3):
        rank, letter = divmod(rank, 26)
        letters = chr(65 + letter) + letters
    return letters


def _ids(
    ranks: npt.NDArray[np.int64],
    next_id: npt.NDArray[np.int64],
    rng: np.random.Generator,
    shape: Shape,
) -> npt.NDArray[np.int64]:
    """Ids in order per symbol; a step of 2 leaves one out, a step of 0 sends one again."""
    draw = rng.random(len(ranks))
    steps = np.ones(len(ranks), np.int64)
    steps[draw < shape.missing] = 2
    steps[draw > 1 - shape.duplicates] = 0
    order = np.argsort(ranks, kind="stable")
    running = np.cumsum(steps[order])
    firsts = np.searchsorted(ranks[order], np.unique(ranks))
    before = np.repeat(
        running[firsts] - steps[order][firsts], np.diff(np.append(firsts, len(ranks)))
    )
    ids = np.empty(len(ranks), np.int64)
    ids[order] = next_id[ranks[order]] + running - before
    np.maximum.at(next_id, ranks, ids)
    return ids


def _text(values: npt.NDArray[np.int64]) -> pa.Array:
    return pc.cast(pa.array(values), pa.string())


def _decimal(units: npt.NDArray[np.int64], scale: int) -> pa.Array:
    """Integers of 10^-scale as decimal text with eight places, as Binance writes it."""
    whole, part = np.divmod(units, 10**scale)
    digits = pc.utf8_lpad(_text(part * 10 ** (8 - scale)), 8, "0")
    return pc.binary_join_element_wise(_text(whole), digits, ".")


def _batch(
    symbols: npt.NDArray[np.str_],
    ranks: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    times_us: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> pa.RecordBatch:
    from k2.records import WIRE_TRADES  # noqa: PLC0415 - keeps `k2 bench --help` fast

    rows = len(ids)
    # A record sent twice has to be the same record, so everything follows from symbol and id.
    mix = (ids * 2_654_435_761 + ranks * 97) & 0xFFFF_FFFF
    price = 100 + mix % 7_000_000
    buyer = mix % 2 == 0
    symbol, trade_id, millis = pa.array(symbols), _text(ids), times_us // 1000
    stamp = pa.array(millis * 1000, pa.timestamp("us"))
    received = pa.array(times_us + 3_000, pa.timestamp("us"))
    exchange = pa.array(np.full(rows, "BINANCE"))
    columns = {
        "message_id": pc.binary_join_element_wise(exchange, _text(millis), symbol, trade_id, ":"),
        "trade_id": trade_id,
        "symbol": symbol,
        "exchange": exchange,
        "asset_class": pa.array(np.full(rows, "crypto")),
        "timestamp": stamp,
        "receive_timestamp": received,
        "ingestion_timestamp": received,
        "price": _decimal(price, 2),
        "quantity": _decimal(1 + rng.integers(0, 10_000_000, rows), 5),
        "currency": pa.array(np.full(rows, "USDT")),
        "side": pa.array(np.where(buyer, "SELL", "BUY")),
        "trade_conditions": pa.ListArray.from_arrays(
            pa.array(np.zeros(rows + 1, np.int32)), pa.array([], pa.string())
        ),
        "source_sequence": pa.array(ids),
        "vendor_data": _vendor(symbols, millis, buyer),
        "is_backfill": pa.array(np.zeros(rows, bool)),
    }
    return pa.RecordBatch.from_pydict(columns).cast(WIRE_TRADES)


def _vendor(
    symbols: npt.NDArray[np.str_], millis: npt.NDArray[np.int64], buyer: npt.NDArray[np.bool_]
) -> pa.MapArray:
    """The seven entries of a Binance trade."""
    rows, width = len(symbols), len(_VENDOR_KEYS)
    items = np.empty((rows, width), object)
    items[:, 0] = np.where(buyer, "true", "false")
    items[:, 1] = "trade"
    items[:, 2] = (millis + 1).astype(str)
    items[:, 3] = millis.astype(str)
    items[:, 4] = [symbol[:-4] for symbol in symbols]
    items[:, 5] = "USDT"
    items[:, 6] = "true"
    return pa.MapArray.from_arrays(
        pa.array(np.arange(0, rows * width + 1, width, dtype=np.int32)),
        pa.array(np.tile(np.array(_VENDOR_KEYS, object), rows), pa.string()),
        pa.array(items.ravel(), pa.string()),
    )
