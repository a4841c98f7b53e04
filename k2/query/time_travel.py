"""`FROM trades FOR SYSTEM_TIME AS OF '2026-01-01T00:00:00Z'` in user SQL.

DuckDB's grammar has no such clause, so it is cut out of the text and its table gets a name of its
own; what is left is checked like any other query. `FOR SYSTEM_VERSION AS OF 123` names a snapshot.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from k2.errors import InvalidParameter
from k2.query.lake_table import AsOf
from k2.times import TIME_ALLOWED, time_us

_TOKEN: Final = re.compile(
    r"""'(?:[^']|'')*'          # text
      | "(?:[^"]|"")*"          # quoted name
      | --[^\n]* | /\*.*?\*/    # comments
      | \$\$.*?\$\$             # dollar-quoted text
      | [A-Za-z_]\w* | [0-9]+ | \s+ | .""",
    re.VERBOSE | re.DOTALL,
)
_PREFIX: Final = "k2_as_of_"
_SPACE: Final = re.compile(r"\s+|--[^\n]*|/\*.*?\*/", re.DOTALL)
_CLAUSES: Final = ("SYSTEM_TIME", "SYSTEM_VERSION")


@dataclass(frozen=True, slots=True)
class Travel:
    """A table of a query as of a moment: `view` is what was written."""

    view: str
    when: AsOf


def extract(text: str) -> tuple[str, Mapping[str, Travel]]:
    """`text` without its clauses, and what the names put there stand for.

    Raises `InvalidParameter` for a clause that is not understood.
    """
    if "system_" not in text.lower():
        return text, {}
    if _PREFIX in text.lower():
        raise InvalidParameter("sql", _PREFIX, f"names that do not begin with {_PREFIX}")
    out: list[str] = []
    found: dict[str, Travel] = {}
    tokens = _TOKEN.findall(text)
    index = 0
    while index < len(tokens):
        words, after = _next(tokens, index, 4)
        if _is_clause(words):
            name = f"{_PREFIX}{len(found)}"
            when, index = _moment(tokens, after, words[1].upper())
            found[name] = Travel(_take_table(out), when)
            out.append(name)
        else:
            out.append(tokens[index])
            index += 1
    return "".join(out), found


def _next(tokens: list[str], index: int, count: int) -> tuple[list[str], int]:
    """The next `count` tokens that are not space, and where they end."""
    words: list[str] = []
    while index < len(tokens) and len(words) < count:
        if not _SPACE.fullmatch(tokens[index]):
            words.append(tokens[index])
        elif not words:
            return [], index
        index += 1
    return words, index


def _is_clause(words: list[str]) -> bool:
    upper = [word.upper() for word in words]
    return (
        len(upper) == 4 and upper[0] == "FOR" and upper[1] in _CLAUSES and upper[2:] == ["AS", "OF"]
    )


def _moment(tokens: list[str], index: int, clause: str) -> tuple[AsOf, int]:
    while index < len(tokens) and _SPACE.fullmatch(tokens[index]):
        index += 1
    words, after = _next(tokens, index, 1)
    if clause == "SYSTEM_TIME" and words and words[0].upper() in ("TIMESTAMP", "TIMESTAMPTZ"):
        return _moment(tokens, after, clause)
    literal = words[0].strip("'") if words else ""
    try:
        if clause == "SYSTEM_VERSION":
            return AsOf(snapshot_id=int(literal)), after
        return AsOf(time_ms=time_us(literal) // 1_000), after
    except ValueError as exc:
        allowed = "a snapshot id" if clause == "SYSTEM_VERSION" else TIME_ALLOWED
        raise InvalidParameter("sql", f"FOR {clause} AS OF {literal}", allowed) from exc


def _take_table(out: list[str]) -> str:
    """Take the table's name, maybe with a namespace, off the end of `out`."""
    while out and _SPACE.fullmatch(out[-1]):
        out.pop()
    name = out.pop().strip('"').lower() if out else ""
    if out and out[-1] == ".":
        out.pop()
        schema = out.pop().strip('"').lower() if out else ""
        if schema != "market_data":
            raise InvalidParameter("sql", f"table {schema}.{name}", "the namespace market_data")
    out.append("" if not out or _SPACE.fullmatch(out[-1]) else " ")
    return name
