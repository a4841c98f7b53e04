"""Keys: what is accepted as configuration, who may what, how often, and from where."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator

import pytest
import structlog
from aiohttp.test_utils import TestClient, TestServer
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from k2.cli.key import key as key_command
from k2.errors import ConfigError
from k2.settings import LOCAL_API_KEY, key_ring, load_settings
from k2.web.api import build_api
from k2.web.context import CONTEXT
from k2.web.keys import KeyRing, digest, new_key, parse_keys
from k2.web.rates import Rates
from tests.web.api import Api


class Time:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_key_is_found_by_its_secret_only() -> None:
    secret, entry = new_key("research", ["read"], 60)
    ring = KeyRing.single("other").plus([entry])
    assert ring.find(secret) == entry
    assert secret not in json.dumps(entry.entry())
    for wrong in ("", secret[:-1], secret + "x", entry.sha256, "\udcff"):
        assert ring.find(wrong) is None


def test_entries_survive_the_way_through_configuration() -> None:
    made = [new_key(name, ["read", "sql"], 7)[1] for name in ("a", "b")]
    text = json.dumps([one.entry() for one in made])
    assert parse_keys(text, per_minute=1) == made
    short = json.dumps([{"name": "a", "sha256": "0" * 64}])
    (found,) = parse_keys(short, per_minute=9)
    assert (found.scopes, found.per_minute) == (frozenset({"read"}), 9)


@pytest.mark.parametrize(
    "entries",
    [
        "{}",
        "nonsense",
        "[1]",
        '[{"name": "a"}]',
        '[{"name": "a", "sha256": "zz"}]',
        json.dumps([{"name": "a", "sha256": "0" * 64, "scopes": ["write"]}]),
        json.dumps([{"name": "a", "sha256": "0" * 64, "scopes": []}]),
        json.dumps([{"name": "a", "sha256": "0" * 64, "per_minute": -1}]),
        json.dumps([{"name": "a", "sha256": "0" * 64, "key": "plain"}]),
        json.dumps([{"name": "default", "sha256": "0" * 64}]),
        json.dumps([{"name": "a", "sha256": "0" * 64}] * 2),
    ],
)
def test_entries_that_are_refused(entries: str) -> None:
    with pytest.raises(ConfigError, match="K2_API_KEYS"):
        parse_keys(entries, per_minute=0)


def test_the_local_key_is_worth_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K2_ENVIRONMENT", "staging")
    with pytest.raises(ConfigError, match="K2_API_KEY"):
        load_settings()
    secret, entry = new_key("a", ["read"], 0)
    monkeypatch.setenv("K2_API_KEYS", json.dumps([entry.entry()]))
    ring = key_ring(load_settings())
    assert ring.find(LOCAL_API_KEY) is None
    assert ring.find(secret) == entry


def test_the_command_shows_the_key_once_and_keeps_a_hash() -> None:
    done = CliRunner().invoke(key_command, ["desk", "--scope", "read", "--per-minute", "30"])
    assert done.exit_code == 0
    entry = json.loads(done.stdout)
    secret = done.stderr.removeprefix("X-API-Key: ").strip()
    assert entry["sha256"] == digest(secret)
    assert parse_keys(json.dumps([entry]), per_minute=0)[0].name == "desk"


@given(
    per_minute=st.integers(1, 10_000),
    waits_s=st.lists(st.floats(0, 30), min_size=1, max_size=200),
)
def test_no_more_than_rate_and_burst_ever_pass(per_minute: int, waits_s: list[float]) -> None:
    time = Time()
    rates = Rates(time)
    began_s, passed = time.now_s, 0
    for wait_s in waits_s:
        time.now_s += wait_s
        verdict = rates.take("a", per_minute)
        passed += verdict.allowed
        assert 0 <= verdict.remaining <= max(1, per_minute // 6)
        if not verdict.allowed:
            assert verdict.retry_s >= 1
    most = max(1, per_minute / 6) + (time.now_s - began_s) * per_minute / 60
    assert passed <= most + 1e-6


def test_after_retry_after_it_passes() -> None:
    time = Time()
    rates = Rates(time)
    while rates.take("a", 12).allowed:
        pass
    time.now_s += rates.take("a", 12).retry_s
    assert rates.take("a", 12).allowed
    assert rates.take("b", 12).allowed


@pytest.fixture
async def guarded(api: Api) -> AsyncIterator[tuple[TestClient, dict[str, str], Time]]:
    """A server with keys of every kind; their secrets by name."""
    time, secrets, entries = Time(), {}, []
    for name, scopes, per_minute in (
        ("reader", ["read"], 0),
        ("analyst", ["read", "sql"], 0),
        ("operator", ["admin"], 0),
        ("slow", ["read"], 12),
    ):
        secrets[name], entry = new_key(name, scopes, per_minute)
        entries.append(entry)
    context = dataclasses.replace(
        api.client.app[CONTEXT],
        keys=KeyRing(entries),
        rates=Rates(time),
        cors_origins=frozenset({"https://desk.example"}),
    )
    client = TestClient(TestServer(build_api(context)))
    await client.start_server()
    yield client, secrets, time
    await client.close()


async def test_scopes(guarded: tuple[TestClient, dict[str, str], Time]) -> None:
    client, secrets, _ = guarded
    may = {
        "/v1/trades": {"reader", "analyst", "slow"},
        "/v1/sql?sql=SELECT+1": {"analyst"},
        "/v1/status": {"reader", "analyst", "slow"},
        "/faust": {"operator"},
    }
    for path, names in may.items():
        for name, secret in secrets.items():
            async with client.get(
                path, headers={"X-API-Key": secret}, allow_redirects=False
            ) as response:
                assert (response.status < 400) == (name in names), (path, name)
                if response.status == 403:
                    assert (await response.json())["detail"]["error"] == "missing_scope"
    async with client.get("/v1/nowhere", headers={"X-API-Key": secrets["reader"]}) as response:
        assert response.status == 404


async def test_a_key_above_its_rate_is_told_when_to_come_back(
    guarded: tuple[TestClient, dict[str, str], Time],
) -> None:
    client, secrets, time = guarded
    headers = {"X-API-Key": secrets["slow"]}
    statuses = []
    for _ in range(3):
        async with client.get("/v1/symbols", headers=headers) as response:
            statuses.append(response.status)
            assert response.headers["RateLimit-Limit"] == "12"
    assert statuses == [200, 200, 429]
    assert response.headers["RateLimit-Remaining"] == "0"
    time.now_s += int(response.headers["Retry-After"])
    async with client.get("/v1/symbols", headers=headers) as response:
        assert response.status == 200
    async with client.get("/v1/symbols", headers={"X-API-Key": secrets["reader"]}) as response:
        assert response.status == 200
        assert "RateLimit-Limit" not in response.headers


async def test_every_line_names_the_key_and_never_shows_it(
    guarded: tuple[TestClient, dict[str, str], Time],
) -> None:
    client, secrets, _ = guarded
    with structlog.testing.capture_logs() as logs:
        async with client.get("/v1/trades", headers={"X-API-Key": secrets["reader"]}):
            pass
    assert [entry["key"] for entry in logs if entry["event"] == "http_request"] == ["reader"]
    assert secrets["reader"] not in str(logs)


async def test_bytes_that_are_no_text_are_a_wrong_key(
    guarded: tuple[TestClient, dict[str, str], Time],
) -> None:
    client, _, _ = guarded
    async with client.get("/v1/trades", headers={"X-API-Key": "\udcff\udcfe"}) as response:
        assert response.status in (400, 403)


async def test_other_origins(guarded: tuple[TestClient, dict[str, str], Time]) -> None:
    client, secrets, _ = guarded
    ask = {"Origin": "https://desk.example", "Access-Control-Request-Method": "GET"}
    async with client.options("/v1/trades", headers=ask) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == "https://desk.example"
        assert "X-API-Key" in response.headers["Access-Control-Allow-Headers"]
    async with client.options("/v1/trades", headers={**ask, "Origin": "https://x"}) as response:
        assert response.status in (401, 405)
        assert "Access-Control-Allow-Origin" not in response.headers
    headers = {"X-API-Key": secrets["reader"], "Origin": "https://desk.example"}
    async with client.get("/v1/trades", headers=headers) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "https://desk.example"
