"""What the behaviour suite needs from each driver, and how it runs apps on it."""

import asyncio
import contextlib
import uuid

import faust
from faust.types import TP

from k2.settings import Kafka
from k2.transport.admin import TopicSpec
from k2.transport.batch import OutBatch
from k2.transport.registry import batch_topic, registry

#: Seconds any expected thing may take; reached only by failures.
PATIENCE_S = 30.0


def numbered(start, count):
    """Values that tell their number."""
    return [b"%d" % n for n in range(start, start + count)]


class KafkaDriver:
    """A real broker; topics and groups are new for each test."""

    name = "kafka"
    #: Several workers may share a group.
    clustered = True

    def __init__(self, server, directory):
        self.server = server
        self.directory = directory
        self.settings = Kafka(
            bootstrap_servers=server.bootstrap, session_timeout_s=6.0, request_timeout_s=20.0
        )
        self._writer = None

    def app(self, app_id=None, **options):
        """A new app; apps with one id form a group."""
        options.setdefault("stream_buffer_maxsize", 64)
        app = faust.App(
            app_id or f"app-{uuid.uuid4().hex[:8]}",
            broker=f"k2kafka://{self.server.bootstrap}",
            datadir=str(self.directory / uuid.uuid4().hex),
            web_enabled=False,
            topic_disable_leader=True,
            topic_partitions=4,
            broker_commit_interval=0.2,
            **options,
        )
        registry(app).kafka = self.settings
        return app

    async def topic(self, partitions=1, **spec):
        """A new topic's name."""
        name = f"t-{uuid.uuid4().hex[:8]}"
        app = await self.writer()
        await app.transport.ensure_topics([TopicSpec(name, partitions, **spec)])
        return name

    async def small_topic(self, _patch):
        """A new topic that refuses a record batch above 1,000 bytes and takes smaller ones."""
        return await self.topic(config={"max.message.bytes": "1000"})

    async def writer(self):
        """An app that only produces."""
        if self._writer is None:
            self._writer = self.app("writer")
            await self._writer.maybe_start_producer()
        return self._writer

    async def append(self, topic, values, *, partition=0, keys=None, headers=()):
        """Append one record batch; its base offset."""
        app = await self.writer()
        registry(app).kafka = self.settings
        batch = OutBatch(topic, partition, values, keys or [None] * len(values), headers=headers)
        return await app.producer.send_batch(batch)

    async def delete_below(self, tp, offset):
        """What retention does: the earliest offset becomes `offset`."""
        from confluent_kafka import TopicPartition
        from confluent_kafka.admin import AdminClient

        admin = AdminClient({"bootstrap.servers": self.server.bootstrap})
        asked = admin.delete_records([TopicPartition(tp.topic, tp.partition, offset)])
        await asyncio.to_thread(lambda: [future.result() for future in asked.values()])

    async def close(self):
        if self._writer is not None:
            await self._writer.producer.stop()
            await self._writer.transport.close()
            self._writer = None


@contextlib.asynccontextmanager
async def running(app):
    """Run a worker's app in this event loop until the block ends."""
    app.finalize()
    task = asyncio.ensure_future(app.start())
    try:
        await task
        yield app
    finally:
        task.cancel()
        await app.stop()
        await app.transport.close()


class Collector:
    """An app that keeps the batches of one topic, acked as `hold` says."""

    def __init__(self, driver, topic, *, partitions=1, app_id=None, hold=False, app=None):
        self.app = app or driver.app(app_id)
        self.topic = topic
        self.events = []
        self.hold = hold
        channel = batch_topic(self.app, topic, partitions=partitions)

        @self.app.agent(channel, name=f"collect-{topic}")
        async def collect(stream):
            async for event in stream.noack().events():
                self.events.append(event)
                if not self.hold:
                    event.ack()

    @property
    def batches(self):
        return [event.value for event in self.events]

    @property
    def values(self):
        return [value for batch in self.batches for value in batch.values]

    def offsets(self, partition=0):
        return [
            offset
            for batch in self.batches
            if batch.partition == partition
            for offset in batch.offsets.tolist()
        ]

    async def committed(self, partition=0):
        """What the log holds for the group, after a commit now."""
        await self.app.consumer.commit()
        await self.app.consumer.commit()  # the first call may only have joined one under way
        tp = TP(self.topic, partition)
        return (await self.app.consumer._committed({tp}))[tp]

    async def until(self, condition):
        """Wait for `condition()`; it fails with what was collected."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not condition():
                    if self.app._crash_reason is not None:
                        raise self.app._crash_reason
                    await asyncio.sleep(0.01)
        except TimeoutError:
            message = f"not reached; {len(self.values)} records in {len(self.events)} events"
            raise AssertionError(message) from None
