"""A worker that runs: what it says of itself."""

from __future__ import annotations

from typing import Any

from k2.ask import NotK2, NoWorker, ask
from k2.doctor.finding import Finding
from k2.settings import Settings

_CHECK = "worker"
_STATES = {"healthy": "ok", "degraded": "warning", "unhealthy": "failed"}


def look_at_worker(settings: Settings) -> list[Finding]:
    """`/health` and `/v1/status` at K2_API_HOST and K2_API_PORT; none there is no fault."""
    try:
        health = ask(settings.api, "GET", "/health")
        status = ask(settings.api, "GET", "/v1/status")
    except NoWorker as exc:
        return [Finding(_CHECK, "skipped", exc.message)]
    except NotK2 as exc:
        return [Finding(_CHECK, "failed", exc.message, "set K2_API_PORT to the worker's")]
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
