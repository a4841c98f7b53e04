"""`LogReader` over Kafka: an aiokafka consumer without a group."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.structs import TopicPartition
from faust.types import TP

from k2.errors import LogError, RetentionGapError
from k2.settings import Kafka
from k2.transport.batch import LogBatch
from k2.transport.fetch import FETCH_MAX_BYTES, FETCH_MAX_WAIT_MS, take, wait_for_records
from k2.transport.positions import check_position
from k2.transport.security import aiokafka_options
from k2.transport.unpack import RecordBatches


class KafkaReader:
    """Reads every partition it is given; see `LogReader` for the contract."""

    def __init__(self, bootstrap_servers: str, kafka: Kafka, *, client_id: str) -> None:
        self._servers = bootstrap_servers
        self._kafka = kafka
        self._client_id = client_id
        self._consumer: Any = None
        self._pieces: defaultdict[TP, deque[RecordBatches]] = defaultdict(deque)
        self._positions: dict[TP, int] = {}

    async def start(self, positions: Mapping[TP, int]) -> None:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._servers,
            client_id=self._client_id,
            group_id=None,
            enable_auto_commit=False,
            # Never a jump: a position out of range is an error.
            auto_offset_reset="none",
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
            fetch_max_bytes=FETCH_MAX_BYTES,
            request_timeout_ms=int(self._kafka.request_timeout_s * 1000),
            **aiokafka_options(self._kafka),
        )
        # Also what did not start holds connections and tasks that only `stop` lets go.
        self._consumer = consumer
        try:
            await consumer.start()
            await self._assign(consumer, positions)
        except KafkaError as exc:
            await self.stop()
            raise LogError(
                f"Kafka at {self._servers} did not let {sorted(positions)} be read: {exc!r}",
                servers=self._servers,
            ) from exc
        except BaseException:
            await self.stop()
            raise

    async def _assign(self, consumer: Any, positions: Mapping[TP, int]) -> None:
        keys = {tp: TopicPartition(*tp) for tp in positions}
        earliest = await consumer.beginning_offsets(list(keys.values()))
        ends = await consumer.end_offsets(list(keys.values()))
        consumer.assign(list(keys.values()))
        for tp, position in positions.items():
            check_position(tp, position, earliest[keys[tp]], ends[keys[tp]])
            consumer.seek(keys[tp], position)
        self._positions = dict(positions)

    async def getmany(self, timeout_s: float) -> list[LogBatch]:
        fetcher = self._running._fetcher
        self._take(fetcher)
        if not any(self._pieces.values()):
            await wait_for_records(fetcher, timeout_s)
            self._take(fetcher)
        batches = [pieces.popleft().unpack() for pieces in self._pieces.values() if pieces]
        for batch in batches:
            self._positions[TP(batch.topic, batch.partition)] = batch.last_offset + 1
        return batches

    def _take(self, fetcher: Any) -> None:
        # Partitions with pieces left wait, so that memory stays within one answer.
        wanted = {tp for tp in self._positions if not self._pieces[tp]}
        try:
            taken = take(
                fetcher,
                wanted,
                carries_batches=lambda _tp: True,
                batch_records=self._kafka.batch_records,
            )
        except OffsetOutOfRangeError as exc:
            raise RetentionGapError(
                f"retention overtook the reader: the log no longer has {exc.args[0]}; read on "
                "from a newer lake snapshot, or keep records longer",
            ) from exc
        except KafkaError as exc:
            raise LogError(f"Kafka at {self._servers} could not be read: {exc!r}") from exc
        for tp, pieces in taken.items():
            self._pieces[tp].extend(pieces)

    def position(self, tp: TP) -> int:
        return self._positions[tp]

    def highwater(self, tp: TP) -> int | None:
        return self._running.highwater(TopicPartition(*tp))  # type: ignore[no-any-return]

    @property
    def _running(self) -> Any:
        if self._consumer is None:
            raise LogError("the reader is not started; call start(positions) first")
        return self._consumer

    async def stop(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()
