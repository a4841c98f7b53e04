"""Which part of a view a query can see, read off its WHERE clause.

Only plain conditions are understood (`symbol = 'X'`, `symbol IN (…)`, comparisons of the time
column with constants, joined by AND); anything else sees everything. A view that is read more than
once gets the hull of its readings. Pruning only shortens the list of files: DuckDB still applies
the whole condition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import duckdb
import orjson

from k2.query.bounds import Bounds
from k2.times import DAY_US

#: The time column of each view, and how many µs one unit of it is (None: a timestamp).
_TIME: Final[dict[str, dict[str, int | None]]] = {
    "trades": {"timestamp": None},
    "quotes": {"timestamp": None},
    "agg_trades": {"timestamp": None},
    "reference_data": {"timestamp": None},
    "gaps": {"detected_at": None},
    "candles": {"window_start": None},
    "market_data": {"exchange_timestamp_ms": 1_000, "exchange_date": None},
}
_VIEWS: Final[Mapping[str, str]] = {view: view for view in _TIME}
_FLIPPED: Final = {
    "COMPARE_LESSTHAN": "COMPARE_GREATERTHAN",
    "COMPARE_LESSTHANOREQUALTO": "COMPARE_GREATERTHANOREQUALTO",
    "COMPARE_GREATERTHAN": "COMPARE_LESSTHAN",
    "COMPARE_GREATERTHANOREQUALTO": "COMPARE_LESSTHANOREQUALTO",
    "COMPARE_EQUAL": "COMPARE_EQUAL",
}

#: Turns a constant expression of the syntax tree into µs; None when it is no time.
Evaluate = Callable[[dict[str, Any]], int | None]


def bounds_by_view(
    tree: dict[str, Any], evaluate: Evaluate, views: Mapping[str, str] = _VIEWS
) -> dict[str, Bounds]:
    """The bounds of every name the (checked) query `tree` reads; `views`: the view of each name."""
    found: dict[str, Bounds] = {}
    for view, bounds in _readings(tree, evaluate, views):
        found[view] = _hull(found[view], bounds) if view in found else bounds
    return found


def _readings(
    node: Any, evaluate: Evaluate, views: Mapping[str, str]
) -> Iterator[tuple[str, Bounds]]:
    if isinstance(node, list):
        for item in node:
            yield from _readings(item, evaluate, views)
    elif isinstance(node, dict):
        table = node.get("from_table") or {}
        alone = table.get("type") == "BASE_TABLE"
        name = str(table.get("table_name", "")).lower()
        if alone and name in views:
            alias = (table["alias"] or table["table_name"]).lower()
            reading = _Reading(views[name], alias, evaluate)
            if not table["column_name_alias"] and not _renames(node, reading.view):
                reading.take(node.get("where_clause"))
            yield name, reading.bounds()
        elif node.get("type") == "BASE_TABLE" and node["table_name"].lower() in views:
            yield node["table_name"].lower(), Bounds()
        for key, value in node.items():
            if not (alone and key == "from_table"):
                yield from _readings(value, evaluate, views)


def _hull(left: Bounds, right: Bounds) -> Bounds:
    def both(a: Any, b: Any, join: Callable[[Any, Any], Any]) -> Any:
        return None if a is None or b is None else join(a, b)

    return Bounds(
        both(left.symbols, right.symbols, frozenset.union),
        both(left.start_us, right.start_us, min),
        both(left.end_us, right.end_us, max),
    )


@dataclass(slots=True)
class _Reading:
    """Collects what the conjuncts of one WHERE clause say about one view."""

    view: str
    alias: str
    evaluate: Evaluate
    symbols: frozenset[str] | None = None
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def bounds(self) -> Bounds:
        return Bounds(self.symbols, max(self.starts, default=None), min(self.ends, default=None))

    def take(self, test: dict[str, Any] | None) -> None:
        if test is None:
            return
        kind = test["type"]
        if kind == "CONJUNCTION_AND":
            for child in test["children"]:
                self.take(child)
        elif kind == "COMPARE_IN":
            column, *values = test["children"]
            self._symbols(column, values)
        elif kind == "COMPARE_BETWEEN":
            self._compare("COMPARE_GREATERTHANOREQUALTO", test["input"], test["lower"])
            self._compare("COMPARE_LESSTHANOREQUALTO", test["input"], test["upper"])
        elif kind in _FLIPPED:
            if kind == "COMPARE_EQUAL":
                self._symbols(test["left"], [test["right"]])
                self._symbols(test["right"], [test["left"]])
            self._compare(kind, test["left"], test["right"])
            self._compare(_FLIPPED[kind], test["right"], test["left"])

    def _column(self, node: dict[str, Any]) -> str | None:
        if node["class"] != "COLUMN_REF":
            return None
        *qualifier, name = (str(part).lower() for part in node["column_names"])
        # Another qualifier is a column of an outer query, which says nothing about this view.
        return name if not qualifier or qualifier == [self.alias] else None

    def _symbols(self, column: dict[str, Any], values: list[dict[str, Any]]) -> None:
        texts = [_text(value) for value in values]
        if self._column(column) == "symbol" and all(text is not None for text in texts):
            chosen = frozenset(text for text in texts if text is not None)
            self.symbols = chosen if self.symbols is None else self.symbols & chosen

    def _compare(self, kind: str, column: dict[str, Any], value: dict[str, Any]) -> None:
        name = self._column(column)
        if name is None or name not in _TIME[self.view]:
            return
        unit = _TIME[self.view][name]
        us = self.evaluate(value) if unit is None else _integer(value, unit)
        if us is None:
            return
        # One unit of slack on either side keeps days, milliseconds and rounding safe.
        slack = DAY_US if name == "exchange_date" else (unit or 1)
        if kind in ("COMPARE_GREATERTHAN", "COMPARE_GREATERTHANOREQUALTO", "COMPARE_EQUAL"):
            self.starts.append(us - slack)
        if kind in ("COMPARE_LESSTHAN", "COMPARE_LESSTHANOREQUALTO", "COMPARE_EQUAL"):
            self.ends.append(us + slack + 1)


def _renames(node: dict[str, Any], view: str) -> bool:
    """True when the select list gives one of the columns we look for another meaning."""
    names = {"symbol", *_TIME[view]}
    return any(str(item.get("alias", "")).lower() in names for item in node["select_list"])


def _text(node: dict[str, Any]) -> str | None:
    if node["class"] != "CONSTANT" or node["value"]["is_null"]:
        return None
    value = node["value"]["value"]
    return value if node["value"]["type"]["id"] == "VARCHAR" and isinstance(value, str) else None


def _integer(node: dict[str, Any], unit: int) -> int | None:
    if node["class"] != "CONSTANT" or node["value"]["is_null"]:
        return None
    value = node["value"]["value"]
    return value * unit if isinstance(value, int) and not isinstance(value, bool) else None


def evaluator(cursor: duckdb.DuckDBPyConnection) -> Evaluate:
    """Lets DuckDB itself turn constants (also cast ones, `TIMESTAMPTZ '…'`) into µs."""

    def evaluate(node: dict[str, Any]) -> int | None:
        inner = node
        while inner["class"] == "CAST":
            inner = inner["child"]
        if inner["class"] != "CONSTANT" or inner["value"]["is_null"]:
            return None
        try:
            tree = _constant_query(cursor, node)
            text = cursor.execute("SELECT json_deserialize_sql(?::JSON)", [tree]).fetchone()
            row = cursor.execute(text[0]).fetchone() if text else None
        except duckdb.Error:
            # Not a time, or a bad one: the query itself will say so.
            return None
        return int(row[0]) if row and row[0] is not None else None

    return evaluate


def _constant_query(cursor: duckdb.DuckDBPyConnection, node: dict[str, Any]) -> str:
    row = cursor.execute(
        "SELECT json_serialize_sql('SELECT epoch_us(CAST(0 AS TIMESTAMPTZ))')"
    ).fetchone()
    assert row is not None
    tree = orjson.loads(row[0])
    tree["statements"][0]["node"]["select_list"][0]["children"][0]["child"] = node
    return orjson.dumps(tree).decode()
