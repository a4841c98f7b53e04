"""Tapes: files, layouts, times and rows."""

from __future__ import annotations

import datetime as dt
import gzip
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.errors import TapeError
from k2.pipeline.text_ids import scoped
from k2.tapes.files import Block, blocks, examine
from k2.tapes.journal import Journal
from k2.tapes.layouts import choose
from k2.tapes.load import Wanted, behind, origins
from k2.tapes.rows import Origin, records_of
from k2.tapes.times import to_micros, zone
from tests import data

ASX = data.SHARED / "asx"
TRADES = ASX / "trades"
NOW_US = 1_790_000_000_000_000
HEADER = "symbol,exchange_timestamp,price,quantity,side,sequence_number,trade_id,venue"


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_bytes((end.join(lines) + end).encode())
    return path


def wanted(kind: str = "trades", **more: object) -> Wanted:
    return Wanted(kind, "TEST", "equities", **more)  # type: ignore[arg-type]


def origin(path: Path, kind: str = "trades", **more: object) -> Origin:
    (found,) = origins([path], wanted(kind, **more))
    return found


def records(path: Path, kind: str = "trades", rows: int = 1_000, **more: object):
    """(records, bad rows) of a whole file."""
    made = origin(path, kind, **more)
    start = 1 if made.layout.columns is None else 0
    good, bad = [], []
    for block in blocks(path, rows):
        batch, wrong = records_of(behind(block, start), made, NOW_US)
        good += batch.to_pylist()
        bad += wrong
    return good, bad


def test_a_recorded_tape_becomes_records_with_sydney_times_as_utc() -> None:
    data.require(TRADES / "7078.csv.gz")
    rows, bad = records(TRADES / "7078.csv.gz", rows=20_000)
    assert (len(rows), bad) == (91_631, [])
    first = rows[0]
    assert first["timestamp"] == dt.datetime.fromisoformat("2014-03-09T20:57:14.754")
    assert (first["symbol"], first["price"], first["quantity"]) == ("BHP", "36.667", "20000")
    assert (first["side"], first["currency"]) == ("UNKNOWN", "AUD")
    assert first["trade_conditions"] == ["3", "OFF_MARKET"]
    vendor = dict(first["vendor_data"])
    assert (vendor["company_id"], vendor["qualifiers"], vendor["venue"]) == ("7078", "3", "X")
    assert len({row["trade_id"] for row in rows}) == 91_631
    assert rows[-1]["trade_id"].endswith("-91631")


def test_recorded_quotes_keep_absent_asks() -> None:
    data.require(ASX / "quotes" / "3153.csv.gz")
    rows, bad = records(ASX / "quotes" / "3153.csv.gz", "quotes")
    assert (len(rows), bad) == (60, [])
    assert (rows[0]["bid_price"], rows[0]["ask_price"], rows[0]["bid_quantity"]) == (
        "1.11",
        "0.0",
        "10300",
    )


def test_the_layout_with_a_header_keeps_what_it_does_not_know(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv",
        HEADER,
        "bhp,2026-01-05T10:00:00.5+11:00,36.667,100,buy,7,T-1,X",
        "BHP,2026-01-05T10:00:01.5+11:00,36.668,100,cross,,T-2,",
        end="\r\n",
    )
    rows, bad = records(path)
    assert bad == []
    assert [row["symbol"] for row in rows] == ["BHP", "BHP"]
    assert [row["side"] for row in rows] == ["BUY", "UNKNOWN"]
    assert [row["source_sequence"] for row in rows] == [7, None]
    assert rows[0]["timestamp"] == dt.datetime.fromisoformat("2026-01-04T23:00:00.500")
    assert dict(rows[0]["vendor_data"]) == {
        "trade_id": "T-1",
        "venue": "X",
        "source_file": "t.csv",
    }
    assert [row["trade_id"].rpartition("-")[2] for row in rows] == ["2", "3"]


