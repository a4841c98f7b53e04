"""A worker that runs: what it says of itself."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from k2.doctor.finding import Finding
from k2.settings import Settings

_CHECK = "worker"
_TIMEOUT_S = 5.0
_STATES = {"healthy": "ok", "degraded": "warning", "unhealthy": "failed"}


def look_at_worker(settings: Settings) -> list[Finding]:
    """`/health` and `/v1/status` at K2_API_HOST and K2_API_PORT; none there is no fault."""
    host = "127.0.0.1" if settings.api.host in ("0.0.0.0", "::") else settings.api.host  # noqa: S104
    base = f"http://{host}:{settings.api.port}"
    try:
        health = _get(f"{base}/health", "")
        status = _get(f"{base}/v1/status", settings.api.key.get_secret_value())
    except OSError as exc:
        return [Finding(_CHECK, "skipped", f"none answers at {base} ({exc})")]
    except ValueError:
        remedy = "set K2_API_PORT to the worker's"
        return [Finding(_CHECK, "failed", f"what answers at {base} is not K2", remedy)]
    return read(health, status)


def read(health: dict[str, Any], status: dict[str, Any]) -> list[Finding]:
    """Findings from both answers' `data`."""
    findings = [
        Finding(
            f"worker: {check['name']}",
            _STATES[check["status"]],  # type: ignore[arg-type]
            check.get("message") or check["status"],
            "" if check["status"] == "healthy" else "see docs/runbooks.md",
        )
        for check in health["dependencies"]
    ]
    level, lag = status["degradation"], status["lag"]
    calm = level["name"] == "NORMAL"
    detail = f"level {level['name']}, {lag} records behind"
    remedy = "" if calm else f"{level['reason']}; see docs/runbooks/degradation.md"
    return [*findings, Finding("worker: load", "ok" if calm else "warning", detail, remedy)]


def _get(url: str, key: str) -> dict[str, Any]:
    request = urllib.request.Request(url, headers={"X-API-Key": key} if key else {})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            body = answer.read()
    except urllib.error.HTTPError as exc:
        if exc.code != 503:
            raise ValueError(f"{url}: {exc.code}") from exc
        body = exc.read()  # not ready, and says why
    data: dict[str, Any] = json.loads(body)["data"]
    return data
