"""Files that may be packed."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final, cast

_MAGIC: Final = b"\x1f\x8b"


@contextmanager
def unpacked(file: BinaryIO) -> Iterator[BinaryIO]:
    """The content of `file`, which may be gzip or plain; told by how it begins."""
    magic = file.read(len(_MAGIC))
    file.seek(0)
    if magic != _MAGIC:
        yield file
        return
    with gzip.GzipFile(fileobj=file) as content:
        yield cast("BinaryIO", content)
