"""Records of an older schema as records of the newer one, column by column.

What evolution is made of (fields added with a default, dropped, widened, made nullable) needs no
look at single values. Anything beyond is left to fastavro, which resolves value by value.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from k2.codec.types import arrow_type, logical_of, name_of, null_branch

_DECORATION = ("doc", "aliases", "default", "namespace", "order")
_WIDER = {
    "int": ("long", "float", "double"),
    "long": ("float", "double"),
    "float": ("double",),
}
Step = Callable[[pa.RecordBatch], pa.Array]


def column_plan(writer_text: str, reader_text: str) -> list[Step] | None:
    """One step per reader field, or None when single values have to be looked at."""
    writer, reader = json.loads(writer_text), json.loads(reader_text)
    position = {field["name"]: index for index, field in enumerate(writer["fields"])}
    steps = []
    for field in reader["fields"]:
        names = [field["name"], *field.get("aliases", ())]
        index = next((position[name] for name in names if name in position), None)
        step = (
            _default(field)
            if index is None
            else _copy(index, writer["fields"][index]["type"], field["type"])
        )
        if step is None:
            return None
        steps.append(step)
    return steps


def project(batch: pa.RecordBatch, steps: list[Step], schema: pa.Schema) -> pa.RecordBatch:
    """The batch in the reader's schema."""
    return pa.RecordBatch.from_arrays([step(batch) for step in steps], schema=schema)


def _default(field: dict[str, Any]) -> Step | None:
    if "default" not in field or name_of(field["type"]) in ("record", "map", "bytes", "fixed"):
        return None
    one = pa.array([field["default"]], arrow_type(field["type"]))
    return lambda batch: one.take(pa.array(np.zeros(batch.num_rows, np.int64)))


def _copy(index: int, writer: Any, reader: Any) -> Step | None:
    nullable = null_branch(reader)
    if nullable is not None and null_branch(writer) is None:
        reader = nullable[1]
    if _same(writer, reader):
        return lambda batch: batch.column(index)
    plain = logical_of(writer) is None and logical_of(reader) is None
    if plain and name_of(reader) in _WIDER.get(name_of(writer), ()):
        target = arrow_type(reader)
        # Avro promotes a long to the nearest double; Arrow refuses that unless told.
        return lambda batch: batch.column(index).cast(target, safe=False)
    return None


def _same(writer: Any, reader: Any) -> bool:
    if name_of(writer) == name_of(reader) == "enum":
        return set(writer["symbols"]) <= set(reader["symbols"])
    return bool(_bare(writer) == _bare(reader))


def _bare(avro: Any) -> Any:
    """The type without what does not change how it is written."""
    if isinstance(avro, list):
        return [_bare(branch) for branch in avro]
    if isinstance(avro, dict):
        bare = {key: _bare(value) for key, value in avro.items() if key not in _DECORATION}
        return bare["type"] if set(bare) == {"type"} else bare
    return avro
