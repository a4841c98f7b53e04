"""Lines of a tape to records: columns, times, ids; lines that are none, with the reason."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from k2.pipeline import rules
from k2.pipeline.validate import TAPE_AGE_DAYS
from k2.records import VENDOR_MAP, build
from k2.tapes.files import Block, TapeFile
from k2.tapes.layouts import OPTIONAL, REQUIRED, Layout
from k2.tapes.times import joined, to_micros

#: A trade with this condition was reported, not made, on the market: candles may leave it out.
OFF_MARKET: Final = "OFF_MARKET"
#: Tapes are old; more than a hundred years is a mistake. The same as validation allows them.
LIMITS: Final = rules.Ages(max_future_s=300.0, max_age_days=TAPE_AGE_DAYS)
_SIDES: Final = ("BUY", "SELL", "SELL_SHORT")


class BadRow(NamedTuple):
    """A line that is no record: its number in the file, why, and its bytes."""

    row: int
    reason: str
    detail: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the rows of one file are from. `symbol`: of a file that does not name it."""

    file: TapeFile
    layout: Layout
    columns: tuple[str, ...]
    exchange: str
    asset_class: str
    currency: str
    zone: ZoneInfo
    symbol: str = ""
    vendor: dict[str, str] = field(default_factory=dict)


def records_of(
    block: Block, origin: Origin, received_us: int
) -> tuple[pa.RecordBatch, list[BadRow]]:
    """A wire batch of the good lines of `block`, in their order, and the others."""
    table, numbers, bad = _parsed(block, origin)
    columns, good, reasons = _columns(table, numbers, origin, received_us)
    bad += [BadRow(*reason, block.lines[reason[0] - block.first]) for reason in reasons]
    kind = origin.layout.kind
    batch = build(kind, table.num_rows, columns)
    keep = pa.array(good)
    batch, numbers = batch.filter(keep), numbers[good]
    verdict = rules.check(kind, batch, LIMITS)
    bad += [
        BadRow(int(numbers[row]), str(reason), detail, block.lines[numbers[row] - block.first])
        for row, reason, detail in verdict.reasons
    ]
    return batch.filter(pa.array(verdict.ok)), sorted(bad)


def _parsed(block: Block, origin: Origin) -> tuple[pa.Table, npt.NDArray[np.int64], list[BadRow]]:
    """Text columns of the lines with the right number of fields, and their numbers."""
    wrong: dict[int, str] = {}

    def note(row: pacsv.InvalidRow) -> str:
        wrong[row.number - 1] = (
            f"{row.actual_columns} fields; {origin.layout.name} has {row.expected_columns}"
        )
        return "skip"

    names = list(origin.columns)
    table = pacsv.read_csv(
        io.BytesIO(b"\n".join(block.lines) + b"\n"),
        read_options=pacsv.ReadOptions(
            column_names=names, use_threads=False, block_size=1 << 28, encoding="latin-1"
        ),
        parse_options=pacsv.ParseOptions(invalid_row_handler=note, ignore_empty_lines=False),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )
    if table.num_rows + len(wrong) != len(block.lines):
        # A quote that is never closed runs on into the next line: take them one by one.
        table, wrong = _line_by_line(block, names)
    at = np.setdiff1d(np.arange(len(block.lines)), list(wrong))
    bad = [
        BadRow(index + block.first, "BAD_FIELDS", detail, block.lines[index])
        for index, detail in wrong.items()
    ]
    return table.combine_chunks(), at + block.first, bad


def _line_by_line(block: Block, names: list[str]) -> tuple[pa.Table, dict[int, str]]:
    """The same for lines that Arrow does not read as lines."""
    rows, wrong = list[list[str]](), dict[int, str]()
    for index, line in enumerate(block.lines):
        try:
            fields = next(csv.reader([line.decode("latin-1")], strict=True), [])
        except csv.Error as exc:
            wrong[index] = str(exc)
            continue
        if len(fields) == len(names):
            rows.append(fields)
        else:
            wrong[index] = f"{len(fields)} fields; there must be {len(names)}"
    columns = zip(*rows, strict=True) if rows else ([] for _ in names)
    return pa.table([pa.array(list(c), pa.string()) for c in columns], names), wrong


