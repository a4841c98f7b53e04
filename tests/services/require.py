"""What a test does when the machine lacks what it needs: fail in CI, skip elsewhere."""

from __future__ import annotations

import os

import pytest

from k2.dev.stack import SERVICES


def require_services(*names: str) -> None:
    """Skip with the remedy where one of `names` cannot be started; in CI that is a failure."""
    reasons = [service.missing() for service in SERVICES if service.name in names]
    if reason := "; ".join(filter(None, reasons)):
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"CI must have everything: {reason}")
        pytest.skip(reason)
