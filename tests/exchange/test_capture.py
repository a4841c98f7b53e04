"""Reading captures: both layouts, plain and gzip, byte-exact, and clear errors."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from k2.errors import CaptureError
from k2.exchange.capture import Frame, check_capture, read_capture, symbols_of
from k2.exchange.tally import Tally
from tests import data
from tests.sources.cases import PRODUCTS

FRAME = b'{"stream":"btcusdt@trade","data":{"t":1}}'


def test_recorded_captures_have_the_counts_of_the_oracle() -> None:
    data.require(data.BTC_0808, data.BTC_0809)
    tally = Tally()
    frames = 0
    for path in (data.BTC_0808, data.BTC_0809):
        for frame in read_capture(path):
            frames += 1
            tally.add(frame, 0)
    assert frames == 99_574
    trades = tally.streams["btcusdt@trade"]
    assert (trades.count, trades.first_id, trades.last_id) == (
        data.TRADES,
        data.FIRST_TRADE,
        data.LAST_TRADE,
    )
    assert tally.streams["btcusdt@bookTicker"].count == data.QUOTES
    assert tally.streams[""].count == 1  # the REST depth snapshot


def test_frames_are_byte_exact() -> None:
    data.require(data.BTC_0808)
    with gzip.open(data.BTC_0808) as file:
        lines = [next(file) for _ in range(500)]
    for line, frame in zip(lines, read_capture(data.BTC_0808), strict=False):
        assert line == b"%d %s\n" % (frame.recv_ns, frame.data)


@pytest.mark.parametrize(
    ("name", "frames", "symbols"),
    [
        ("binance/binance_multi_20211011.gz", 265, ("NKNUSDT", "BLZETH", "LRCBTC", "RUNEEUR")),
        ("kraken/kraken_v1_trade_20210417.gz", None, ("SC/EUR", "XMR/USD")),
        ("coinbase/coinbase_pro_20210417.gz", None, PRODUCTS),
    ],
)
def test_every_recorded_layout_is_read(
    name: str, frames: int | None, symbols: tuple[str, ...]
) -> None:
    path = data.SHARED / name
    data.require(path)
    read = list(read_capture(path))
    assert frames is None or len(read) == frames
    assert read
    assert all(frame.data[:1] in (b"{", b"[") for frame in read)
    assert set(symbols_of(read)) == set(symbols)


def test_seconds_become_nanoseconds_exactly(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_bytes(b"wss://example <-> 1.5\n1633998512.0633569: %s\r\n\n7: %s" % (FRAME, FRAME))
    assert list(read_capture(path)) == [
        Frame(1_633_998_512_063_356_900, "btcusdt@trade", FRAME),
        Frame(7_000_000_000, "btcusdt@trade", FRAME),
    ]


def test_stream_is_found_however_the_json_is_spaced(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_bytes(b'1 { "stream" : "a@b", "data":{}}\n2 [1]\n')
    assert [frame.stream for frame in read_capture(path)] == ["a@b", ""]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no such file"]),
        (b"", ["is empty"]),
        (b"1 {}\nhello world\n", ["line 2", "'hello world'", "<nanoseconds> <frame>"]),
        (b"1 not-json\n", ["line 1"]),
        (b"1.x: {}\n", ["line 1"]),
        (gzip.compress(b"1 {}\n" * 50_000, mtime=0)[:-200], ["middle of its gzip"]),
        (gzip.compress(b"1 {}\n", mtime=0)[:10] + b"garbage-garbage", ["damaged gzip"]),
    ],
)
def test_unreadable_captures_say_what_is_wrong(
    tmp_path: Path, content: bytes | None, words: list[str]
) -> None:
    path = tmp_path / "capture.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CaptureError) as caught:
        list(read_capture(path))
    for word in [str(path), *words]:
        assert word in caught.value.message


def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="is a directory"):
        check_capture(tmp_path)


def test_frames_before_the_damage_are_delivered(tmp_path: Path) -> None:
    path = tmp_path / "half.gz"
    whole = b"".join(b'%d {"n":%d}\n' % (n, hash(str(n))) for n in range(20_000))
    path.write_bytes(gzip.compress(whole)[:-2_000])
    frames, read = read_capture(path), 0

    def drain() -> None:
        nonlocal read
        for _ in frames:
            read += 1

    with pytest.raises(CaptureError):
        drain()
    assert read > 1_000
