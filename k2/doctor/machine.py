"""This machine: the data directory, memory, open files."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

from k2.degradation.memory import MemoryGauge
from k2.doctor.finding import Finding
from k2.settings import Settings

_FREE = 0.1
_MEMORY_MB = 1_024
_FILES = 4_096


def look_at_machine(settings: Settings) -> list[Finding]:
    """What a worker would run out of first."""
    limit_mb = MemoryGauge(settings.degradation.memory_limit_mb).limit_bytes / 2**20
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return [
        _directory(settings.core.data_dir),
        _enough("memory", limit_mb, _MEMORY_MB, "MB", "give it more, or set fewer symbols"),
        _enough("open files", files, _FILES, "at once", f"ulimit -n {_FILES}"),
    ]


def _enough(check: str, found: float, least: float, unit: str, remedy: str) -> Finding:
    detail = f"{found:,.0f} {unit}"
    if found < least:
        return Finding(check, "warning", f"{detail}; K2 wants {least:,.0f}", remedy)
    return Finding(check, "ok", detail)


def _directory(directory: Path) -> Finding:
    check, there = "data directory", directory
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK):
        remedy = "make it writable for this user, or set K2_DATA_DIR"
        return Finding(check, "failed", f"{there} cannot be written", remedy)
    usage = shutil.disk_usage(there)
    share = usage.free / usage.total
    detail = f"{directory}: {usage.free / 2**30:,.1f} GB free ({share:.0%})"
    if share < _FREE:
        return Finding(check, "warning", detail, "free space, or move K2_DATA_DIR")
    return Finding(check, "ok", detail)