def _columns(
    table: pa.Table, numbers: npt.NDArray[np.int64], origin: Origin, received_us: int
) -> tuple[dict[str, Any], npt.NDArray[np.bool_], list[tuple[int, str, str]]]:
    """Columns by name, which rows have a time, and (row number, reason, detail) of the others."""
    texts = {name: _one(table[name]) for name in origin.columns}
    iso = origin.layout.time == "iso"
    stamps = texts["exchange_timestamp"] if iso else joined(texts["date"], texts["time"])
    micros, good = to_micros(stamps, origin.zone)
    reasons = [
        (int(numbers[row]), "BAD_TIME", f"no time: {stamps[int(row)].as_py()[:40]!r}")
        for row in np.flatnonzero(~good)
    ]
    count = table.num_rows
    symbols = texts["symbol"] if "symbol" in texts else pa.repeat(origin.symbol, count)
    symbols = pc.utf8_upper(symbols)
    ids = pc.binary_join_element_wise(origin.file.digest, pa.array(numbers).cast(pa.string()), "-")
    millis = pa.array(micros // 1_000).cast(pa.string())
    columns: dict[str, Any] = {
        "message_id": pc.binary_join_element_wise(origin.exchange, millis, symbols, ids, ":"),
        "symbol": symbols,
        "exchange": origin.exchange,
        "asset_class": origin.asset_class,
        "timestamp": micros,
        "receive_timestamp": np.full(count, received_us, np.int64),
        "ingestion_timestamp": np.full(count, received_us, np.int64),
        "currency": texts.get("currency", origin.currency),
        "source_sequence": _sequence(texts, count),
        "vendor_data": _vendor(texts, origin),
    }
    if origin.layout.kind == "trades":
        columns |= _trade_columns(texts, ids)
    else:
        columns |= _quote_columns(texts, ids)
    return columns, good, reasons


def _trade_columns(texts: dict[str, pa.Array], ids: pa.Array) -> dict[str, Any]:
    count = len(ids)
    sides: Any = "UNKNOWN"
    if "side" in texts:
        given = pc.utf8_upper(texts["side"])
        sides = pc.if_else(pc.is_in(given, pa.array(_SIDES)), given, "UNKNOWN")
    return {
        "trade_id": ids,
        "price": texts["price"],
        "quantity": texts["quantity"],
        "side": sides,
        "trade_conditions": _conditions(texts, count),
    }


def _quote_columns(texts: dict[str, pa.Array], ids: pa.Array) -> dict[str, Any]:
    return {
        "quote_id": ids,
        "bid_price": texts["bid_price"],
        "bid_quantity": texts["bid_size"],
        "ask_price": texts["ask_price"],
        "ask_quantity": texts["ask_size"],
    }


def _conditions(texts: dict[str, pa.Array], count: int) -> pa.Array:
    """The qualifier, and `OFF_MARKET` where a venue says so; few differ, so rows share them."""
    empty = pa.repeat("", count)
    qualifiers, venues = texts.get("qualifiers", empty), texts.get("venue", empty)

    def conditions(qualifier: str, venue: str) -> list[str]:
        return [*([qualifier] if qualifier else []), *([OFF_MARKET] if venue else [])]

    pool, index = _pooled([qualifiers, venues])
    made = pa.array([conditions(*values) for values in pool], pa.list_(pa.string()))
    return made.take(index)


def _vendor(texts: dict[str, pa.Array], origin: Origin) -> pa.Array:
    """What the tape has beyond K2's columns, without what is empty."""
    known = {*REQUIRED[origin.layout.kind], *OPTIONAL, "date", "time", "bid_size", "ask_size"}
    names = [name for name in texts if name not in known]
    fixed = list({**origin.vendor, "source_file": origin.file.path.name}.items())
    count = len(next(iter(texts.values())))
    if not names:
        return pa.array([fixed], VENDOR_MAP).take(pa.array(np.zeros(count, np.int64)))
    pool, index = _pooled([texts[name] for name in names])
    rows = [
        [*((name, value) for name, value in zip(names, values, strict=True) if value), *fixed]
        for values in pool
    ]
    return pa.array(rows, VENDOR_MAP).take(index)


def _pooled(columns: list[pa.Array]) -> tuple[list[tuple[str, ...]], pa.Array]:
    """The different combinations of values, and which of them each row has."""
    lines = columns[0]
    if len(columns) > 1:
        lines = pc.binary_join_element_wise(*columns, "\x1f")
    encoded = lines.dictionary_encode()
    return [tuple(text.split("\x1f")) for text in encoded.dictionary.to_pylist()], encoded.indices


def _sequence(texts: dict[str, pa.Array], count: int) -> pa.Array:
    """The tape's own sequence number where it is one."""
    if "sequence_number" not in texts:
        return pa.nulls(count, pa.int64())
    given = texts["sequence_number"]
    sound = pc.match_substring_regex(given, "^[0-9]{1,18}$")
    return pc.if_else(sound, given, pa.scalar(None, pa.string())).cast(pa.int64())


def _one(column: pa.ChunkedArray) -> pa.Array:
    if not column.num_chunks:
        return pa.array([], pa.string())
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
