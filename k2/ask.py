"""One question to a running worker, for commands that need no more than that."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any, Final

from k2.errors import ConfigError
from k2.settings import Api

_TIMEOUT_S: Final = 10.0


class NoWorker(ConfigError):
    """Nothing listens where the settings say that the worker does."""


class NotK2(ConfigError):
    """Something answers there that is no K2 worker."""


def worker_url(api: Api) -> str:
    """Where the worker of these settings is reached from this machine."""
    return f"http://{reachable(api.host)}:{api.port}"


def reachable(host: str) -> str:
    """The host part of an address at which what listens on `host` is reached from here."""
    own = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound here
    return f"[{own}]" if ":" in own else own


def ask(api: Api, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """`data` of the worker's answer, also of one that says it is not ready.

    Raises `NoWorker`, `NotK2`, or `ConfigError` with the reason when it refuses.
    """
    url = f"{worker_url(api)}{path}"
    request = urllib.request.Request(  # noqa: S310 - http, by construction
        url,
        data=None if body is None else json.dumps(body).encode(),
        method=method,
        headers={"X-API-Key": api.key.get_secret_value(), "Content-Type": "application/json"},
    )
    try:
        status, answer = _answer(request)
    except OSError as exc:
        raise NoWorker(
            f"no worker answers at {url} ({exc}); start one, or set K2_API_HOST and K2_API_PORT",
            variable="K2_API_PORT",
        ) from exc
    try:
        content = json.loads(answer)
        if "detail" in content:
            raise ConfigError(
                f"{url} refused: {content['detail']['message']}", variable="K2_API_KEY"
            )
        data: dict[str, Any] = content["data"]
    except (ValueError, LookupError, TypeError) as exc:
        raise NotK2(
            f"what answers at {url} with status {status} is not K2; set K2_API_PORT to the "
            "worker's",
            variable="K2_API_PORT",
        ) from exc
    return data


def _answer(request: urllib.request.Request) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read()
