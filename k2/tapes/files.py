"""Tape files: opened plain or gzip, read whole once before anything is loaded, then in blocks."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from k2.errors import TapeError
from k2.gzipped import unpacked

_CHUNK: Final = 1 << 20
#: Characters of a digest in an id; 64 bits tell any number of files apart.
_DIGEST_CHARS: Final = 16
#: A line beyond this is no row of a tape.
MAX_LINE_BYTES: Final = 65_536
#: Binance's list of all instruments has about 10 MB.
MAX_CONTENT_BYTES: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TapeFile:
    """A file that was read to its end. `digest`: of its content, unpacked; `first`: two lines."""

    path: Path
    digest: str
    lines: int
    first: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Lines of a file without their ends; `first` is the number of the first one, from 1."""

    first: int
    lines: list[bytes]


@dataclass(frozen=True, slots=True)
class Content:
    """A small file, whole and unpacked, and the digest of it."""

    path: Path
    digest: str
    data: bytes


def content_of(path: Path) -> Content:
    """Read `path` whole. Raises `TapeError` as `examine` does, and when it is too large."""
    with _opened(path) as file:
        data = file.read(MAX_CONTENT_BYTES + 1)
    if len(data) > MAX_CONTENT_BYTES:
        raise TapeError(
            f"{path} has more than {MAX_CONTENT_BYTES:,} bytes unpacked; a list of instruments is "
            "smaller: is it a tape?",
            path=str(path),
        )
    if not data.strip():
        raise TapeError(f"{path} is empty", path=str(path))
    return Content(path, hashlib.sha256(data).hexdigest()[:_DIGEST_CHARS], data)


def examine(path: Path) -> TapeFile:
    """Read `path` once. Raises `TapeError`: nothing of a damaged file is ever loaded."""
    digest, count, first = hashlib.sha256(), 0, list[str]()
    with _opened(path) as file:
        while block := file.readlines(_CHUNK):
            for line in block:
                digest.update(line)
            longest = max(map(len, block))
            if longest > MAX_LINE_BYTES:
                raise TapeError(
                    f"{path} has a line of {longest} bytes; a row has at most {MAX_LINE_BYTES}: "
                    "is it a CSV file?",
                    path=str(path),
                )
            first += [line.decode("utf-8", "replace").strip() for line in block[: 2 - len(first)]]
            count += len(block)
    if not count:
        raise TapeError(f"{path} is empty; give a CSV file, plain or gzip", path=str(path))
    return TapeFile(path, digest.hexdigest()[:_DIGEST_CHARS], count, tuple(first))


def blocks(path: Path, rows: int) -> Iterator[Block]:
    """The lines of a file, `rows` at a time."""
    number, held = 1, list[bytes]()
    with _opened(path) as file:
        for line in file:
            held.append(line.rstrip(b"\r\n"))
            if len(held) == rows:
                yield Block(number, held)
                number, held = number + rows, []
    if held:
        yield Block(number, held)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file, unpacked(file) as content:
            yield content
    except FileNotFoundError as exc:
        raise TapeError(f"{path}: no such file", path=str(path)) from exc
    except IsADirectoryError as exc:
        raise TapeError(
            f"{path} is a directory; name the files in it, e.g. {path}/*.csv.gz", path=str(path)
        ) from exc
    except EOFError as exc:
        raise TapeError(
            f"{path} ends in the middle of its gzip stream; copy the whole file again. Nothing of "
            "it was loaded",
            path=str(path),
        ) from exc
    except (gzip.BadGzipFile, zlib.error) as exc:
        raise TapeError(
            f"{path} is a damaged gzip ({exc}); copy the file again. Nothing of it was loaded",
            path=str(path),
        ) from exc
    except OSError as exc:
        raise TapeError(f"{path} cannot be read: {exc}", path=str(path)) from exc
