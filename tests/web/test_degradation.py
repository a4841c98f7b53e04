"""The level over HTTP: shown, held by hand, let go."""

from __future__ import annotations

import pytest

from tests.web.api import Api

PATH = "/v1/degradation"


async def test_a_level_is_held_shown_and_let_go(api: Api) -> None:
    body = {"level": "graceful", "minutes": 5, "reason": "rehearsal", "by": "ops"}
    status, answer = await api.post(body, PATH)
    assert (status, answer["data"]["override"]["level"]) == (200, "GRACEFUL")
    _, answer = await api.get(PATH)
    assert answer["data"]["level"] == "GRACEFUL"
    assert answer["data"]["reason"] == "set by ops: rehearsal"
    assert [change["after"] for change in answer["data"]["history"]] == ["GRACEFUL"]
    assert (await api.post({}, f"{PATH}/clear"))[0] == 200
    _, answer = await api.get(PATH)
    assert (answer["data"]["level"], answer["data"]["override"]) == ("NORMAL", None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"level": "HIGH"}, "level"),
        ({"minutes": 0}, "minutes"),
        ({"minutes": 10**6}, "minutes"),
        ({"reason": ""}, "reason"),
        ({"reason": None}, "reason"),
        ({"until": 1}, "until"),
    ],
)
async def test_what_is_wrong_is_named(api: Api, change: dict[str, object], named: str) -> None:
    body = {"level": "SOFT", "minutes": 1, "reason": "x", **change}
    status, answer = await api.post(body, PATH)
    assert (status, answer["detail"]["parameter"]) == (422, named)
    assert (await api.get(PATH))[1]["data"]["level"] == "NORMAL"


async def test_it_can_be_asked_and_let_go_while_the_api_is_closed(api: Api) -> None:
    api.level = 4
    assert (await api.get("/v1/trades"))[0] == 503
    assert (await api.get(PATH))[0] == 200
    assert (await api.get("/v1/shed"))[0] == 200
    assert (await api.post({}, f"{PATH}/clear"))[0] == 200
