"""The embedded log for the behaviour suite of the transport drivers."""

import asyncio
import uuid

import faust

from k2.errors import LogError
from k2.settings import Kafka
from k2.transport.local.partition import PartitionLog
from k2.transport.registry import registry
from tests.transport.drivers import KafkaDriver


class LocalDriver(KafkaDriver):
    """One directory for all tests' topics; every record batch is a file of its own."""

    name = "local"
    clustered = False

    def __init__(self, directory):
        self.directory = directory
        self.settings = Kafka(fsync_s=3_600.0)
        self._writer = None

    def app(self, app_id=None, **options):
        options.setdefault("stream_buffer_maxsize", 64)
        app = faust.App(
            app_id or f"app-{uuid.uuid4().hex[:8]}",
            broker=f"local://{self.directory / 'log'}",
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
        spec["config"] = {"segment.bytes": "1", **spec.get("config", {})}
        return await super().topic(partitions, **spec)

    async def small_topic(self, patch):
        """As a disk with little room left."""
        fill_disk(patch, above=1_000)
        return await self.topic()

    async def delete_below(self, tp, offset):
        app = await self.writer()
        log = app.transport.store(self).partition(tp.topic, tp.partition)
        await asyncio.to_thread(log.delete_below, offset)
        app.transport.release(self)


def fill_disk(patch, above=0):
    """From now on the embedded log takes no more than `above` bytes at once, until `patch` is
    undone."""
    append_to_disk = PartitionLog.append

    def append(log, batch):
        if len(batch) > above:
            raise LogError("the disk is full")
        return append_to_disk(log, batch)

    patch.setattr(PartitionLog, "append", append)
