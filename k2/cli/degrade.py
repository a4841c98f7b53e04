"""`k2 degrade`: look at the degradation level, hold one by hand, let it go."""

from __future__ import annotations

import getpass
import json
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import Any

import click

from k2.degradation.levels import Level
from k2.errors import ConfigError
from k2.settings import load_settings

_TIMEOUT_S = 10.0
_UNITS = {"s": 1 / 60, "m": 1.0, "h": 60.0}


class Minutes(click.ParamType):
    """30s, 10m or 2h."""

    name = "DURATION"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """Minutes."""
        text = str(value)
        if text[-1:] not in _UNITS or not text[:-1].isdigit():
            self.fail(f"{text!r} is no duration; give 30s, 10m or 2h")
        return int(text[:-1]) * _UNITS[text[-1]]


@click.group()
def degrade() -> None:
    """The degradation level of all workers.

    Asks the worker at K2_API_HOST and K2_API_PORT with K2_API_KEY.
    """


@degrade.command()
@click.option("--json", "as_json", is_flag=True, help="The answer as one JSON object.")
def status(as_json: bool) -> None:
    """The level, why it is that, what is put off, and the last changes."""
    found = _ask("GET", "/v1/degradation")
    shed = _ask("GET", "/v1/shed")
    if as_json:
        print(json.dumps({**found, "shed": shed}))
        return
    print(f"{found['level']}{': ' + found['reason'] if found['reason'] else ''}")
    override = found["override"]
    if override:
        print(f"held until {_time(override['until_us'])} by {override['by']}: {override['reason']}")
    print(f"{shed['pending']} records are put off, {shed['brought']} were stored after all")
    for change in found["history"][-10:]:
        when = _time(change["at_us"])
        print(f"  {when}  {change['before']} → {change['after']}: {change['reason']}")


@degrade.command(name="set")
@click.argument("level", type=click.Choice([one.name for one in Level], case_sensitive=False))
@click.option("--for", "minutes", type=Minutes(), required=True, help="30s, 10m or 2h.")
@click.option("--reason", required=True, help="Why; shown to everybody.")
def hold(level: str, minutes: float, reason: str) -> None:
    """Hold LEVEL for a while, whatever lag and memory say."""
    body = {"level": level, "minutes": minutes, "reason": reason, "by": getpass.getuser()}
    found = _ask("POST", "/v1/degradation", body)["override"]
    print(f"{found['level']} until {_time(found['until_us'])}")


@degrade.command()
def clear() -> None:
    """Let the level go: lag and memory decide again."""
    _ask("POST", "/v1/degradation/clear", {})
    print("lag and memory decide again")


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _ask(method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """`data` of the worker's answer. Raises `ConfigError` naming what to change."""
    api = load_settings().api
    url = f"http://{api.host}:{api.port}{path}"
    request = urllib.request.Request(
        url,
        data=None if body is None else json.dumps(body).encode(),
        method=method,
        headers={"X-API-Key": api.key.get_secret_value(), "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            data: dict[str, Any] = json.loads(answer.read())["data"]
            return data
    except urllib.error.HTTPError as exc:
        detail = json.loads(exc.read())["detail"]["message"]
        raise ConfigError(f"{url} refused: {detail}", variable="K2_API_KEY") from exc
    except OSError as exc:
        raise ConfigError(
            f"no worker answers at {url} ({exc}); start one, or set K2_API_HOST and K2_API_PORT",
            variable="K2_API_PORT",
        ) from exc