def test_bad_rows_are_told_with_number_and_reason_and_the_others_load(tmp_path: Path) -> None:
    path = write(
        tmp_path / "7.csv",
        "03/10/2014,13:50:38.849,1.11,3667,0,,",
        "03/10/2014,13:50:38.849,1.11,3667,0,",
        "",
        "03/40/2014,13:50:38.849,1.11,3667,0,,",
        "03/10/2014,13:50:38.849,abc,3667,0,,",
        "03/10/2014,13:50:38.849,1.11,-5,0,,",
        '03/10/2014,13:50:38.849,1.11,"3667,0,,',
        "03/10/2014,13:50:39.849,1.12,1,0,,",
    )
    rows, bad = records(path, symbol="MWR")
    assert [row["price"] for row in rows] == ["1.11", "1.12"]
    assert [(wrong.row, wrong.reason) for wrong in bad] == [
        (2, "BAD_FIELDS"),
        (3, "BAD_FIELDS"),
        (4, "BAD_TIME"),
        (5, "BAD_DECIMAL"),
        (6, "QUANTITY_NOT_POSITIVE"),
        (7, "BAD_FIELDS"),
    ]
    assert bad[2].raw == b"03/40/2014,13:50:38.849,1.11,3667,0,,"


@settings(deadline=None, max_examples=10)
@given(cut=st.integers(1, 9))
def test_blocks_do_not_matter(cut: int) -> None:
    data.require(TRADES / "3153.csv.gz")
    path = TRADES / "3153.csv.gz"
    assert records(path, rows=cut) == records(path, rows=1_000)


def test_equal_rows_stay_apart_and_a_copy_of_the_file_has_the_same_ids(tmp_path: Path) -> None:
    line = "03/10/2014,13:55:41.879,1.11,3000,0,,"
    plain = write(tmp_path / "1.csv", line, line, line)
    packed = tmp_path / "2.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    ids = [[row["trade_id"] for row in records(path, symbol="X")[0]] for path in (plain, packed)]
    assert len(set(ids[0])) == 3
    assert ids[0] == ids[1]


def test_ids_of_tapes_are_judged_within_symbol_and_file() -> None:
    texts = pa.array(["00112233445566aa-7", "00112233445566aa-8", "17-ab-0"])
    symbols = pa.array(["BHP", "BHP", "BHP"])
    import numpy as np

    scopes, ids, judged = scoped("quotes", symbols, texts, np.zeros(3, np.int64))
    assert scopes.to_pylist()[:2] == ["BHP/00112233445566aa"] * 2
    assert ids.tolist()[:2] == [7, 8]
    assert judged.tolist() == [True, True, False]


SYDNEY = "Australia/Sydney"


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2014-03-10 10:00:00", "2014-03-09T23:00:00"),
        ("2014-07-10 10:00:00.001", "2014-07-10T00:00:00.001"),
        ("2014-04-06 02:30:00", "2014-04-05T15:30:00"),  # came twice: the first
        ("2014-10-05 02:30:00", None),  # left out by the change of clocks
        ("2014-13-01 00:00:00", None),
        ("", None),
        ("10 March", None),
    ],
)
@pytest.mark.parametrize("company", [[], ["nonsense"]])
def test_local_times_are_utc_or_no_times(text: str, utc: str | None, company: list[str]) -> None:
    """Alone they are read as a column, beside nonsense one by one: both agree."""
    micros, good = to_micros(pa.array([text, *company]), zone(SYDNEY))
    assert bool(good[0]) == (utc is not None)
    if utc is not None:
        expected = dt.datetime.fromisoformat(utc).replace(tzinfo=dt.UTC)
        assert micros[0] == round(expected.timestamp() * 1_000_000)


