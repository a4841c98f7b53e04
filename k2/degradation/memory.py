"""This process's own memory against its limit; never the host's (W-32)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import psutil

#: cgroup v1 says "no limit" with a number near 2^63.
_UNLIMITED: Final = 2**60


def _rss() -> int:
    return int(psutil.Process().memory_info().rss)


class MemoryGauge:
    """`fraction()`: resident memory over the limit.

    The limit is `limit_mb`, else the smallest of the cgroups this process is in (v2 or v1), else
    the host's memory. `root` is where `proc` and `sys` are.
    """

    def __init__(
        self,
        limit_mb: int = 0,
        *,
        root: Path = Path("/"),
        rss: Callable[[], int] = _rss,
        host: Callable[[], int] = lambda: int(psutil.virtual_memory().total),
    ) -> None:
        self._rss = rss
        self.limit_bytes = limit_mb * 2**20 or min(host(), *cgroup_limits(root))

    def fraction(self) -> float:
        """0 to about 1."""
        return self._rss() / self.limit_bytes


def cgroup_limits(root: Path) -> Iterator[int]:
    """Memory limits, bytes, of the process's cgroups and those above them; none outside Linux."""
    yield _UNLIMITED
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _limits(root / "sys/fs/cgroup", path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits(root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes")


def _limits(mount: Path, path: str, name: str) -> Iterator[int]:
    # Inside a container the path may be the host's, and only the mount's top is to be seen.
    group = mount / path.strip("/")
    for directory in (group, *group.parents):
        if not directory.is_relative_to(mount):
            return
        try:
            text = (directory / name).read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if text.isdigit():
            yield int(text)
