"""One process at a time may open an embedded log."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from k2.errors import LogLockedError


class DirectoryLock:
    """An exclusive lock on a directory, released by the system when the process dies."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lock"
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises `LogLockedError` naming the process that holds it."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise LogLockedError(
                f"the embedded log in {self._path.parent} is in use by process {holder}; it is for "
                "one process on one machine: stop that one, or set K2_KAFKA_BOOTSTRAP_SERVERS so "
                "that several share Kafka",
                directory=str(self._path.parent),
                pid=holder,
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """Let the next one in."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
