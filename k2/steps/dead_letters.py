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
from k2.steps.publish import BatchProducer, Encoder
from k2.topics import MarketTopic
from k2.transport.batch import OutBatch

NO_PLACE = -1


class DeadLetters:
    """Writes refused frames to the dead-letter topic of `topic`, partition 0."""

    def __init__(self, topic: MarketTopic, producer: BatchProducer, encoder: Encoder) -> None:
        self._topic = topic
        self._producer = producer
        self._encoder = encoder

    def frames(self, refused: Sequence[Refused]) -> asyncio.Future[int]:
        """Queue `refused` as one batch; the future is done once the log has them."""
        rows = [
            {
                "reason": entry.reason,
                "detail": entry.detail,
                "topic": self._topic.log,
                "partition": NO_PLACE,
                "offset": NO_PLACE,
                "log_epoch": "",
                "timestamp": entry.recv_us,
                "key": None,
                "value": entry.raw,
            }
            for entry in refused
        ]
        batch = pa.RecordBatch.from_pylist(rows, schema=WIRE_DEAD_LETTERS)
        values = self._encoder.encode(batch)
        topic = self._topic
        for entry in refused:
            labels = (topic.exchange.upper(), topic.asset_class, topic.data_type, entry.reason)
            metrics.DEAD_LETTERS.labels(*labels).inc()
        keys = [entry.reason.encode() for entry in refused]
        return self._producer.send_batch(OutBatch(topic.dlq, 0, list(values), list(keys)))
