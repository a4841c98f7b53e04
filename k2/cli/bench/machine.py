"""What a figure was measured on."""

from __future__ import annotations

import os
import platform


def machine() -> str:
    """Processors, architecture and Python of this machine, in words."""
    return f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"
