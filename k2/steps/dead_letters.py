"""Dead letters of the source: frames that never became records.

They have no place in a log of record, so partition and offset are -1 and the epoch is empty; the
key is the reason's code and the value the frame as received.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pyarrow as pa

from k2 import metrics
from k2.records import WIRE_DEAD_LETTERS
from k2.sources.refused import Refused
from k2.steps.publish import BatchProducer, Encoder, in_batches
from k2.topics import MarketTopic

NO_PLACE = -1
#: Characters kept of a detail; the exchange's own words may be as long as a frame.
_DETAIL = 1_000


class DeadLetters:
    """Writes refused frames to the dead-letter topic of `topic`, partition 0.

    Record batches stay below twice `max_batch_bytes`, which a frame alone may reach: a batch the
    log cannot take would stop the worker, and refused frames must not.
    """

    def __init__(
        self,
        topic: MarketTopic,
        producer: BatchProducer,
        encoder: Encoder,
        max_batch_bytes: int,
    ) -> None:
        self._topic = topic
        self._producer = producer
        self._encoder = encoder
        self._max_bytes = max_batch_bytes

    def frames(self, refused: Sequence[Refused]) -> list[asyncio.Future[int]]:
        """Queue `refused`, in order; the futures are done once the log has them."""
        rows = [self._row(entry) for entry in refused]
        batch = pa.RecordBatch.from_pylist(rows, schema=WIRE_DEAD_LETTERS)
        values = self._encoder.encode(batch)
        topic = self._topic
        for entry in refused:
            labels = (topic.exchange.upper(), topic.asset_class, topic.data_type, entry.reason)
            metrics.DEAD_LETTERS.labels(*labels).inc()
        keys = [entry.reason.encode() for entry in refused]
        batches = in_batches(topic.dlq, 0, values, keys, (), self._max_bytes)
        return [self._producer.send_batch(batch) for batch in batches]

    def _row(self, entry: Refused) -> dict[str, object]:
        raw, detail = entry.raw[: self._max_bytes], entry.detail[:_DETAIL]
        if len(raw) < len(entry.raw):
            detail += f"; the first {len(raw)} of {len(entry.raw)} bytes"
        return {
            "reason": entry.reason,
            "detail": detail,
            "topic": self._topic.log,
            "partition": NO_PLACE,
            "offset": NO_PLACE,
            "log_epoch": "",
            "timestamp": entry.recv_us,
            "key": None,
            "value": raw,
            "letter": None,
        }