@settings(deadline=None)
@given(st.datetimes(dt.datetime.fromisoformat("1990-01-01")), st.booleans())
def test_times_agree_with_python(time: dt.datetime, alone: bool) -> None:
    aware = time.replace(tzinfo=ZoneInfo("UTC"))
    texts = [time.isoformat(sep=" ")] + ([] if alone else ["no time"])
    micros, good = to_micros(pa.array(texts), zone("UTC"))
    assert good[0]
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    assert micros[0] == (aware - epoch) // dt.timedelta(microseconds=1)


def _half(directory: Path) -> Path:
    packed = gzip.compress(b"03/10/2014,13:50:38.849,1.11,3667,0,,\n" * 5_000)
    path = directory / "7078.csv.gz"
    path.write_bytes(packed[: len(packed) // 2])
    return path


def _torn(directory: Path) -> Path:
    packed = bytearray(gzip.compress(bytes(range(256)) * 500))
    packed[len(packed) // 2] ^= 0xFF
    path = directory / "7078.csv.gz"
    path.write_bytes(bytes(packed))
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: d / "absent.csv", "no such file"),
        (lambda d: d, "is a directory"),
        (lambda d: write(d / "e.csv", "", end=""), "is empty"),
        (lambda d: write(d / "e.csv", "a,b,c", "1,2,3"), "its first line is 'a,b,c'"),
        (lambda d: write(d / "e.csv", HEADER.replace("price", "cost")), "has a header with"),
        (lambda d: write(d / "e.csv", HEADER + ",venue"), "names a column twice"),
        (_half, "ends in the middle of its gzip"),
        (_torn, "damaged gzip"),
        (lambda d: write(d / "e.csv", "x" * 70_000), "is it a CSV file"),
    ],
)
def test_what_is_no_tape_is_named_before_anything_is_loaded(tmp_path, make, words) -> None:
    with pytest.raises(TapeError, match=words):
        origins([make(tmp_path)], wanted())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"timezone": "Mars/Olympus"}, "time zone 'Mars/Olympus' is unknown"),
        ({"layout": "k2"}, "is no tape of trades in layout k2"),
        ({}, "give --symbol, or --reference"),
    ],
)
def test_wrong_options_say_what_is_allowed(tmp_path: Path, more, words) -> None:
    path = write(tmp_path / "7078.csv", "03/10/2014,13:50:38.849,1.11,3667,0,,")
    with pytest.raises(TapeError, match=words):
        origins([path], wanted(**more))


def test_a_company_that_the_reference_file_does_not_list_is_named(tmp_path: Path) -> None:
    companies = write(tmp_path / "c.csv", "company_id,symbol", "1,ONE", "7078,BHP")
    line = "03/10/2014,13:50:38.849,1.11,3667,0,,"
    known, unknown = write(tmp_path / "7078.csv", line), write(tmp_path / "9.csv", line)
    assert origin(known, reference=companies).symbol == "BHP"
    with pytest.raises(TapeError, match="lists no company '9'"):
        origin(unknown, reference=companies)


def test_the_first_lines_tell_the_layout() -> None:
    lines = ["03/10/2014,05:43:45.676,37.7,0.0,300,0"]
    assert choose("quotes", lines, None, "f").name == "asx-tape"
    with pytest.raises(TapeError, match="no tape of trades"):
        choose("trades", lines, None, "f")


def test_a_journal_holds_for_one_incarnation_of_the_log(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "loads")
    assert journal.rows("t", "one") == 0
    journal.note("t", "one", 20_000)
    assert (journal.rows("t", "one"), journal.rows("t", "two")) == (20_000, 0)
    (tmp_path / "loads" / "t.json").write_bytes(b"{")
    assert journal.rows("t", "one") == 0


def test_a_load_goes_on_behind_what_the_log_has() -> None:
    block = Block(21, [b"a", b"b", b"c"])
    assert behind(block, 10) == block
    assert behind(block, 21) == Block(22, [b"b", b"c"])
    assert behind(block, 99).lines == []


def test_a_digest_is_of_the_content(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a", "x,y"), write(tmp_path / "b", "x,z")
    assert examine(one).digest != examine(two).digest
    assert examine(one).lines == 1
