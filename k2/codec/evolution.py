"""Schemas that grow: fields added to K2's own, renamed, widened and let go; pure, over Avro JSON.

K2's own fields are the contract of every worker and query and stay as they are. An added field is
nullable with the default null, so readers of either schema read records of the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from k2.codec.schemas import compact
from k2.errors import SchemaError

#: Type of an added column -> its Avro type. Decimals are text on the wire.
TYPES: Final[dict[str, Any]] = {
    "string": "string",
    "long": "long",
    "int": "int",
    "boolean": "boolean",
    "decimal": "string",
    "timestamptz": {"type": "long", "logicalType": "timestamp-micros"},
}
WIDER: Final = {"int": "long"}


@dataclass(frozen=True, slots=True)
class Step:
    """One change. `action`: add, widen, rename or drop. `kind`: of `TYPES`. `to`: the new name."""

    action: str
    name: str
    kind: str = ""
    to: str = ""
    doc: str = ""


def added_fields(text: str, own: str) -> list[dict[str, Any]] | None:
    """Fields of `text` beyond those of `own`; None when it does not have all of `own` as they are.

    Documentation may differ.
    """
    theirs = {field["name"]: field for field in json.loads(text)["fields"]}
    for field in json.loads(own)["fields"]:
        found = theirs.pop(field["name"], None)
        if found is None or _bare(found["type"]) != _bare(field["type"]):
            return None
    return list(theirs.values())


def evolved(text: str, own: str, step: Step) -> str:
    """The schema after a step; the same text when the step was taken before.

    Raises `SchemaError` naming what stands against it.
    """
    document = json.loads(text)
    fields = {field["name"]: field for field in document["fields"]}
    mine = {field["name"] for field in json.loads(own)["fields"]}
    for name in filter(None, (step.name, step.to)):
        if name in mine:
            raise SchemaError(
                f"field {name!r} is K2's own: every worker and query relies on it, so it is "
                "neither changed nor taken; add a field of another name",
                field=name,
            )
    _STEPS[step.action](fields, step)
    document["fields"] = list(fields.values())
    return compact(document)


def _add(fields: dict[str, Any], step: Step) -> None:
    made = {"name": step.name, "type": ["null", TYPES[step.kind]], "default": None}
    if step.doc:
        made["doc"] = step.doc
    found = fields.setdefault(step.name, made)
    if _bare(found["type"]) != _bare(made["type"]):
        raise SchemaError(
            f"field {step.name!r} is there already as {found['type']}; choose another name",
            field=step.name,
        )


def _widen(fields: dict[str, Any], step: Step) -> None:
    field = _known(fields, step.name)
    now, wide = field["type"][1], TYPES[step.kind]
    if now not in (wide, *(narrow for narrow, to in WIDER.items() if to == wide)):
        allowed = ", ".join(f"{narrow} to {to}" for narrow, to in WIDER.items())
        raise SchemaError(
            f"field {step.name!r} cannot be widened from {now} to {step.kind}; allowed: {allowed}",
            field=step.name,
        )
    field["type"] = ["null", wide]


def _rename(fields: dict[str, Any], step: Step) -> None:
    if step.to in fields and step.name in fields[step.to].get("aliases", ()):
        return
    field = _known(fields, step.name)
    if step.to in fields:
        raise SchemaError(f"field {step.to!r} is there already; choose another name", field=step.to)
    field["aliases"] = [*field.get("aliases", ()), step.name]
    field["name"] = step.to


def _drop(fields: dict[str, Any], step: Step) -> None:
    fields.pop(step.name, None)


_STEPS: Final[dict[str, Callable[[dict[str, Any], Step], None]]] = {
    "add": _add,
    "widen": _widen,
    "rename": _rename,
    "drop": _drop,
}


def _known(fields: dict[str, Any], name: str) -> dict[str, Any]:
    if name not in fields:
        raise SchemaError(f"there is no field {name!r}; there are: {', '.join(fields)}", field=name)
    found: dict[str, Any] = fields[name]
    return found


def _bare(avro: Any) -> Any:
    """A type without its documentation."""
    if isinstance(avro, dict):
        return {key: _bare(value) for key, value in avro.items() if key != "doc"}
    return [_bare(one) for one in avro] if isinstance(avro, list) else avro
