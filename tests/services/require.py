"""What a test does when the machine lacks what it needs: fail in CI, skip elsewhere."""

from __future__ import annotations

import os
import shutil

import pytest

from k2.dev.stack import SERVICES


def require(missing: str | None) -> None:
    """Skip with `missing`, which says what is lacking and the remedy; fail in CI."""
    if not missing:
        return
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"CI must have everything: {missing}")
    pytest.skip(missing)


def require_services(*names: str) -> None:
    """`require` that all of `names` can be started."""
    reasons = [service.missing() for service in SERVICES if service.name in names]
    require("; ".join(filter(None, reasons)))


def require_programs(package: str, *programs: str) -> None:
    """`require` that all of `programs`, which the system's `package` brings, are on PATH."""
    missing = ", ".join(program for program in programs if shutil.which(program) is None)
    require(missing and f"{missing} not on PATH: apt-get install {package}")
