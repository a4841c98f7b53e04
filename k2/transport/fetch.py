"""Taking what aiokafka's fetcher has received, record batches whole and undecoded.

Uses the fetcher's internals as of aiokafka 0.14: its own way out makes an object per record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult
from faust.types import TP

from k2.transport.unpack import RecordBatches, split

#: Milliseconds the broker waits for a first record: the longest a fetch can keep another
#: partition of the same broker from being asked for.
FETCH_MAX_WAIT_MS = 100
#: Bytes of one answer, all partitions together; with what is held it bounds a lagging
#: consumer's memory.
FETCH_MAX_BYTES = 16 * 1024 * 1024


def take(
    fetcher: Any,
    partitions: Collection[TP] | None,
    *,
    carries_batches: Callable[[TP], bool],
    batch_records: int,
) -> dict[TP, list[Any]]:
    """Take what is there: `RecordBatches` of batch topics, aiokafka's records of others.

    `partitions` None means all. Positions advance past what is returned. An error of a partition
    is raised once nothing else is to be returned.
    """
    taken: dict[TP, list[Any]] = {}
    for key in list(fetcher._records):
        tp = TP(*key)
        if partitions is not None and tp not in partitions:
            if not fetcher._subscriptions.is_assigned(key):
                del fetcher._records[key]
            continue
        result = fetcher._records[key]
        if isinstance(result, FetchResult):
            found = (
                _take_batches(tp, key, result, batch_records)
                if carries_batches(tp)
                else result.getall(None)
            )
            _release(fetcher, key)
            if found:
                taken[tp] = found
        elif not taken:
            _release(fetcher, key)
            result.check_raise()
    return taken


def _release(fetcher: Any, key: Any) -> None:
    """Let the fetcher ask for more of a partition."""
    del fetcher._records[key]
    fetcher._notify(fetcher._wait_consume_future)


def _take_batches(tp: TP, key: Any, result: Any, batch_records: int) -> list[RecordBatches]:
    if not result.check_assignment(key) or not result.has_more():
        return []
    fetched = result._partition_records
    state = result._assignment.state_value(key)
    committed = fetched._isolation_level == READ_COMMITTED
    pieces = split(
        tp,
        fetched._records,
        position=fetched.next_fetch_offset,
        highwater=state.highwater,
        max_records=batch_records,
        check_crcs=fetched._check_crcs,
        aborted=fetched._aborted_transactions if committed else None,
    )
    if pieces:
        state.consumed_to(pieces[-1].last_offset + 1)
    return pieces


async def wait_for_records(fetcher: Any, timeout_s: float) -> None:
    """Return when something arrived, `wake` was called or the time is over."""
    waiter = fetcher._create_fetch_waiter()
    await asyncio.wait([waiter], timeout=timeout_s)
    if waiter.done():
        waiter.result()  # raises what the coordinator passed on, e.g. lost authorization
    else:
        waiter.cancel()


def wake(fetcher: Any) -> None:
    """Make `wait_for_records` return; in the fetcher's own event loop."""
    for waiter in list(fetcher._fetch_waiters):
        fetcher._notify(waiter)
