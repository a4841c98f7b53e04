"""The transport `local://DIR`: Faust on the embedded log, for one worker on one machine.

`local:///var/lib/k2/log` is an absolute directory, `local://log` one below the working directory
(lower case: the name is where a URL has its host). Delivery is at least once, as with Kafka; after
a failed append nothing of it is in the log. Kafka is the way to more workers.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from faust.transport import base
from faust.types import TP
from mode.utils.times import want_seconds

from k2.transport.admin import TopicSpec
from k2.transport.local import shared
from k2.transport.local.consumer import Consumer
from k2.transport.local.producer import Producer
from k2.transport.local.reader import EmbeddedReader
from k2.transport.local.store import LogStore
from k2.transport.registry import registry


class Transport(base.Transport):
    """Faust transport and `LogAdmin` of the embedded log."""

    Consumer: ClassVar[type[Any]] = Consumer
    Producer: ClassVar[type[Any]] = Producer

    driver_version = "k2-embedded-log"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.directory = directory_of(self.url[0])
        self._users: WeakKeyDictionary[Any, tuple[LogStore, Any]] = WeakKeyDictionary()

    # --- the store and who uses it ------------------------------------------------------------

    def store(self, user: Any) -> LogStore:
        """The open log, held for `user` until `release`.

        Raises `LogLockedError` when another process has it, `LogCorruptError`.
        """
        held = self._users.get(user)
        if held is None:
            found = self._acquire()
            # A user that is dropped without `release` must not hold the log for ever.
            dropped = weakref.finalize(user, shared.release, found)
            dropped.atexit = False
            held = self._users[user] = (found, dropped)
        return held[0]

    def release(self, user: Any) -> None:
        """Let go; the last user closes the log. Doing it twice does nothing."""
        held = self._users.pop(user, None)
        if held is not None:
            held[1]()

    def _acquire(self) -> LogStore:
        return shared.acquire(self.directory, fsync_s=registry(self.app).kafka.fsync_s)

    # --- Faust's topics -----------------------------------------------------------------------

    async def create_topic(
        self,
        store: LogStore,
        topic: str,
        partitions: int,
        replication: int,
        *,
        config: Mapping[str, Any] | None = None,
        timeout: Any = None,  # noqa: ASYNC109 - Faust's signature
        retention: Any = None,
        compacting: bool | None = None,
        deleting: bool | None = None,
        ensure_created: bool = False,
    ) -> None:
        """Create a topic as Faust declares it. Raises `ConfigError` for another partition count."""
        policy = [name for name, on in (("compact", compacting), ("delete", deleting)) if on]
        settings = {name: str(value) for name, value in (config or {}).items()}
        if policy:
            settings.setdefault("cleanup.policy", ",".join(policy))
        if retention:
            settings.setdefault("retention.ms", str(int(want_seconds(retention) * 1000)))
        await asyncio.to_thread(store.create_topic, topic, partitions, settings)

    # --- LogAdmin -----------------------------------------------------------------------------

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        store = await asyncio.to_thread(self.store, self)
        for spec in specs:
            await asyncio.to_thread(store.create_topic, spec.name, spec.partitions, _config(spec))

    async def epochs(self, topics: Collection[str]) -> dict[str, str]:
        store = await asyncio.to_thread(self.store, self)
        return {name: store.topic(name).meta.epoch for name in topics}

    async def bounds(self, tps: Collection[TP]) -> dict[TP, tuple[int, int]]:
        store = await asyncio.to_thread(self.store, self)
        logs = {tp: store.partition(tp.topic, tp.partition) for tp in tps}
        return {tp: (log.start_offset, log.end_offset) for tp, log in logs.items()}

    async def close(self) -> None:
        await asyncio.to_thread(self.release, self)

    def create_reader(self) -> EmbeddedReader:
        """A `LogReader` of its own beside the app's consumer."""
        return EmbeddedReader(self._acquire, shared.release, registry(self.app).kafka.batch_records)


def directory_of(url: Any) -> Path:
    """The directory a `local://` URL names."""
    return Path(f"{url.host or ''}{url.path}" or ".")


def _config(spec: TopicSpec) -> dict[str, str]:
    config = dict(spec.config)
    if spec.compacted:
        config.setdefault("cleanup.policy", "compact")
    if spec.retention_s is not None:
        config.setdefault("retention.ms", str(int(spec.retention_s * 1000)))
    return config
