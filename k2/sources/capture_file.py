"""Recorded frames on disk, as `k2.exchange.capture` reads them.

One line is `<receive time, ns> <frame>`. A file is a row of complete gzip members, each written at
once: what a killed recorder leaves behind is readable to its end. What is no frame (a connection
opened, text that is not JSON) stands in lines that begin with `k2://`, which readers pass over.
"""

from __future__ import annotations

import datetime as dt
import gzip
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from k2.errors import ConfigError
from k2.sources.buffer import Received

#: Uncompressed bytes of one gzip member: small members compress worse.
MEMBER_BYTES: Final = 1_048_576
_LEVEL: Final = 6
_ONE_LINE: Final = bytes.maketrans(b"\r\n", b"  ")


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a file is full: compressed bytes, and seconds since its first frame."""

    max_bytes: int = 256 * 1024 * 1024
    max_s: float = 3_600.0


@dataclass(slots=True)
class Written:
    """What was recorded. `other`: received, but no JSON; `bytes`: compressed."""

    frames: int = 0
    other: int = 0
    bytes: int = 0
    files: list[Path] = field(default_factory=list)


class CaptureFile:
    """Writes frames of one session, in their order, into files named after it and their time.

    Blocking; for one thread at a time. `flush` puts a member on disk, so it bounds what a crash
    loses.
    """

    def __init__(self, directory: Path, name: str, rotation: Rotation) -> None:
        self.written = Written()
        self._directory = directory
        self._name = name
        self._rotation = rotation
        self._lines: list[bytes] = []
        self._held = 0
        self._size = 0
        self._fd: int | None = None
        self._until_us = 0.0

    def note(self, what: str, at_us: int, text: str) -> None:
        """Something that is not a frame: `k2://{what}/{ns} {text}`."""
        self._hold(f"k2://{what}/{at_us * 1_000} {text}".encode())

    def add(self, frames: Sequence[Received]) -> None:
        """Keep `frames`; a full member goes to disk. Raises `ConfigError` when the disk refuses."""
        for recv_us, data in frames:
            if self._fd is not None and recv_us >= self._until_us:
                self._next_file()
            if self._fd is None:
                self._open(recv_us)
            # Outside of text JSON may have line ends, which mean nothing; inside it can't.
            line = data.translate(_ONE_LINE)
            if line[:1] in (b"{", b"["):
                self.written.frames += 1
                self._hold(b"%d %b" % (recv_us * 1_000, line))
            else:
                self.written.other += 1
                self._hold(b"k2://other/%d %b" % (recv_us * 1_000, line))
        if self._held >= MEMBER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Put what is held on disk."""
        self._write_held()
        if self._size >= self._rotation.max_bytes:
            self._next_file()

    def close(self) -> None:
        """Everything on disk, for good."""
        self._next_file()

    def _hold(self, line: bytes) -> None:
        self._lines.append(line)
        self._held += len(line) + 1

    def _open(self, recv_us: int) -> None:
        stamp = dt.datetime.fromtimestamp(recv_us / 1e6, dt.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        path = self._directory / f"{self._name}-{stamp}.gz"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise _refused(path, exc) from exc
        self.written.files.append(path)
        self._until_us = recv_us + self._rotation.max_s * 1e6

    def _next_file(self) -> None:
        if self._fd is None:
            return
        self._write_held()
        fd, self._fd, self._size = self._fd, None, 0
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _write_held(self) -> None:
        if self._fd is None or not self._lines:
            return
        member = gzip.compress(b"\n".join(self._lines) + b"\n", _LEVEL, mtime=0)
        try:
            _write_all(self._fd, member)
        except OSError as exc:
            # Half a member would hide all that is written after it, these lines again among it.
            os.ftruncate(self._fd, self._size)
            os.lseek(self._fd, self._size, os.SEEK_SET)
            raise _refused(self.written.files[-1], exc) from exc
        self._lines.clear()
        self._held = 0
        self._size += len(member)
        self.written.bytes += len(member)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _refused(path: Path, exc: OSError) -> ConfigError:
    return ConfigError(
        f"{path} cannot be written: {exc.strerror}; give another --out, or make room",
        path=str(path),
    )
