"""The shed ledger: what was put off per partition of a log, and how far it was brought."""

from __future__ import annotations

from typing import Any

SHED = "shed"


def shed_table(app: Any, partitions: int) -> Any:
    """In-memory table with a changelog; key and value are bytes (`k2.steps.shed`)."""
    return app.Table(
        SHED,
        key_type=bytes,
        value_type=bytes,
        partitions=partitions,
        help="What was put off under overload, per partition of a log of record",
    )
