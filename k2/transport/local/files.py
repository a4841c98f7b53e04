"""The file operations of the embedded log, in one place so that a test can fail or kill any."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

_sync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class Files:
    """The operating system's files. All methods raise `OSError`."""

    def open_append(self, path: Path) -> int:
        """Descriptor of a segment for writing, made if missing."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write_at(self, fd: int, data: bytes | bytearray | memoryview, position: int) -> None:
        """Write all of `data`: a short write (disk full) is followed by the error that explains it.

        Explicit positions: what a failed write left behind is overwritten, never appended to.
        """
        view = memoryview(data)
        while view:
            written = os.pwrite(fd, view, position)
            view = view[written:]
            position += written

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """Data and size to the disk; times need not be."""
        _sync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def replace(self, source: Path, target: Path) -> None:
        """Atomically put `source` in the place of `target`."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        shutil.rmtree(path)

    def sync_directory(self, path: Path) -> None:
        """Make names in `path` (made, renamed, removed) survive a power failure."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def write_file(self, path: Path, data: bytes) -> None:
        """Replace a small file as a whole: after a crash it holds the old or the new content."""
        draft = path.with_name(path.name + DRAFT_SUFFIX)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            self.write_at(fd, data, 0)
            self.sync(fd)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise
        finally:
            self.close(fd)
        self.replace(draft, path)
        self.sync_directory(path.parent)


#: Ends the name of a file that is being written and takes its place by a rename.
DRAFT_SUFFIX = ".draft"

FILES = Files()
