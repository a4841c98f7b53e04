"""Rows read without a query engine are those DuckDB reads; what is kept of files is bounded."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from k2.lake.files import row_group_rows
from k2.lake.reader import LakeFile
from k2.lake.tables import TRADES
from k2.query import cold_rows
from k2.query.asked import RecordsQuery
from k2.query.cold_rows import ColdRows, Opened, _Part
from k2.query.data_file import Footer
from k2.query.database import local_path
from k2.query.execute import FileGoneError
from k2.query.filters import Between, OneOf, key_of
from k2.query.latest import last_rows_of
from k2.query.per_file import PerFile
from k2.query.records import _Asked, _nearest
from tests.query.conftest import Platform
from tests.query.rows import T0_US, place, rows

SYMBOLS = ("AUSDT", "BUSDT", "CUSDT")


def _trades(chance: random.Random, first: int, count: int) -> pa.Table:
    return rows(
        range(first, first + count),
        # Few different times, so that ties decide.
        [T0_US + chance.randrange(50) * 3_600_000_000 for _ in range(count)],
        symbols=[chance.choice(SYMBOLS) for _ in range(count)],
        prices=[Decimal(chance.randrange(100)) for _ in range(count)],
    )


def _question(chance: random.Random, after: pa.Table | None) -> RecordsQuery:
    start = T0_US + chance.randrange(50) * 3_600_000_000
    newest_first = chance.random() < 0.5
    return RecordsQuery(
        symbols=chance.choice((None, frozenset(chance.sample(SYMBOLS, 2)), frozenset(("NOPE",)))),
        start_us=chance.choice((None, start)),
        end_us=chance.choice((None, start + chance.randrange(1, 60) * 3_600_000_000)),
        limit=chance.choice((1, 7, 100, 10_000)),
        newest_first=newest_first,
        filters=chance.choice(
            ((), (Between("price", Decimal(20), None),), (OneOf("side", frozenset(("SELL",))),))
        ),
        after=None if after is None else key_of(after, chance.randrange(len(after)), "timestamp"),
    )


@pytest.mark.parametrize("threads", [1, 2])
async def test_both_ways_of_reading_give_the_same(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(cold_rows, "_SPLIT_ROWS", 10**9 if threads == 1 else 1)
    monkeypatch.setattr("k2.lake.files._LEAST_GROUP", 16)
    chance = random.Random(17)
    for first in range(0, 900, 300):
        platform.commit(_trades(chance, first, 300), place())
    platform.refresh()
    last: pa.Table | None = None
    for _ in range(120):
        query = _question(chance, last if chance.random() < 0.5 else None)
        monkeypatch.setattr(cold_rows, "MAX_ROWS", 10**6)
        read = await platform.engine.records("trades", query)
        monkeypatch.setattr(cold_rows, "MAX_ROWS", 0)
        scanned = await platform.engine.records("trades", query)
        assert read.rows.equals(scanned.rows)
        last = read.rows if read.rows.num_rows else last


@pytest.fixture
def several(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> list[LakeFile]:
    """Files in the order they are read in, all of which two threads share."""
    platform.commit(_trades(random.Random(5), 0, 300), place())
    platform.refresh()
    monkeypatch.setattr(cold_rows, "_SPLIT_ROWS", 1)
    files = sorted(platform.engine.pin("trades").snapshot.files, key=lambda file: file.path)
    assert len(files) > 1
    return files


def _read(reader: ColdRows, files: Sequence[LakeFile]) -> pa.Table:
    asked = _Asked(RecordsQuery())
    return reader.read(files, asked, asked.columns)


def test_what_a_second_thread_has_no_time_for_is_read_by_the_first(
    several: list[LakeFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ColdRows(TRADES.arrow_schema, "timestamp")
    expected = _read(reader, several)
    done = threading.Event()
    with ThreadPoolExecutor(1) as busy:
        monkeypatch.setattr(cold_rows, "_HELPERS", busy)
        busy.submit(done.wait)
        assert _read(reader, several).equals(expected)
        done.set()
        assert _read(reader, several).equals(expected)


@pytest.mark.parametrize("which", [0, -1], ids=["own", "of the second thread"])
def test_a_file_that_is_gone_is_told_whoever_reads_it(
    several: list[LakeFile], monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    reader = ColdRows(TRADES.arrow_schema, "timestamp")
    assert reader.takes(several)
    readers: list[str] = []
    plain = Footer.open

    def noted(footer: Footer) -> pq.ParquetFile:
        readers.append(threading.current_thread().name)
        return plain(footer)

    monkeypatch.setattr(Footer, "open", noted)
    Path(local_path(several[which].path)).unlink()
    with ThreadPoolExecutor(1, thread_name_prefix="second") as free:
        monkeypatch.setattr(cold_rows, "_HELPERS", free)
        with pytest.raises(FileGoneError):
            _read(reader, several)
    assert which == 0 or "second_0" in readers


def test_a_question_opens_a_file_once_and_few_at_a_time(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in range(0, 600, 200):
        platform.commit(_trades(random.Random(first), first, 200), place())
    platform.refresh()
    files = platform.engine.pin("trades").snapshot.files
    opened: list[str] = []
    plain = Footer.open

    def noted(footer: Footer) -> pq.ParquetFile:
        opened.append(footer.file.path)
        return plain(footer)

    monkeypatch.setattr(Footer, "open", noted)
    reader = ColdRows(TRADES.arrow_schema, "timestamp")
    query = RecordsQuery(limit=1_000)
    assert _nearest(reader, [*files], query).num_rows == 600
    assert sorted(opened) == sorted(file.path for file in files)
    monkeypatch.setattr(cold_rows, "_MOST_OPEN", 2)
    kept: Opened = {}
    asked = _Asked(query)
    for group in reader.groups(files, asked):
        looked = reader.look([group], asked, kept)
        assert reader.take(looked, looked.places).num_rows == group.rows
        assert len(kept) <= 2


async def test_only_row_groups_near_the_answer_are_decoded(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("k2.lake.files._LEAST_GROUP", 16)
    stamps = [T0_US + at * 1_000 for at in range(640)]
    platform.commit(rows(range(640), stamps, symbols="AUSDT"), place())
    platform.refresh()
    decoded: list[int] = []
    plain = ColdRows._decode

    def counted(reader: ColdRows, parts: Sequence[_Part], *more: Any) -> pa.Table:
        decoded.extend(part.group.index for part in parts)
        return plain(reader, parts, *more)

    monkeypatch.setattr(ColdRows, "_decode", counted)
    for newest_first, times, expected in (
        (True, range(319, 314, -1), {16, 17, 18, 19}),
        (False, range(160, 165), {10, 11, 12, 13}),
    ):
        decoded.clear()
        query = RecordsQuery(
            symbols=frozenset({"AUSDT"}), start_us=T0_US + 160_000, end_us=T0_US + 320_000,
            limit=5, newest_first=newest_first,
        )  # fmt: skip
        found = await platform.engine.records("trades", query)
        assert [T0_US + at * 1_000 for at in times] == [us.value for us in found.rows["timestamp"]]
        # Ten rows are looked at for each that is asked for, of ten groups that may hold some.
        assert set(decoded) == expected


def _drop_statistics(files: Sequence[LakeFile]) -> None:
    for file in files:
        path = Path(local_path(file.path))
        found = pq.read_table(path)
        path.unlink()
        pq.write_table(found, path, store_schema=False, row_group_size=8, write_statistics=False)


async def test_row_groups_without_statistics_may_hold_anything(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(29)
    platform.commit(_trades(chance, 0, 300), place())
    platform.refresh()
    _drop_statistics(platform.engine.pin("trades").snapshot.files)
    for _ in range(30):
        query = _question(chance, None)
        monkeypatch.setattr(cold_rows, "MAX_ROWS", 10**6)
        read = await platform.engine.records("trades", query)
        monkeypatch.setattr(cold_rows, "MAX_ROWS", 0)
        assert read.rows.equals((await platform.engine.records("trades", query)).rows)


async def test_last_rows_of_files_are_those_duckdb_finds(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of several exchanges in one file, and of equal times, where the sequence decides."""
    chance = random.Random(31)
    made = []
    for first, exchange in ((0, "BINANCE"), (300, "KRAKEN")):
        ids = range(first, first + 300)
        times = [T0_US + chance.randrange(3) * 1_000 for _ in ids]
        names = [chance.choice(SYMBOLS) for _ in ids]
        made.append(rows(ids, times, symbols=names, exchange=exchange))
    platform.commit(pa.concat_tables(made), place())
    platform.refresh()
    answers = []
    for most in (10**6, 0):
        monkeypatch.setattr(cold_rows, "MAX_ROWS", most)
        platform.engine._last_rows["trades"] = PerFile(last_rows_of)
        answers.append((await platform.engine.latest("trades", None)).rows)
    assert answers[0].equals(answers[1])
    assert answers[0].num_rows == 2 * len(SYMBOLS)


