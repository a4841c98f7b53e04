"""The Avro schemas K2 writes: files in `schemas/`, and the subject each topic's records are under.

Records of all exchanges of an asset class share one subject (SCH-02), so that one evolution serves
all; gap events and dead letters have one subject each for the whole platform.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import k2
from k2.errors import SchemaError
from k2.topics import parse

#: Record kind -> schema file without extension.
SCHEMA_FILES: Final = {
    "trades": "trade_v2",
    "quotes": "quote_v2",
    "agg_trades": "agg_trade_v2",
    "reference_data": "reference_data",
    "gaps": "gap",
    "dlq": "dead_letter",
}
GAPS_SUBJECT: Final = "market.gaps-value"
DEAD_LETTERS_SUBJECT: Final = "market.dead_letters-value"


def schema_dir() -> Path:
    """`schemas/` beside the package. Raises `SchemaError` when it is not there."""
    directory = Path(k2.__file__).resolve().parent.parent / "schemas"
    if not directory.is_dir():
        raise SchemaError(
            f"the schema directory {str(directory)!r} does not exist; K2 runs from its checkout: "
            "install it with `pip install -e .` in there",
            directory=str(directory),
        )
    return directory


def schema_text(kind: str) -> str:
    """The Avro schema of a record kind as compact JSON text. Raises `SchemaError`."""
    if kind not in SCHEMA_FILES:
        raise SchemaError(
            f"no schema for records of kind {kind!r}; there is one for {', '.join(SCHEMA_FILES)}",
            kind=kind,
        )
    path = schema_dir() / f"{SCHEMA_FILES[kind]}.avsc"
    try:
        return compact(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as exc:
        raise SchemaError(f"schema file {str(path)!r} is not readable: {exc}") from exc


def compact(schema: Any) -> str:
    """One text per schema: JSON without insignificant space, attributes in the order given."""
    return json.dumps(schema, separators=(",", ":"), ensure_ascii=False)


def kind_of(topic: str) -> str:
    """Record kind of a topic: `trades`, `quotes`, …, `gaps` or `dlq`."""
    market, suffix = parse(topic)
    return suffix if suffix in ("gaps", "dlq") else market.data_type


def subject_of(topic: str) -> str:
    """Registry subject of a topic's values."""
    market, suffix = parse(topic)
    if suffix == "gaps":
        return GAPS_SUBJECT
    if suffix == "dlq":
        return DEAD_LETTERS_SUBJECT
    return market.subject
