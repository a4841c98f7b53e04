"""A log of record made anew from the lake, for when the log is lost and its readers are not.

Rows are written in the order of their exchange times, which is not always the log's; what
validation dropped, columns added to K2's, and which session a record came by are not in the lake's
answers and do not come back. The log is a new incarnation: its offsets mean other records, and
workers on the same lake know its ids and store none of them twice. Validated into an empty lake,
ids that rise and skip (quotes) and came late are taken for duplicates: sessions would tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pyarrow as pa
import pyarrow.compute as pc
from faust.types import TP

from k2.client.rows import Rows
from k2.errors import ConfigError, LakeError
from k2.open_log import OpenLog, opened
from k2.records import to_wire
from k2.settings import Settings
from k2.topics import MarketTopic


async def refill(
    settings: Settings,
    topic: MarketTopic,
    batches: AsyncIterator[Rows],
    progress: Callable[[int], None],
) -> int:
    """Write the rows of `batches` that are of `topic` into its log of record, as configured.

    Returns how many. Raises `ConfigError` when the log has records, `LogLockedError` while a worker
    has the embedded one, `LakeError` when the lake did not answer in full: the log is then to be
    deleted, since it cannot be told where it ends.
    """
    sent = 0
    async with opened(settings, topic) as log:
        await _check_empty(settings, topic, log)
        async for batch in batches:
            if batch.partial:
                raise LakeError(
                    f"the lake's answer was cut short after {sent:,} records of {topic.log}; "
                    "delete the topic and ask for less time at once, or raise K2_QUERY_TIMEOUT_S",
                    topic=topic.log,
                    records=sent,
                )
            rows = _of(topic, batch.table)
            if rows.num_rows:
                session = f"refill-{batch.as_of[topic.data_type]['snapshot_id']}"
                made = await asyncio.to_thread(to_wire, topic.data_type, rows)
                await asyncio.gather(*log.publisher.publish(made, session))
                sent += rows.num_rows
                progress(sent)
    return sent


async def _check_empty(settings: Settings, topic: MarketTopic, log: OpenLog) -> None:
    places = [TP(topic.log, partition) for partition in range(settings.kafka.partitions)]
    bounds = await log.transport.bounds(places)
    records = sum(end - first for first, end in bounds.values())
    if records:
        raise ConfigError(
            f"{topic.log} has {records:,} records; only an empty log is filled from the lake. "
            "Delete the topic first, or name another K2_DATA_DIR",
            topic=topic.log,
            records=records,
        )


def _of(topic: MarketTopic, rows: pa.Table) -> pa.Table:
    """An exchange may trade in several asset classes, and the lake holds them in one table."""
    mine = pc.and_(
        pc.equal(rows["asset_class"], topic.asset_class),
        pc.equal(rows["exchange"], topic.exchange.upper()),
    )
    return rows.filter(mine)