def test_what_is_kept_of_files_stays_below_its_cap(platform: Platform) -> None:
    chance = random.Random(4)
    for first in range(0, 2_000, 500):
        platform.commit(_trades(chance, first, 500), place())
    platform.refresh()
    files = platform.engine.pin("trades").snapshot.files
    columns = len(TRADES.arrow_schema)
    reader = ColdRows(TRADES.arrow_schema, "timestamp", kept_chunks=3 * columns)
    asked = _Asked(RecordsQuery())
    for file in (*files, *files):
        looked = reader.look(reader.groups([file], asked), asked)
        assert reader.take(looked, looked.places).num_rows == file.rows
        assert reader._chunks == sum(footer.chunks for footer in reader._footers.values())
        assert reader._chunks <= 3 * columns
    assert 0 < len(reader._footers) < len(files)


def test_files_of_another_shape_are_left_to_duckdb(platform: Platform) -> None:
    platform.commit(_trades(random.Random(1), 0, 10), place())
    platform.refresh()
    first, *others = platform.engine.pin("trades").snapshot.files
    path = local_path(first.path)
    table = pq.read_table(path)
    for name, plain in (("price", True), ("cost", False)):
        names = [name if column == "price" else column for column in table.column_names]
        Path(path).unlink()
        pq.write_table(table.rename_columns(names), path, store_schema=False)
        assert ColdRows(TRADES.arrow_schema, "timestamp").takes([first]) is plain
    reader = ColdRows(TRADES.arrow_schema, "timestamp")
    for gone in others[:1] or [first]:
        Path(local_path(gone.path)).unlink()
        with pytest.raises(FileGoneError):
            reader.takes([gone])


@pytest.mark.parametrize(
    ("rows_of_file", "limit", "size"),
    [(0, 131_072, 2_048), (2_048 * 64, 131_072, 2_048), (2_048 * 64 + 1, 131_072, 4_096),
     (50_000_000, 131_072, 131_072), (10, 1_000, 1_000)],
)  # fmt: skip
def test_row_groups_are_few_and_small(rows_of_file: int, limit: int, size: int) -> None:
    assert row_group_rows(rows_of_file, limit) == size
