"""Kafka driver for Faust with record batches: `k2kafka://host:port`.

Guarantee: a record is delivered at least once; committed is what was acked without a hole before
it; consumers of state start at their own position. On any doubt about a position the worker stops
with an error instead of reading on elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Mapping, Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import ConsumerStoppedError, KafkaError
from aiokafka.structs import TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode.threads import WorkerThread

from k2.errors import ConfigError
from k2.settings import Kafka
from k2.stopping import CLOSE_S
from k2.transport.admin import TopicSpec
from k2.transport.fetch import FETCH_MAX_BYTES, FETCH_MAX_WAIT_MS, take, wait_for_records, wake
from k2.transport.kafka_admin import KafkaAdmin
from k2.transport.kafka_reader import KafkaReader
from k2.transport.mixin import BatchConsumerMixin, Fetched
from k2.transport.producer import Producer
from k2.transport.reach import wait_reachable
from k2.transport.reader import LogReader
from k2.transport.registry import registry
from k2.transport.security import aiokafka_options


class _Thread(WorkerThread):
    """Ends with the process: a crash that leaves it running must not keep the process alive.

    Hanging there, a crashed worker would not be started again by whoever supervises it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.daemon = True


log = structlog.get_logger(__name__)


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """aiokafka's consumer in its own thread and event loop; all below runs there."""

    Worker = _Thread
    consumer: Consumer

    def _create_worker_consumer(self, transport: Any) -> Any:
        conf, kafka = self.app.conf, self.consumer.registry.kafka
        if kafka.session_timeout_s >= kafka.request_timeout_s:
            raise ConfigError(
                f"K2_KAFKA_SESSION_TIMEOUT_S={kafka.session_timeout_s} must be below "
                f"K2_KAFKA_REQUEST_TIMEOUT_S={kafka.request_timeout_s}"
            )
        # Faust's assignor places changelogs beside their topics; without tables it has no use.
        self._assignor = (
            self.app.assignor
            if conf.table_standby_replicas > 0 or self.app.tables.changelog_topics
            else RoundRobinPartitionAssignor
        )
        return AIOKafkaConsumer(
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            bootstrap_servers=transport.servers,
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_interval_ms=int((conf.broker_max_poll_interval or 0) * 1000),
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
            fetch_max_bytes=FETCH_MAX_BYTES,
            request_timeout_ms=int(kafka.request_timeout_s * 1000),
            check_crcs=conf.broker_check_crcs,
            session_timeout_ms=int(kafka.session_timeout_s * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(kafka.session_timeout_s * 1000 / 5),
            isolation_level=(
                "read_committed" if self.consumer.in_transaction else "read_uncommitted"
            ),
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
            connections_max_idle_ms=conf.consumer_connections_max_idle_ms,
            **aiokafka_options(kafka),
        )

    async def call_thread(self, fun: Any, *args: Any, **kwargs: Any) -> Any:
        """Run `fun` in the thread; raises `ConsumerStoppedError` when the thread ends first.

        A crash ends the thread, and mode would leave later callers waiting for ever: a worker
        that crashed could not stop.
        """
        if self._shutdown.is_set():
            raise ConsumerStoppedError
        try:
            promise = await self.method_queue.call(
                self.parent_loop.create_future(), fun, *args, **kwargs
            )
        except RuntimeError as exc:  # the thread's loop was closed just now
            raise ConsumerStoppedError from exc
        ended = asyncio.ensure_future(self._shutdown.wait())
        try:
            await asyncio.wait([promise, ended], return_when=asyncio.FIRST_COMPLETED)
            if not promise.done() or _was_cancelled(promise):
                raise ConsumerStoppedError
            return promise.result()
        finally:
            ended.cancel()
            promise.cancel()  # nobody will ask for it any more

    async def on_thread_stop(self) -> None:
        """Close the consumer. With the broker away aiokafka ends that with `CancelledError`; raised
        here, the thread would end without saying so and a stop would wait for it a minute.
        """
        await _in_time(super().on_thread_stop())

    async def _gather_remaining_tasks(self) -> None:
        """The last that runs in the thread. What a crash left at work, a commit say, connects once
        more after aiokafka has closed everything."""
        await super()._gather_remaining_tasks()
        if self._consumer is not None:
            await _in_time(self._consumer._client.close())

    def _stopped_set(self) -> None:
        if self.thread_loop.is_closed():
            self._stopped.set()  # after a crash there is no loop left to do it in
        else:
            super()._stopped_set()

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: set[TP] | None,
        timeout: float | None = None,  # noqa: ASYNC109 - Faust's signature
        max_records: int | None = None,
    ) -> Fetched:
        if not self.consumer.flow_active:
            return Fetched({}, {})
        fetcher = consumer._fetcher
        if consumer._closed or fetcher._closed:
            raise ConsumerStoppedError
        with fetcher._subscriptions.fetch_context():
            found = self._take(fetcher, active_partitions)
            if not found and timeout:
                await wait_for_records(fetcher, timeout)
                found = self._take(fetcher, active_partitions)
            return found

    def _take(self, fetcher: Any, partitions: set[TP] | None) -> Fetched:
        if fetcher._closed or fetcher._subscriptions.reassignment_in_progress:
            return Fetched({}, {})
        owner = self.consumer
        found = take(
            fetcher,
            partitions,
            carries_batches=owner.carries_batches,
            batch_records=owner.registry.kafka.batch_records,
        )
        return Fetched(found, owner.seek_counts)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        assigned = self.assignment()
        if not any(tp in assigned for tp in offsets):
            # All of them left in a rebalance. Faust drops those that did and ends the worker over
            # what remains, an empty commit; what is not committed is delivered again.
            return False
        return await super()._commit(offsets)  # type: ignore[no-any-return]

    async def committed(self, tps: Collection[TP]) -> dict[TP, int | None]:
        """Committed offsets; None where there is none."""
        return await self.call_thread(self._committed, tps)  # type: ignore[no-any-return]

    async def _committed(self, tps: Collection[TP]) -> dict[TP, int | None]:
        coordinator = self._ensure_consumer()._coordinator
        found = await coordinator.fetch_committed_offsets([TopicPartition(*tp) for tp in tps])
        offsets = {TP(*key): entry.offset for key, entry in found.items()}
        return {tp: at if (at := offsets.get(tp, -1)) >= 0 else None for tp in tps}

    async def seek_positions(self, positions: Mapping[TP, int]) -> None:
        """Move positions and make earlier fetches undeliverable, in one step of the thread."""
        await self.call_thread(self._seek_positions, positions)

    async def _seek_positions(self, positions: Mapping[TP, int]) -> None:
        consumer = self._ensure_consumer()
        for tp, offset in positions.items():
            consumer.seek(TopicPartition(*tp), offset)
        self.consumer.count_seeks(TP(*tp) for tp in positions)

    async def _seek_wait(self, consumer: Any, partitions: Mapping[TP, int]) -> None:
        await self._seek_positions(partitions)
        read_offset = self.consumer._read_offset
        for tp, offset in partitions.items():
            if offset > 0:
                read_offset[tp] = offset
            else:
                read_offset.pop(tp, None)

    def wake_fetch(self) -> None:
        """End a wait for records; callable from any thread."""
        if self._consumer is not None and not self._consumer._closed:
            self.thread_loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        fetcher = getattr(self._consumer, "_fetcher", None)
        if fetcher is not None:
            wake(fetcher)


