"""What a setting's text may be, and how a wrong one is told.

The types check form only (an address has a scheme and a host); whether somebody answers there is
found out by who connects.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator
from pydantic.fields import FieldInfo

_PASSWORD: Final = re.compile(r"(://[^/@\s:]*:)[^@\s]*@")
_BOUNDS: Final = {Gt: ("gt", "above"), Ge: ("ge", "from"), Lt: ("lt", "below"), Le: ("le", "to")}


def without_password(text: str) -> str:
    """`text` with the password of every address in it masked."""
    return _PASSWORD.sub(r"\1********@", text)


def address(*schemes: str, example: str, several: bool = False) -> AfterValidator:
    """Checks `scheme://host[:port]…`; an empty text passes, for the default it stands for."""
    allowed = f"{' or '.join(f'{scheme}://' for scheme in schemes)} and a host, e.g. {example}"

    def check(text: str) -> str:
        for part in text.split(",") if several else [text]:
            if text and not _is_address(part.strip(), schemes):
                raise ValueError(allowed)
        return text

    return AfterValidator(check)


def _is_address(text: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:  # a port that is no number, a bracket that does not close
        return False
    return parts.scheme in schemes and bool(host) and not re.search(r"\s", text)


def matching(pattern: str, allowed: str) -> AfterValidator:
    """Checks the whole text against `pattern`."""
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(allowed)
        return text

    return AfterValidator(check)


def each(check: Callable[[str], str]) -> AfterValidator:
    """Applies `check` to every entry of a list."""
    return AfterValidator(lambda entries: tuple(map(check, entries)))


def _not_empty(entries: tuple[str, ...]) -> tuple[str, ...]:
    if not entries:
        raise ValueError("at least one entry; several are comma separated")
    return entries


def _directory(path: Path) -> Path:
    if path == Path():
        raise ValueError("the path of a directory; it is made when it is not there")
    if path.exists() and not path.is_dir():
        raise ValueError("a directory, and this is a file")
    return path


def _file(text: str) -> str:
    if text and not Path(text).is_file():
        raise ValueError("the path of a file that is there, or nothing")
    return text


NOT_EMPTY: Final = AfterValidator(_not_empty)
Directory = Annotated[Path, AfterValidator(_directory)]
OptionalFile = Annotated[str, AfterValidator(_file)]
Host = Annotated[
    str, matching(r"[^\s/]+", "a name or address of this machine, e.g. 127.0.0.1 or 0.0.0.0")
]
AppId = Annotated[
    str, matching(r"[A-Za-z0-9._-]{1,100}", "letters, digits, '.', '_' and '-' (it names topics)")
]
Servers = Annotated[
    str,
    matching(
        r"|[^\s,/:]+(:\d{1,5})?(\s*,\s*[^\s,/:]+(:\d{1,5})?)*",
        "host:port, comma separated, without a scheme; or nothing for the embedded log",
    ),
]
HttpUrl = Annotated[str, address("http", "https", example="http://127.0.0.1:9000")]
HttpUrls = Annotated[str, address("http", "https", example="http://127.0.0.1:8081", several=True)]
CatalogUri = Annotated[
    str,
    matching(
        r"|(https?|postgresql(\+psycopg2)?)://\S+|sqlite:///\S+",
        "http(s)://host:port (REST), postgresql+psycopg2://user:password@host/database, or nothing",
    ),
]


def websocket(text: str) -> str:
    """`text`. Raises `ValueError` unless it is a WebSocket address."""
    if not _is_address(text, ("ws", "wss")):
        raise ValueError("ws:// or wss:// and a host, e.g. wss://stream.binance.com:9443")
    return text


WebSocketUrl = Annotated[str, AfterValidator(websocket)]


def allowed(field: FieldInfo) -> str:
    """What pydantic's own checks let through, in words; empty for types with words of their own."""
    kind: Any = field.annotation
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if kind is bool:
        return "true or false"
    if kind not in (int, float):
        return ""
    noun = "a whole number" if kind is int else "a number"
    bounds = [
        f"{word} {getattr(bound, name):g}"
        for bound in field.metadata
        for limit, (name, word) in _BOUNDS.items()
        if isinstance(bound, limit)
    ]
    return " ".join([noun, *bounds])
