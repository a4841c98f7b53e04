"""Recording: what came out of the socket is what a replay of the files sends."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from k2.cli.main import cli
from k2.clock import SYSTEM_CLOCK
from k2.errors import ConfigError
from k2.exchange.capture import read_capture
from k2.exchange.feed import CaptureFeed
from k2.settings import Binance
from k2.sources.capture_file import MEMBER_BYTES, CaptureFile, Rotation
from k2.sources.exchanges import EXCHANGES
from k2.sources.open import new_session
from k2.sources.record import Recorder, facts
from k2.sources.session import Session
from k2.testing.clock import eventually
from tests import data
from tests.exchange.feeds import ListFeed, serving, trade

_US = 1_700_000_000_000_000


def frames(count: int, first: int = 0) -> list[tuple[int, bytes]]:
    return [(_US + number * 1_000, trade(number).data) for number in range(first, first + count)]


def replayed(*paths: Path) -> list[tuple[int, bytes]]:
    return [(f.recv_ns // 1_000, f.data) for path in paths for f in read_capture(path)]


def session_at(url: str, **settings: object) -> Session:
    feed = Binance(_env_file=None, url=url, symbols=("BTCUSDT",), **settings)  # type: ignore[call-arg,arg-type]
    (spec,) = EXCHANGES["binance"].sessions(feed)
    entry = EXCHANGES["binance"]
    return new_session(entry, spec, feed, SYSTEM_CLOCK, max_frame_bytes=2**20)


async def recorded(session: Session, out: Path, count: int) -> Recorder:
    recorder, stop = Recorder([session], out, Rotation()), asyncio.Event()
    running = asyncio.create_task(recorder.run(stop))
    async with asyncio.timeout(60):
        await eventually(lambda: session.stats.frames >= count, limit_s=60)
        stop.set()
        await running
    return recorder


@given(st.lists(st.binary(max_size=40), max_size=20), st.integers(0, 19))
def test_frames_come_back_and_what_is_no_json_does_not_spoil_them(
    tmp_path_factory: pytest.TempPathFactory, texts: list[bytes], cut: int
) -> None:
    file = CaptureFile(tmp_path_factory.mktemp("out"), "x", Rotation())
    given_frames = [(_US + n, text) for n, text in enumerate(texts)]
    file.note("connected", _US, "wss://somewhere")
    file.add(given_frames[:cut])
    file.flush()
    file.add(given_frames[cut:])
    file.close()
    wanted = [
        (at, text.replace(b"\n", b" ").replace(b"\r", b" ").rstrip(b"\r\n"))
        for at, text in given_frames
        if text[:1] in (b"{", b"[")
    ]
    assert replayed(*file.written.files) == wanted
    assert file.written.frames == len(wanted)
    assert file.written.frames + file.written.other == len(texts)


def test_files_are_full_by_size_and_by_time(tmp_path: Path) -> None:
    by_size = CaptureFile(tmp_path, "size", Rotation(max_bytes=1))
    for start in range(0, 30, 10):
        by_size.add(frames(10, start))
        by_size.flush()
    by_size.close()
    assert len(by_size.written.files) == 3
    by_time = CaptureFile(tmp_path, "time", Rotation(max_s=0.01))
    by_time.add(frames(30))
    by_time.close()
    assert len(by_time.written.files) == 3
    for file in (by_size, by_time):
        assert sorted(file.written.files) == file.written.files
        assert replayed(*file.written.files) == frames(30)


def test_a_killed_recorder_leaves_files_that_read_to_their_end(tmp_path: Path) -> None:
    file = CaptureFile(tmp_path, "x", Rotation())
    file.add(frames(10))
    file.flush()
    file.add(frames(5, 10))
    os.close(file._fd or 0)  # as a kill: what was not flushed is gone
    assert replayed(*file.written.files) == frames(10)


def test_a_full_member_does_not_wait_for_the_next_flush(tmp_path: Path) -> None:
    file = CaptureFile(tmp_path, "x", Rotation())
    file.add([(_US, b"{" + b"x" * MEMBER_BYTES)])
    assert gzip.decompress(file.written.files[0].read_bytes()).count(b"\n") == 1
    file.close()


def test_what_a_full_disk_refused_is_written_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = CaptureFile(tmp_path, "x", Rotation())
    file.add(frames(10))
    file.flush()
    file.add(frames(5, 10))
    write, left = os.write, [20]

    def full(fd: int, part: bytes) -> int:
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, part[: left.pop()])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for _ in range(2):
            with pytest.raises(ConfigError, match="No space left"):
                file.flush()
    assert replayed(*file.written.files) == frames(10)
    file.close()
    assert replayed(*file.written.files) == frames(15)


async def test_a_disk_that_fills_up_between_two_frames_ends_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: CaptureFile) -> None:
        raise ConfigError("no room")

    monkeypatch.setattr(CaptureFile, "flush", full)
    monkeypatch.setattr("k2.sources.record.FLUSH_S", 0.01)
    feed = ListFeed([trade(n, at_ms=n * 50) for n in range(100)])
    async with serving(feed, speed=1.0) as server:
        recorder, stop = Recorder([session_at(server.url)], tmp_path, Rotation()), asyncio.Event()
        with pytest.raises(ConfigError, match="no room"):
            async with asyncio.timeout(20):
                await recorder.run(stop)


async def test_a_recorded_session_is_the_session_however_slow_the_disk(tmp_path: Path) -> None:
    data.require(data.BTC_0808)
    wanted = [f.data for f in read_capture(data.BTC_0808) if b"@depth" not in f.data[:40]]
    wanted = [frame for frame in wanted if frame.startswith(b'{"stream"')]
    async with serving(CaptureFeed((data.BTC_0808,))) as server:
        # Room for few frames: the recorder makes the socket wait again and again.
        session = session_at(server.url, queue_frames=100)
        recorder = await recorded(session, tmp_path, len(wanted))
    assert session.stats.waits_for_room > 0
    (session_facts,) = facts(recorder)["sessions"]
    got = replayed(*map(Path, session_facts["files"]))
    assert [frame for _, frame in got] == wanted
    assert [at for at, _ in got] == sorted(at for at, _ in got)


async def test_a_new_connection_is_marked(tmp_path: Path) -> None:
    async with serving(ListFeed([trade(n) for n in range(3)])) as server:
        session = session_at(server.url, reconnect_initial_s=0.01)
        recorder, stop = Recorder([session], tmp_path, Rotation()), asyncio.Event()
        running = asyncio.create_task(recorder.run(stop))
        async with asyncio.timeout(20):
            await eventually(lambda: session.stats.frames == 3)
            for client in tuple(server.clients):
                client.abort()
            await eventually(lambda: session.stats.frames == 6)
            stop.set()
            await running
    (path,) = recorder.written()[0][1].files
    lines = gzip.decompress(path.read_bytes()).splitlines()
    assert sum(line.startswith(b"k2://connected/") for line in lines) == 2
    assert [json.loads(f)["data"]["t"] for _, f in replayed(path)] == [0, 1, 2, 0, 1, 2]


async def test_a_disk_that_refuses_ends_the_recording_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with serving(ListFeed([trade(1)])) as server:
        recorder = Recorder([session_at(server.url)], tmp_path / "file", Rotation())
        with pytest.raises(ConfigError, match="cannot be written"):
            async with asyncio.timeout(20):
                await recorder.run(asyncio.Event())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--exchange", "ftx"), "is not one of"),
        (("--exchange", "binance", "--symbols", "BTC-USDT"), "BTC-USDT"),
        (("--exchange", "kraken", "--streams", "ohlc"), "ohlc"),
    ],
)
def test_the_command_names_what_it_cannot_record(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    result = CliRunner().invoke(cli, ["record", *arguments, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert said in result.output