async def _in_time(closing: Awaitable[None]) -> None:
    """Wait for what closes a consumer, but not for ever: the worker's loop stands still meanwhile.

    What aiokafka gives up it ends with `CancelledError`.
    """
    try:
        async with asyncio.timeout(CLOSE_S):
            await closing
    except (asyncio.CancelledError, TimeoutError, KafkaError) as exc:
        log.warning("consumer_not_closed", error=repr(exc))


def _was_cancelled(promise: asyncio.Future[Any]) -> bool:
    """True when the thread ended with the call under way.

    A crash cancels what its thread was asked for, and mode hands that on as the result: raised here
    it would look as if the caller had been cancelled, and cut its stop short.
    """
    return promise.cancelled() or isinstance(promise.exception(), asyncio.CancelledError)


class Consumer(BatchConsumerMixin, driver.Consumer):
    """Faust's Kafka consumer, with batches for the topics that opted in."""

    _thread: ConsumerThread

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _committed(self, tps: Collection[TP]) -> dict[TP, int | None]:
        return await self._thread.committed(tps)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        try:
            return await super()._commit(offsets)  # type: ignore[no-any-return]
        except ConsumerStoppedError:
            return False  # what is not committed is delivered again

    async def _seek_positions(self, positions: Mapping[TP, int]) -> None:
        await self._thread.seek_positions(positions)

    async def _seek(self, partition: TP, offset: int) -> None:
        await self._thread.seek_positions({partition: offset})

    def _wake_fetch(self) -> None:
        self._thread.wake_fetch()


class Transport(driver.Transport):
    """Faust transport and `LogAdmin` of a Kafka cluster."""

    Consumer = Consumer
    Producer = Producer

    driver_version = f"k2 {driver.Transport.driver_version}"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._admin = KafkaAdmin(self.servers, self.kafka)

    @property
    def kafka(self) -> Kafka:
        """Settings of every client this transport makes."""
        return registry(self.app).kafka

    @property
    def servers(self) -> str:
        """host:port of the brokers, comma separated."""
        return ",".join(driver.server_list(self.url, self.default_port))

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        """See `LogAdmin`. Waits for a Kafka that is not there yet, and says so meanwhile."""
        await wait_reachable(self.servers.split(","), self.kafka.start_timeout_s)
        await self._admin.ensure_topics(specs)

    async def epochs(self, topics: Collection[str]) -> dict[str, str]:
        """See `LogAdmin`; the epoch is Kafka's topic id."""
        return await self._admin.epochs(topics)

    async def bounds(self, tps: Collection[TP]) -> dict[TP, tuple[int, int]]:
        """See `LogAdmin`."""
        return await self._admin.bounds(tps)

    async def close(self) -> None:
        """See `LogAdmin`."""
        await self._admin.close()

    def create_reader(self) -> LogReader:
        """A reader without group."""
        return KafkaReader(
            self.servers, self.kafka, client_id=f"{self.app.conf.broker_client_id}-reader"
        )

    def _topic_config(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Of topics Faust makes itself: changelogs may hold entries as large as ours."""
        return {
            **super()._topic_config(*args, **kwargs),
            "max.message.bytes": str(self.kafka.max_message_bytes),
        }
