"""User SQL: exactly one SELECT over K2's views, checked on DuckDB's own syntax tree.

DuckDB parses, so what is checked is what runs: there is no second parser to disagree with. The
check is an allow-list of node types, tables and functions; the database below it is closed as well
(`k2/query/database.py`), so that a hole here opens nothing.

Exact candles: `vwap(price, quantity)` is sum(price * quantity) / sum(quantity) with 8 decimals,
rounded half up in integers (DuckDB divides decimals as floating point):

    SELECT date_trunc('minute', timestamp) AS minute,
           arg_min(price, (timestamp, platform_sequence)) AS open, max(price) AS high,
           min(price) AS low, arg_max(price, (timestamp, platform_sequence)) AS close,
           sum(quantity) AS volume, vwap(price, quantity) AS vwap, count(*) AS trade_count
    FROM trades WHERE symbol = 'BTCUSDT' GROUP BY minute ORDER BY minute

It overflows (an error, not a wrong figure) above a notional of 1.7e16 per group.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import duckdb
import orjson

from k2.errors import InvalidParameter
from k2.query.functions import ALLOWED_FUNCTIONS, ALLOWED_TABLE_FUNCTIONS
from k2.query.time_travel import Travel, extract

#: The names a query may read.
VIEWS: Final = (
    "trades",
    "quotes",
    "agg_trades",
    "reference_data",
    "gaps",
    "candles",
    "market_data",
)
#: Views may be written with the lake's namespace: `market_data.trades`.
NAMESPACE: Final = "market_data"
MAX_SQL_CHARS: Final = 20_000

_CLASSES = frozenset(
    {
        "BETWEEN",
        "CASE",
        "CAST",
        "COLLATE",
        "COLUMN_REF",
        "COMPARISON",
        "CONJUNCTION",
        "CONSTANT",
        "FUNCTION",
        "LAMBDA",
        "LAMBDA_REF",
        "OPERATOR",
        "POSITIONAL_REFERENCE",
        "STAR",
        "SUBQUERY",
        "WINDOW",
    }
)
_NODES = frozenset(
    {
        # queries
        "SELECT_NODE",
        "SET_OPERATION_NODE",
        "RECURSIVE_CTE_NODE",
        "CTE_NODE",
        # what stands in FROM
        "BASE_TABLE",
        "EMPTY",
        "EXPRESSION_LIST",
        "JOIN",
        "SHOW_REF",
        "SUBQUERY",
        "TABLE_FUNCTION",
        # modifiers
        "DISTINCT_MODIFIER",
        "LIMIT_MODIFIER",
        "LIMIT_PERCENT_MODIFIER",
        "ORDER_MODIFIER",
        "ASCENDING",
        "DESCENDING",
        "ORDER_DEFAULT",
        # types of casts and constants
        "ARRAY_TYPE_INFO",
        "DECIMAL_TYPE_INFO",
        "ENUM_TYPE_INFO",
        "GENERIC_TYPE_INFO",
        "INVALID_TYPE_INFO",
        "LIST_TYPE_INFO",
        "STRING_TYPE_INFO",
        "STRUCT_TYPE_INFO",
        "UNBOUND_TYPE_INFO",
    }
)


#: What tells the time in SQL, with and without parentheses; `age` of one time is that until today.
_CLOCK: Final = frozenset(
    {
        "age",
        "current_date",
        "current_localtime",
        "current_localtimestamp",
        "current_time",
        "current_timestamp",
        "get_current_time",
        "get_current_timestamp",
        "localtime",
        "localtimestamp",
        "now",
        "today",
        "transaction_timestamp",
    }
)


@dataclass(frozen=True, slots=True)
class CheckedSql:
    """A query that passed: its text, its syntax tree and the views it reads.

    `travels`: names in `views` that stand for a view as of a moment.
    """

    text: str
    tree: dict[str, Any]
    views: frozenset[str]
    travels: Mapping[str, Travel] = field(default_factory=dict)

    @property
    def tells_time(self) -> bool:
        """True when the answer may depend on when it was asked for."""
        return _tells_time(self.tree)

    def view_of(self, name: str) -> str:
        """The public view behind a name of `views`."""
        return self.travels[name].view if name in self.travels else name


def _tells_time(node: Any) -> bool:
    """True when a syntax tree has something of `_CLOCK`; a column of such a name counts too."""
    if isinstance(node, list):
        return any(map(_tells_time, node))
    if not isinstance(node, dict):
        return False
    names = [node.get("function_name"), *(node.get("column_names") or ())[-1:]]
    if any(str(name).lower() in _CLOCK for name in names):
        return True
    return any(map(_tells_time, node.values()))


def check_sql(connection: duckdb.DuckDBPyConnection, text: str) -> CheckedSql:
    """Parse and check `text`. Raises `InvalidParameter` naming what is refused and why."""
    if len(text) > MAX_SQL_CHARS or "\x00" in text:
        raise _refused(
            f"{len(text)} characters", f"at most {MAX_SQL_CHARS} characters, no NUL character"
        )
    text, travels = extract(text)
    for travel in travels.values():
        if travel.view not in VIEWS:
            raise _refused(f"table {travel.view}", f"the views {', '.join(VIEWS)}")
    tree = _parse(connection, text)
    walker = _Walker(travels)
    walker.visit(tree, frozenset())
    if walker.qualified:
        text = _deparse(connection, tree)
    statements = connection.extract_statements(text)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise _refused(text, "one SELECT statement")
    return CheckedSql(text, tree, frozenset(walker.views), travels)


def _parse(connection: duckdb.DuckDBPyConnection, text: str) -> dict[str, Any]:
    row = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [text]).fetchone()
    assert row is not None
    try:
        answer = orjson.loads(row[0])
    except orjson.JSONDecodeError as exc:
        # DuckDB reads 1e400 as infinity, which is no JSON.
        raise _refused(text, "numbers up to 1.7e308") from exc
    if answer["error"]:
        reason = str(answer.get("error_message", "not parseable")).split("\n", 1)[0]
        raise _refused(text, f"one SELECT statement ({reason})")
    statements = answer["statements"]
    if len(statements) != 1:
        raise _refused(text, f"one SELECT statement, not {len(statements)}")
    node: dict[str, Any] = statements[0]["node"]
    return node


def deparse_tree(node: dict[str, Any]) -> str:
    """The JSON document `json_deserialize_sql` takes, for one query node."""
    return orjson.dumps(
        {"error": False, "statements": [{"node": node, "named_param_map": []}]}
    ).decode()


def _deparse(connection: duckdb.DuckDBPyConnection, node: dict[str, Any]) -> str:
    row = connection.execute(
        "SELECT json_deserialize_sql(?::JSON)", [deparse_tree(node)]
    ).fetchone()
    assert row is not None
    return str(row[0])


class _Walker:
    """Visits every node; `scope` holds the CTE names that are visible there (lower case)."""

    def __init__(self, travels: Mapping[str, Travel]) -> None:
        self._travels = travels
        self.views: set[str] = set()
        self.qualified = False

    def visit(self, node: Any, scope: frozenset[str]) -> None:
        if isinstance(node, list):
            for item in node:
                self.visit(item, scope)
        elif isinstance(node, dict):
            self._check(node, scope)
            if "cte_map" in node:
                scope = self._ctes(node, scope)
            for key, value in node.items():
                if key == "function" and node.get("type") == "TABLE_FUNCTION":
                    self.visit(value["children"], scope)
                # A constant's value is data of the query's author, not a node.
                elif key != "cte_map" and not (key == "value" and node.get("class") == "CONSTANT"):
                    self.visit(value, scope)

    def _ctes(self, node: dict[str, Any], scope: frozenset[str]) -> frozenset[str]:
        """Each CTE sees those before it; itself only when it is recursive."""
        for entry in node["cte_map"]["map"]:
            name = str(entry["key"]).lower()
            body = entry["value"]
            recursive = body["query"]["node"]["type"] == "RECURSIVE_CTE_NODE"
            self.visit(body, scope | {name} if recursive else scope)
            scope |= {name}
        return scope

    def _check(self, node: dict[str, Any], scope: frozenset[str]) -> None:
        kind = node.get("type")
        if not isinstance(kind, str):
            return
        group = node.get("class")
        if (group is not None and group not in _CLASSES) or (group is None and kind not in _NODES):
            raise _refused(f"{group or kind}", "SELECT over K2's views with plain expressions")
        if kind == "BASE_TABLE":
            self._table(node, scope)
        elif kind == "SHOW_REF" and (node["query"] is None or node["show_type"] != "DESCRIBE"):
            raise _refused(
                f"{node['show_type']} {node['table_name']}".rstrip(),
                f"DESCRIBE with one of {', '.join(VIEWS)}",
            )
        elif kind == "TABLE_FUNCTION":
            name = str(node["function"].get("function_name", "")).lower()
            if name not in ALLOWED_TABLE_FUNCTIONS:
                raise _refused(f"table function {name}", ", ".join(sorted(ALLOWED_TABLE_FUNCTIONS)))
        elif group in ("FUNCTION", "WINDOW"):
            _check_function(node)

    def _table(self, node: dict[str, Any], scope: frozenset[str]) -> None:
        name = str(node["table_name"]).lower()
        schema = str(node["schema_name"]).lower()
        if node["catalog_name"] or node.get("at_clause"):
            raise _refused(f"table {name}", f"the views {', '.join(VIEWS)}")
        if not schema and name in scope:
            return
        if not schema and name in self._travels:
            # Columns may be written with the name the query's author gave.
            self.views.add(name)
            self.qualified = True
            node["alias"] = node["alias"] or self._travels[name].view
            return
        if name not in VIEWS or schema not in ("", NAMESPACE):
            written = f"{schema}.{name}" if schema else name
            raise _refused(f"table {written}", f"the views {', '.join(VIEWS)}")
        self.views.add(name)
        if schema:
            self.qualified = True
            if name in scope:
                raise _refused(f"table {schema}.{name}", "a CTE of another name")
            node["schema_name"] = ""
            node["alias"] = node["alias"] or node["table_name"]


def _check_function(node: dict[str, Any]) -> None:
    name = str(node["function_name"]).lower()
    # The parser itself writes "main" and "system" where syntax stands for a function ([1, 2]).
    foreign = node.get("schema") not in ("", "main") or node.get("catalog") not in ("", "system")
    if foreign or name not in ALLOWED_FUNCTIONS:
        near = difflib.get_close_matches(name, ALLOWED_FUNCTIONS, n=3)
        hint = f" (perhaps {', '.join(near)})" if near else ""
        raise _refused(f"function {name}", f"the functions listed in docs/sql-functions.md{hint}")


def _refused(value: str, allowed: str) -> InvalidParameter:
    return InvalidParameter("sql", value if len(value) <= 200 else value[:200] + "…", allowed)
