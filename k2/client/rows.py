"""An answer: its rows, and which rows of the platform it could see."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from k2.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows in Arrow. `as_of`: per table the snapshot and vector they were read at.

    `partial`: rows that the log already has are missing for now. `next_cursor`: where the next
    page begins, None after the last.
    """

    table: pa.Table
    as_of: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False
    next_cursor: str | None = None

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def to_pylist(self) -> list[dict[str, Any]]:
        """Dicts; decimals are `Decimal`, times are aware `datetime`."""
        rows: list[dict[str, Any]] = self.table.to_pylist()
        return rows

    def to_pandas(self) -> Any:
        """A pandas DataFrame. Raises `ConfigError` where pandas is not installed."""
        _needed("pandas")
        return self.table.to_pandas()

    def to_polars(self) -> Any:
        """A polars DataFrame. Raises `ConfigError` where polars is not installed."""
        return _needed("polars").from_arrow(self.table)


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise ConfigError(
            f"{name} is not installed; `pip install {name}`, or use the Arrow table (`.table`)"
        ) from exc
