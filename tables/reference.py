"""What instruments are, as every worker knows it without asking the lake."""

from __future__ import annotations

from typing import Any

REFERENCE = "reference"


def reference_table(app: Any) -> Any:
    """Global table with one partition; a record's message id -> the record as its log has it.

    Its changelog is the compacted topic of every statement about an instrument. Why the buffer of
    one: see `tables.degradation`.
    """
    return app.GlobalTable(
        REFERENCE,
        key_type=bytes,
        value_type=bytes,
        partitions=1,
        recovery_buffer_size=1,
        help="Reference data that enriches answers",
    )
