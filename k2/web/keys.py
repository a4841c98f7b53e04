"""API keys: who may ask, what, and how often.

A key is 256 random bits, so a plain SHA-256 of it tells nothing to whoever reads where it is kept;
the slow hashes that protect guessable passwords are not needed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Self

import orjson

from k2.errors import ConfigError

SCOPES: Final = ("read", "sql", "admin")
_FIELDS: Final = ("name", "sha256", "scopes", "per_minute")
_PREFIX: Final = "k2_"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """`per_minute`: requests a minute; 0: as many as it likes."""

    name: str
    sha256: str
    scopes: frozenset[str] = frozenset(SCOPES)
    per_minute: int = 0

    def entry(self) -> dict[str, Any]:
        """As it stands in `K2_API_KEYS`."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "scopes": [scope for scope in SCOPES if scope in self.scopes],
            "per_minute": self.per_minute,
        }


def new_key(name: str, scopes: Iterable[str], per_minute: int) -> tuple[str, ApiKey]:
    """A fresh secret, to be shown once, and its entry."""
    secret = _PREFIX + secrets.token_urlsafe(32)
    return secret, ApiKey(name, digest(secret), frozenset(scopes), per_minute)


def digest(secret: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


class KeyRing:
    """All keys of a worker."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._keys = tuple(keys)

    @classmethod
    def single(cls, secret: str, *, per_minute: int = 0) -> Self:
        """One key named `default` that may do everything."""
        return cls((ApiKey("default", digest(secret), per_minute=per_minute),))

    def plus(self, keys: Iterable[ApiKey]) -> KeyRing:
        return KeyRing((*self._keys, *keys))

    def find(self, given: str) -> ApiKey | None:
        """The key behind `given`. Takes as long for every answer: all are compared, to the end."""
        wanted = digest(given).encode()
        found: ApiKey | None = None
        for key in self._keys:
            if hmac.compare_digest(wanted, key.sha256.encode()):
                found = key
        return found


def parse_keys(text: str, *, per_minute: int) -> list[ApiKey]:
    """The keys of `K2_API_KEYS`; `per_minute`: of those that name none. Raises `ConfigError`."""
    if not text.strip():
        return []
    try:
        entries = orjson.loads(text)
        if not isinstance(entries, list):
            raise _wrong("it is no list")
        keys = [_parsed(entry, per_minute) for entry in entries]
    except orjson.JSONDecodeError as exc:
        raise _wrong(f"it is no JSON ({exc})") from exc
    names = [key.name for key in keys]
    if len(set(names)) != len(names) or "default" in names:
        raise _wrong("names must differ, from `default` too")
    return keys


def _parsed(entry: Any, per_minute: int) -> ApiKey:
    if not isinstance(entry, dict) or set(entry) - set(_FIELDS):
        raise _wrong(f"an entry has other fields than {', '.join(_FIELDS)}")
    name, sha256 = entry.get("name"), entry.get("sha256")
    if not isinstance(name, str) or not name.isascii() or not name.isprintable() or not name:
        raise _wrong(f"the name {name!r} is not printable text")
    if not isinstance(sha256, str) or len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise _wrong(f"the sha256 of {name!r} is not 64 hexadecimal digits")
    scopes = entry.get("scopes", ["read"])
    if not isinstance(scopes, list) or not scopes or set(map(str, scopes)) - set(SCOPES):
        raise _wrong(f"the scopes of {name!r} are not among {', '.join(SCOPES)}")
    rate = entry.get("per_minute", per_minute)
    if type(rate) is not int or not 0 <= rate <= 10_000_000:
        raise _wrong(f"per_minute of {name!r} is not a whole number from 0 to 10,000,000")
    return ApiKey(name, sha256, frozenset(scopes), rate)


def _wrong(reason: str) -> ConfigError:
    return ConfigError(
        f"K2_API_KEYS is not usable: {reason}; make entries with `k2 key NAME`",
        variable="K2_API_KEYS",
    )
