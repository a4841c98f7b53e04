"""Checkpoints of continuity: one value per partition of a log of record."""

from __future__ import annotations

from typing import Any

CONTINUITY = "continuity"


def continuity_table(app: Any, partitions: int) -> Any:
    """In-memory table with a changelog; key and value are bytes (`k2.pipeline.checkpoint`).

    Its name and types are part of the stored state: a changed one orphans every checkpoint.
    """
    return app.Table(
        CONTINUITY,
        key_type=bytes,
        value_type=bytes,
        partitions=partitions,
        help="Checkpoint of continuity per partition of a log of record",
    )
