"""Raw frames: what came out of the socket, byte for byte, into a topic of its own.

Off unless `K2_{EXCHANGE}_RAW` says so. Key: the session; timestamp: when the frame was received.
Guarantee: as for records, a batch the log refuses stops the worker; frames of a session keep their
order. Frames refused for their size are not among them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from k2.sources.contract import Received
from k2.steps.publish import BatchProducer, Partitioner, in_batches
from k2.topics import MarketTopic


class RawFrames:
    """Writes the frames of an exchange's sessions to `topic.raw`."""

    def __init__(
        self,
        topic: MarketTopic,
        producer: BatchProducer,
        partitioner: Partitioner,
        max_batch_bytes: int,
    ) -> None:
        self._topic = topic.raw
        self._producer = producer
        self._partitioner = partitioner
        self._max_bytes = max_batch_bytes

    def send(self, session: str, frames: Sequence[Received]) -> list[asyncio.Future[int]]:
        """Queue `frames` of `session`; the futures are done once the log has them."""
        values = [data for _, data in frames]
        keys = [session.encode()] * len(frames)
        recv_ms = np.fromiter((recv_us // 1_000 for recv_us, _ in frames), np.int64, len(frames))
        partition, futures, start = self._partitioner.of(session), [], 0
        for batch in in_batches(self._topic, partition, values, keys, (), self._max_bytes):
            stop = start + len(batch.values)
            timed = replace(batch, timestamps_ms=recv_ms[start:stop])
            futures.append(self._producer.send_batch(timed))
            start = stop
        return futures
