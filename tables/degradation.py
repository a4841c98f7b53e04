"""The degradation level, shared by all workers."""

from __future__ import annotations

from typing import Any

DEGRADATION = "degradation"


def degradation_table(app: Any) -> Any:
    """Global table with one partition; what its keys hold say `k2.steps.control` and `.roster`.

    With Faust's default `recovery_buffer_size` a worker that joins later stops at the value of
    that moment, silently: only partitions with a buffer of one are resumed after recovery.
    """
    return app.GlobalTable(
        DEGRADATION,
        partitions=1,
        recovery_buffer_size=1,
        help="Degradation level that every agent reads",
    )
