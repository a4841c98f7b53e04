"""Recorded WebSocket sessions, frame by frame, exactly as they came off the wire.

Two line layouts are read, plain or gzip: `<receive time, ns> <frame>` and
`<receive time, s with fraction>: <frame>`. Lines that record a connection (they hold its URL) or
what the client itself sent (`<-`) are passed over. REST answers are frames without a stream. A file
that is one REST answer of Kraken's trade history is read as the frames those trades came in.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from k2.errors import CaptureError
from k2.exchange.kraken_rest import is_rest, rest_lines
from k2.gzipped import unpacked

_PREFIX = b'{"stream":"'
_COINBASE = {b"match": b"matches", b"last_match": b"matches", b"ticker": b"ticker"}
#: How frames of each exchange begin, and the name of the stream they say they are of.
_STREAMS: tuple[tuple[re.Pattern[bytes], Callable[[re.Match[bytes]], bytes]], ...] = (
    (re.compile(rb'\{\s*"stream"\s*:\s*"([^"\\]*)"'), lambda found: found[1]),
    (
        re.compile(rb'\{"channel":"(trade|ticker)",.{0,40}?"data":\[\{"symbol":"([^"\\]*)"'),
        lambda found: found[1] + b":" + found[2],
    ),
    (re.compile(rb'\[\d+,\[.*\],"trade","([^"\\]*)"\]$'), lambda found: b"trade:" + found[1]),
    (
        re.compile(rb'\{"type":"(match|last_match|ticker)",.*?"product_id":"([^"\\]*)"'),
        lambda found: _COINBASE[found[1]] + b":" + found[2],
    ),
)
_LAYOUTS = "`<nanoseconds> <frame>` or `<seconds.fraction>: <frame>`"


class Frame(NamedTuple):
    """One frame: when it was received (ns, UTC), its combined stream's name or "", its bytes."""

    recv_ns: int
    stream: str
    data: bytes


def stream_of(data: bytes) -> bytes:
    """The stream a frame belongs to; empty when it names none.

    Binance's own name (`btcusdt@trade`), elsewhere `channel:symbol` (`matches:BTC-USD`).
    """
    if data.startswith(_PREFIX):
        return data[len(_PREFIX) : data.find(b'"', len(_PREFIX))]
    for pattern, name in _STREAMS:
        if found := pattern.match(data):
            return name(found)
    return b""


def read_capture(path: Path) -> Iterator[Frame]:
    """The frames of one capture, lazily.

    Raises `CaptureError` naming file and line: no such file, a directory, a gzip that ends early,
    a line of unknown layout. Frames before a damaged place are delivered first.
    """
    names: dict[bytes, str] = {}
    number = 0
    with _opened(path) as file, _gzip_errors_named(path):
        lines: Iterable[bytes] = file
        first = next(iter(file), b"")
        lines = rest_lines(first + file.read(), path) if is_rest(first) else chain([first], file)
        for number, line in enumerate(filter(None, lines), start=1):
            recv_ns, data = _split(line, path, number)
            if not data:
                continue
            name = stream_of(data)
            stream = names.get(name)
            if stream is None:
                stream = names[name] = name.decode("utf-8", "replace")
            yield Frame(recv_ns, stream, data)
    if number == 0:
        raise CaptureError(f"capture {path} is empty; give a file of {_LAYOUTS}", path=str(path))


def check_capture(path: Path) -> None:
    """Raise `CaptureError` unless `path` opens and begins like a capture."""
    next(read_capture(path), None)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        plain = path.open("rb")
    except FileNotFoundError as exc:
        raise CaptureError(f"capture {path}: no such file", path=str(path)) from exc
    except IsADirectoryError as exc:
        raise CaptureError(
            f"capture {path} is a directory; give a file, or several in the order to play them",
            path=str(path),
        ) from exc
    except OSError as exc:
        raise CaptureError(f"capture {path} cannot be read: {exc}", path=str(path)) from exc
    with plain, unpacked(plain) as content:
        yield content


@contextmanager
def _gzip_errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except EOFError as exc:
        raise CaptureError(
            f"capture {path} ends in the middle of its gzip stream; copy the whole file again",
            path=str(path),
        ) from exc
    except (gzip.BadGzipFile, zlib.error) as exc:
        raise CaptureError(
            f"capture {path} is a damaged gzip ({exc}); copy the file again", path=str(path)
        ) from exc


def _split(line: bytes, path: Path, number: int) -> tuple[int, bytes]:
    head, _, frame = line.partition(b" ")
    data = frame.rstrip(b"\r\n")
    if head.isdigit():
        return int(head), _json_only(data, line, path, number)
    if head.endswith(b":"):
        whole, _, fraction = head[:-1].partition(b".")
        if whole.isdigit() and (fraction.isdigit() or not fraction):
            # Text to integer: a float of seconds cannot hold nanoseconds.
            recv_ns = int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
            return recv_ns, _json_only(data, line, path, number)
    if b"://" in head or not line.strip():
        return 0, b""
    raise _unknown(line, path, number)


def _json_only(data: bytes, line: bytes, path: Path, number: int) -> bytes:
    if data[:1] not in (b"{", b"["):
        raise _unknown(line, path, number)
    return data


def _unknown(line: bytes, path: Path, number: int) -> CaptureError:
    shown = line[:60].decode("utf-8", "replace").rstrip()
    return CaptureError(
        f"capture {path}, line {number}: {shown!r} is of no known layout; "
        f"a line is {_LAYOUTS} with a JSON frame",
        path=str(path),
        line=number,
    )


def symbols_of(frames: Iterable[Frame]) -> tuple[str, ...]:
    """The symbols that have a stream among `frames`, in order of appearance.

    Upper case, and as the exchange writes them: BTCUSDT, BTC-USD, XBT/USD.
    """
    streams = dict.fromkeys(frame.stream for frame in frames if frame.stream)
    return tuple(dict.fromkeys(filter(None, map(_symbol_of, streams))))


def _symbol_of(stream: str) -> str:
    symbol, mark, _ = stream.partition("@")
    return (symbol if mark else stream.partition(":")[2]).upper()
