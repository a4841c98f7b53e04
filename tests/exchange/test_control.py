"""Binance's control messages, its errors, and its limit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from k2.exchange.control import MAX_STREAMS, MessageLimit, Subscriptions, answer, from_url


def ask(subscriptions: Subscriptions, **request: Any) -> Any:
    return json.loads(answer(json.dumps(request), subscriptions))


def test_addresses_name_streams() -> None:
    combined = from_url("/stream", "a@trade/b@trade/")
    assert (combined.combined, list(combined.streams)) == (True, ["a@trade", "b@trade"])
    raw = from_url("/ws/a@trade/b@trade", "")
    assert (raw.combined, list(raw.streams)) == (False, ["a@trade", "b@trade"])
    assert from_url("/ws", "").streams == {}


def test_a_dialogue() -> None:
    subs = Subscriptions(False)
    ok = {"result": None, "id": 1}
    assert ask(subs, method="SUBSCRIBE", params=["a@trade", "b@trade"], id=1) == ok
    assert ask(subs, method="UNSUBSCRIBE", params=["a@trade", "unknown"], id=1) == ok
    listed = ask(subs, method="LIST_SUBSCRIPTIONS", id="x")
    assert listed == {"result": ["b@trade"], "id": "x"}
    assert ask(subs, method="SET_PROPERTY", params=["combined", True], id=1) == ok
    assert ask(subs, method="GET_PROPERTY", params=["combined"], id=2)["result"] is True
    assert subs.combined


@pytest.mark.parametrize(
    ("text", "code", "word"),
    [
        ("{", 3, "Invalid JSON"),
        ("[" * 100_000, 3, "Invalid JSON"),
        ("[]", 2, "missing field `method`"),
        ('{"id":1}', 2, "missing field `method`"),
        ('{"method":"NOPE","id":1}', 2, "unknown variant `NOPE`"),
        ('{"method":"SUBSCRIBE","params":"a","id":1}', 2, "params"),
        ('{"method":"SUBSCRIBE","params":[1],"id":1}', 2, "params"),
        ('{"method":"SUBSCRIBE","params":[],"id":true}', 2, "unsigned integer"),
        ('{"method":"SUBSCRIBE","params":[],"id":[1]}', 2, "unsigned integer"),
        ('{"method":"SET_PROPERTY","params":["nope",true],"id":1}', 0, "Unknown property"),
        ('{"method":"SET_PROPERTY","params":["combined",1],"id":1}', 1, "expected Boolean"),
        ('{"method":"GET_PROPERTY","params":[7],"id":1}', 2, "property name must be a string"),
    ],
)
def test_errors_are_binances(text: str, code: int, word: str) -> None:
    subs = Subscriptions(True)
    reply = json.loads(answer(text, subs))
    assert reply["code"] == code
    assert word in reply["msg"]
    assert subs.streams == {}


def test_no_more_streams_than_a_connection_may_have() -> None:
    subs = Subscriptions(True)
    names = [f"s{n}@trade" for n in range(MAX_STREAMS)]
    assert ask(subs, method="SUBSCRIBE", params=names, id=1)["result"] is None
    assert ask(subs, method="SUBSCRIBE", params=["one@more"], id=2)["code"] == 2
    assert ask(subs, method="SUBSCRIBE", params=names[:3], id=3)["result"] is None


def test_five_messages_a_second() -> None:
    limit = MessageLimit()
    assert [limit.exceeded(0.1 * n) for n in range(6)] == [False] * 5 + [True]
    calm = MessageLimit()
    assert not any(calm.exceeded(0.25 * n) for n in range(100))
