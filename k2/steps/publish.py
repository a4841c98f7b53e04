"""Publish: mapped records to a log of record, one atomic batch per partition, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from aiokafka.partitioner import murmur2

from k2 import metrics
from k2.clock import Clock
from k2.topics import MarketTopic
from k2.tracing import header
from k2.transport.batch import OutBatch

SESSION_HEADER = "k2-session"
#: What a batch that is not acknowledged ends with.
_ERRORS: Final = ("LogError", "cancelled")


class BatchProducer(Protocol):
    """The producer of either transport driver.

    Guarantee: per partition in the order of calls; after one that was refused, none is taken.
    """

    def send_batch(self, batch: OutBatch) -> asyncio.Future[int]:
        """Queue a batch; the future gives its base offset once it is acknowledged."""


class Encoder(Protocol):
    """What publishing needs of a codec."""

    def encode(self, batch: pa.RecordBatch) -> list[bytes]:
        """One wire value per row."""


def partition_of(key: bytes, partitions: int) -> int:
    """Kafka's default partitioner, the same in every client of K2's topics."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


class Partitioner:
    """Symbol to partition, remembered: the set of symbols is small and the hash is Python."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._known: dict[str, int] = {}

    def of(self, symbol: str) -> int:
        partition = self._known.get(symbol)
        if partition is None:
            partition = partition_of(symbol.encode(), self._partitions)
            self._known[symbol] = partition
        return partition

    def rows(self, symbols: pa.StringArray) -> list[tuple[int, npt.NDArray[np.int64]]]:
        """(partition, row indexes in order) of every partition that has rows."""
        encoded = symbols.dictionary_encode()
        of_symbol = np.array([self.of(s) for s in encoded.dictionary.to_pylist()], np.int64)
        of_row = of_symbol[encoded.indices.to_numpy()]
        order = np.argsort(of_row, kind="stable")
        cuts = np.flatnonzero(np.diff(of_row[order])) + 1
        return [(int(of_row[part[0]]), part) for part in np.split(order, cuts) if len(part)]


def in_batches(
    topic: str,
    partition: int,
    values: Sequence[bytes],
    keys: Sequence[bytes],
    headers: tuple[tuple[str, bytes], ...],
    max_bytes: int,
) -> list[OutBatch]:
    """`values` as record batches below `max_bytes` each; every batch carries the headers."""
    batches: list[OutBatch] = []
    start = size = 0
    for index, value in enumerate(values):
        cost = len(value) + len(keys[index]) + 64
        if size + cost > max_bytes and index > start:
            batches.append(
                _batch(topic, partition, values[start:index], keys[start:index], headers)
            )
            start, size = index, 0
        size += cost
    batches.append(_batch(topic, partition, values[start:], keys[start:], headers))
    return batches


def _batch(
    topic: str,
    partition: int,
    values: Sequence[bytes],
    keys: Sequence[bytes],
    headers: tuple[tuple[str, bytes], ...],
) -> OutBatch:
    return OutBatch(topic, partition, list(values), list(keys), None, headers)


class Publisher:
    """Publishes records of one log of record.

    Order per symbol is kept: a symbol has one partition, and batches of one partition are handed to
    the producer in the order of the calls, which must not overlap. The log has acknowledged a
    record when its future is done; a failed future means the record may be missing from the log.
    """

    def __init__(
        self,
        topic: MarketTopic,
        producer: BatchProducer,
        encoder: Encoder,
        partitioner: Partitioner,
        clock: Clock,
        max_batch_bytes: int,
    ) -> None:
        self._topic = topic
        self._producer = producer
        self._encoder = encoder
        self._partitioner = partitioner
        self._clock = clock
        self._max_bytes = max_batch_bytes
        for error in _ERRORS:
            # The first refusal ends the worker, and the growth of a series that begins with it
            # is unknown to Prometheus.
            metrics.PRODUCE_ERRORS.labels(topic.log, error)

    def publish(
        self, batch: pa.RecordBatch, session: str, context: bytes = b""
    ) -> list[asyncio.Future[int]]:
        """Hand `batch` (wire schema) to the log; `session` names the exchange session.

        `context`: of the trace this belongs to (`k2.tracing`).
        """
        values = self._encoder.encode(batch)
        symbols = batch.column("symbol")
        keys = [symbol.encode() for symbol in symbols.to_pylist()]
        headers = ((SESSION_HEADER, session.encode()), *header(context))
        futures = []
        for partition, rows in self._partitioner.rows(symbols):
            indexes = rows.tolist()
            for out in in_batches(
                self._topic.log,
                partition,
                [values[i] for i in indexes],
                [keys[i] for i in indexes],
                headers,
                self._max_bytes,
            ):
                future = self._producer.send_batch(out)
                future.add_done_callback(self._observer(len(out.values)))
                futures.append(future)
        return futures

    def _observer(self, records: int) -> _Observer:
        return _Observer(self._topic, records, self._clock)


class _Observer:
    """Counts a batch once the log has answered."""

    def __init__(self, topic: MarketTopic, records: int, clock: Clock) -> None:
        self._topic = topic
        self._records = records
        self._clock = clock
        self._began_s = clock.monotonic_s()

    def __call__(self, future: asyncio.Future[int]) -> None:
        topic = self._topic
        if future.cancelled() or future.exception() is not None:
            error = "cancelled" if future.cancelled() else type(future.exception()).__name__
            metrics.PRODUCE_ERRORS.labels(topic.log, error).inc()
            return
        labels = (topic.exchange.upper(), topic.asset_class, topic.data_type, topic.log)
        metrics.PRODUCED.labels(*labels).inc(self._records)
        metrics.PRODUCE_SECONDS.labels(topic.log).observe(self._clock.monotonic_s() - self._began_s)
