"""Count and time queries by kind and outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from k2 import metrics
from k2.errors import InvalidParameter, Overloaded, QueryError, QueryTimeout, SnapshotNotFoundError
from k2.tracing import TRACING


@contextmanager
def measured(query_type: str) -> Iterator[None]:
    """Around one query; waiting for a slot is part of its time. Errors pass through."""
    began_s = time.perf_counter()
    status = "error"
    try:
        with TRACING.span("k2.query", query_type=query_type):
            yield
        status = "ok"
    except QueryTimeout:
        status = "timeout"
        raise
    except (InvalidParameter, QueryError, SnapshotNotFoundError):
        status = "refused"  # the caller's to mend, so no reason for an alert
        raise
    except Overloaded:
        status = "overloaded"
        raise
    except asyncio.CancelledError:
        status = "cancelled"
        raise
    finally:
        metrics.QUERIES.labels(query_type, status).inc()
        metrics.QUERY_SECONDS.labels(query_type).observe(time.perf_counter() - began_s)
