"""Cursors: where a page ended, and of which question. Opaque to clients, checked on return."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import orjson

from k2.errors import InvalidParameter
from k2.query.filters import Key

_ALLOWED = "the next_cursor of the page before, with the same other parameters"


def encode(question: Any, key: Key | None, **more: Any) -> str:
    """A cursor behind `key`. `question`: what must be the same on the next page."""
    body = orjson.dumps({"q": digest(question), "k": None if key is None else list(key), **more})
    return base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def decode(text: str, question: Any) -> tuple[Key | None, dict[str, Any]]:
    """Key and further facts. Raises `InvalidParameter` for what `encode` did not make."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        body = orjson.loads(raw)
        fields = body["k"]
        key = None if fields is None else _key(fields)
    except (ValueError, TypeError, KeyError) as exc:
        raise InvalidParameter("cursor", text[:200], _ALLOWED) from exc
    if body.get("q") != digest(question):
        raise InvalidParameter("cursor", text[:200], _ALLOWED)
    return key, body


def _key(fields: list[Any]) -> Key:
    key = Key(*fields)
    whole = (key.time_us, key.platform_sequence, key.log_partition)
    if not all(type(part) is int and abs(part) < 2**62 for part in whole):
        raise TypeError(fields)
    if not -(2**31) <= key.log_partition < 2**31 or abs(key.time_us) > 2 * 10**17:
        raise ValueError(fields)
    if not isinstance(key.log_topic, str) or not isinstance(key.log_epoch, str):
        raise TypeError(fields)
    return key


def digest(question: Any) -> str:
    """The same in every process: the next page may be asked of another worker."""
    text = orjson.dumps(question, default=_plain, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()[:12]


def _plain(value: Any) -> Any:
    # The order of a set of texts is another one in each process.
    return sorted(value, key=str) if isinstance(value, set | frozenset) else str(value)
