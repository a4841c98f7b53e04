"""BACKWARD compatibility: can data written with the old schema be read with the new one?

The rules are Avro 1.11's schema resolution, applied to types instead of values. Some things that
resolution lets pass are refused here: another logical type (milliseconds read as microseconds) and
another decimal scale, because values would silently change their meaning; bytes read as string,
because bytes need not be UTF-8. A new schema's own defaults must fit their fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from k2.codec.types import logical_of, name_of

#: Writer's type -> reader's types it is promoted to.
_PROMOTIONS: Final[Mapping[str, frozenset[str]]] = {
    "int": frozenset({"long", "float", "double"}),
    "long": frozenset({"float", "double"}),
    "float": frozenset({"double"}),
    "string": frozenset({"bytes"}),
}
_PRIMITIVES: Final = frozenset(
    {"null", "boolean", "int", "long", "float", "double", "bytes", "string"}
)
_NAMED: Final = frozenset({"record", "error", "enum", "fixed"})


def incompatibilities(reader_text: str, writer_text: str) -> list[str]:
    """Why `reader_text` cannot read data of `writer_text`; empty when it can.

    Each reason starts with the path of the field. Raises `ValueError` on text that is not JSON.
    """
    check = _Check(_Names(json.loads(reader_text)), _Names(json.loads(writer_text)))
    return check.run()


class _Names:
    """A schema and its named types by full and by short name."""

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self._types: dict[str, Any] = {}
        self._collect(schema, "")

    def _collect(self, avro: Any, space: str) -> None:
        if isinstance(avro, list):
            for branch in avro:
                self._collect(branch, space)
        if not isinstance(avro, dict):
            return
        if avro.get("type") in _NAMED and "name" in avro:
            full = full_name(avro, space)
            space = full.rpartition(".")[0]
            self._types[full] = avro
            self._types.setdefault(_short(full), avro)
        for key in ("type", "items", "values"):
            if isinstance(avro.get(key), (dict, list)):
                self._collect(avro[key], space)
        for field in avro.get("fields", ()):
            self._collect(field["type"], space)

    def resolve(self, avro: Any) -> Any:
        """The definition of a type given by name, and a wrapped type unwrapped."""
        while True:
            if isinstance(avro, dict) and isinstance(avro["type"], (dict, list)):
                avro = avro["type"]
            elif isinstance(avro, str) and avro not in _PRIMITIVES:
                found = self._types.get(avro, self._types.get(_short(avro)))
                if found is None:
                    raise ValueError(f"type {avro!r} is not defined in the schema")
                return found
            else:
                return avro


def full_name(avro: Mapping[str, Any], space: str = "") -> str:
    """Name with namespace of a named type."""
    name = str(avro["name"])
    space = str(avro.get("namespace", space))
    return name if "." in name or not space else f"{space}.{name}"


def _short(name: str) -> str:
    return name.rpartition(".")[2]


class _Check:
    def __init__(self, reader: _Names, writer: _Names) -> None:
        self._reader = reader
        self._writer = writer
        # Pairs under examination: a recursive type is compatible unless shown otherwise.
        self._open: set[tuple[int, int]] = set()

    def run(self) -> list[str]:
        return self._types(self._reader.schema, self._writer.schema, "")

    def _types(self, reader: Any, writer: Any, path: str) -> list[str]:
        reader, writer = self._reader.resolve(reader), self._writer.resolve(writer)
        if isinstance(writer, list):
            return [
                reason
                for index, branch in enumerate(writer)
                for reason in self._types(reader, branch, f"{path}[branch {index}]")
            ]
        if isinstance(reader, list):
            return self._into_union(reader, writer, path)
        if name_of(reader) != name_of(writer):
            return _promotion(reader, writer, path)
        if name_of(reader) not in ("record", "error"):
            return self._logical(reader, writer, path) + self._same_kind(reader, writer, path)
        pair = (id(reader), id(writer))
        if pair in self._open:
            return []
        self._open.add(pair)
        return self._names(reader, writer, path) + self._fields(reader, writer, path)

    def _into_union(self, reader: list[Any], writer: Any, path: str) -> list[str]:
        for branch in reader:
            trial = _Check(self._reader, self._writer)
            trial._open = set(self._open)
            if not trial._types(branch, writer, path):
                return []
        branches = ", ".join(name_of(self._reader.resolve(branch)) for branch in reader)
        return [f"{path or 'the schema'}: {name_of(writer)} is none of the union's {branches}"]

    def _same_kind(self, reader: Any, writer: Any, path: str) -> list[str]:
        name = name_of(reader)
        if name == "array":
            return self._types(reader["items"], writer["items"], f"{path}[]")
        if name == "map":
            return self._types(reader["values"], writer["values"], f"{path}{{}}")
        if name == "enum":
            return self._names(reader, writer, path) + _enum(reader, writer, path)
        if name == "fixed":
            reasons = self._names(reader, writer, path)
            if reader["size"] != writer["size"]:
                reasons.append(f"{path}: fixed of {writer['size']} bytes read as {reader['size']}")
            return reasons
        return []

    def _logical(self, reader: Any, writer: Any, path: str) -> list[str]:
        before, after = logical_of(writer), logical_of(reader)
        if before != after:
            became = f"logical type {before or 'none'} became {after or 'none'}"
            return [f"{path}: {became}; the same numbers would mean something else"]
        if after == "decimal" and reader.get("scale", 0) != writer.get("scale", 0):
            return [
                f"{path}: decimal scale {writer.get('scale', 0)} became {reader.get('scale', 0)}"
            ]
        return []

    def _names(self, reader: Any, writer: Any, path: str) -> list[str]:
        known = {_short(full_name(reader)), *map(_short, reader.get("aliases", ()))}
        if _short(full_name(writer)) in known:
            return []
        became = f"{name_of(writer)} {writer['name']!r} became {reader['name']!r}"
        return [f"{path or 'the schema'}: {became}; an alias would tell that they are the same"]

    def _fields(self, reader: Any, writer: Any, path: str) -> list[str]:
        written = {field["name"]: field for field in writer["fields"]}
        reasons = []
        for field in reader["fields"]:
            here = f"{path}.{field['name']}" if path else field["name"]
            names = [field["name"], *field.get("aliases", ())]
            source = next((written[name] for name in names if name in written), None)
            if source is not None:
                reasons += self._types(field["type"], source["type"], here)
            elif "default" not in field:
                reasons.append(f"{here}: a new field needs a default, old records lack it")
            if "default" in field and not self._fits(field["type"], field["default"]):
                reasons.append(f"{here}: the default {field['default']!r} is not of its type")
        return reasons

    def _fits(self, avro: Any, value: Any) -> bool:
        """True when a JSON default is of the type (of the first branch of a union)."""
        avro = self._reader.resolve(avro)
        if isinstance(avro, list):
            return bool(avro) and self._fits(avro[0], value)
        name = name_of(avro)
        if name == "array":
            return isinstance(value, list) and all(self._fits(avro["items"], v) for v in value)
        if name == "map":
            items = value.values() if isinstance(value, dict) else ()
            return isinstance(value, dict) and all(self._fits(avro["values"], v) for v in items)
        if name == "record":
            return isinstance(value, dict) and self._fits_record(avro, value)
        return _fits_named(avro, value) if name in _NAMED else _fits_primitive(name, value)

    def _fits_record(self, avro: Any, value: dict[str, Any]) -> bool:
        return all(
            self._fits(field["type"], value[field["name"]])
            if field["name"] in value
            else "default" in field
            for field in avro["fields"]
        )


def _promotion(reader: Any, writer: Any, path: str) -> list[str]:
    read, written = name_of(reader), name_of(writer)
    plain = logical_of(reader) is None and logical_of(writer) is None
    if plain and read in _PROMOTIONS.get(written, ()):
        return []
    return [f"{path or 'the schema'}: {written} cannot be read as {read}"]


def _fits_named(avro: Any, value: Any) -> bool:
    if name_of(avro) == "enum":
        return value in avro["symbols"]
    return isinstance(value, str) and len(value) == avro["size"]


def _fits_primitive(name: str, value: Any) -> bool:
    if name == "null":
        return value is None
    if name == "boolean":
        return isinstance(value, bool)
    if name in ("int", "long"):
        bits = 31 if name == "int" else 63
        return type(value) is int and -(2**bits) <= value < 2**bits
    if name in ("float", "double"):
        return type(value) in (int, float)
    return isinstance(value, str)


def _enum(reader: Any, writer: Any, path: str) -> list[str]:
    lost = [symbol for symbol in writer["symbols"] if symbol not in reader["symbols"]]
    if lost and "default" not in reader:
        return [f"{path}: enum lost the symbols {', '.join(lost)} and has no default"]
    return []
