"""Topics of a Kafka cluster: made as specified, checked, identified."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
)
from faust.types import TP

from k2.errors import ConfigError, LogError
from k2.settings import Kafka
from k2.transport.admin import TopicSpec
from k2.transport.kafka_offsets import KafkaOffsets
from k2.transport.security import advice, librdkafka_options
from k2.transport.topic_state import COMPARED, TopicState, topic_config

log = structlog.get_logger(__name__)
_T = TypeVar("_T")

#: Answers that only mean a topic is new, or its leader is, and not every broker knows it; or that
#: librdkafka let go of the broker it had asked, as it does with a bootstrap address once it knows
#: the cluster's own.
_UNSETTLED = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError._DESTROY_BROKER,
)
#: Refused logins in a row that are not a broker just starting.
_REFUSALS = 3
#: Seconds between two looks for them.
_LISTEN_S = 0.2
#: Seconds between two tries.
_SETTLE_S = 0.05
#: Seconds an answer may come after librdkafka itself should have given up.
_GRACE_S = 5.0


class _UnsettledError(Exception):
    """An answer that will be another one in a moment."""


class KafkaAdmin:
    """`LogAdmin` over librdkafka, whose requests know topic ids.

    Its answers come from librdkafka's own thread; none of ours waits for them. A thread that waited
    would do so for ever once the client is gone, and the process could not end.
    """

    def __init__(self, bootstrap_servers: str, kafka: Kafka) -> None:
        self._servers = bootstrap_servers
        self._kafka = kafka
        self._client: Any = None
        self._opening = asyncio.Lock()
        self._waiting: set[asyncio.Future[None]] = set()
        self._refusals: list[str] = []
        self._seen: dict[str, int] = {}
        self._offsets = KafkaOffsets(bootstrap_servers, kafka)

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        await self._call(self._ensure_topics, specs)

    async def epochs(self, topics: Collection[str]) -> dict[str, str]:
        return await self._call(self._epochs, topics)

    async def bounds(self, tps: Collection[TP]) -> dict[TP, tuple[int, int]]:
        if not tps:
            return {}
        if any(tp.partition >= self._seen.get(tp.topic, 0) for tp in tps):
            await self._call(self._find, tps)
        return await self._offsets.bounds(tps)

    async def partitions(self, topics: Collection[str]) -> dict[str, int | None]:
        """Partitions of each topic; None where there is none."""
        return await self._call(self._partition_counts, topics)

    async def states(self, topics: Collection[str]) -> dict[str, TopicState | None]:
        """What each topic is like; None for one that is missing."""
        return await self._call(self._states, topics)

    async def configure(self, changes: Mapping[str, Mapping[str, str]]) -> None:
        """Set topics' settings, by topic and Kafka's names; others stay."""
        await self._call(self._configure, changes)

    async def close(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(self._unanswered("the client was closed"))
        await self._offsets.close()
        async with self._opening:  # a client that is just being made is ours to close as well
            client, self._client = [self._client], None
        # librdkafka closes with its last reference, which may take it a while.
        await asyncio.to_thread(client.clear)

    async def _call(self, work: Callable[[Any], Awaitable[_T]], argument: Any) -> _T:
        deadline = time.monotonic() + self._kafka.request_timeout_s
        while True:
            try:
                return await work(argument)
            except KafkaException as exc:
                if exc.args[0].code() not in _UNSETTLED or time.monotonic() > deadline:
                    raise self._refused(exc) from exc
            except _UnsettledError as exc:
                if time.monotonic() > deadline:
                    raise self._unanswered(str(exc)) from exc
            await asyncio.sleep(_SETTLE_S)

    async def _result(self, future: Future[_T]) -> _T:
        """What librdkafka answers. Raises `KafkaException`; `LogError` when nothing comes."""
        if not future.done():
            loop = asyncio.get_running_loop()
            arrived: asyncio.Future[None] = loop.create_future()
            future.add_done_callback(lambda _: _tell(loop, arrived))
            self._waiting.add(arrived)
            self._refusals.clear()
            limit_s = self._kafka.request_timeout_s + _GRACE_S
            try:
                async with asyncio.timeout(limit_s):
                    while not arrived.done():
                        self._listen()
                        await asyncio.wait([arrived], timeout=_LISTEN_S)
                    await arrived
            except TimeoutError as exc:
                raise self._unanswered(f"no answer within {limit_s:.0f} s") from exc
            finally:
                self._waiting.discard(arrived)
        return future.result()

    def _listen(self) -> None:
        """Hear of refused logins, which librdkafka repeats in silence until the request times out.

        Raises `LogError` when it is no passing thing, and when we were closed before we waited.
        """
        if self._client is None:
            raise self._unanswered("the client was closed")
        self._client.poll(0)
        if len(self._refusals) >= _REFUSALS:
            raise LogError(
                f"Kafka at {self._servers} refuses us: {self._refusals[-1]}; {advice(self._kafka)}",
                servers=self._servers,
            )

    def _note(self, error: Any) -> None:
        if error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            self._refusals.append(error.str())

    def _unanswered(self, why: str) -> LogError:
        return LogError(
            f"Kafka at {self._servers} did not answer: {why}; see K2_KAFKA_BOOTSTRAP_SERVERS",
            servers=self._servers,
        )

    def _refused(self, exc: KafkaException) -> LogError:
        return LogError(
            f"Kafka at {self._servers} refused: {exc}; see K2_KAFKA_BOOTSTRAP_SERVERS and "
            "K2_KAFKA_SECURITY_PROTOCOL",
            servers=self._servers,
        )

    async def _admin(self) -> Any:
        async with self._opening:
            if self._client is None:
                self._client = await asyncio.to_thread(self._open)
            return self._client

    def _open(self) -> Any:
        return AdminClient(
            {
                "bootstrap.servers": self._servers,
                "socket.timeout.ms": int(self._kafka.request_timeout_s * 1000),
                "error_cb": self._note,
                **librdkafka_options(self._kafka),
            },
            logger=_NoticeLogger(),
        )

    @property
    def _timeout(self) -> dict[str, float]:
        return {"request_timeout": self._kafka.request_timeout_s}

    async def _ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        found = await self._partition_counts([spec.name for spec in specs])
        missing = [spec for spec in specs if found[spec.name] is None]
        if missing:
            await self._create(missing)
            found.update(await self._await_topics([spec.name for spec in missing]))
        self._seen |= {name: count for name, count in found.items() if count is not None}
        for spec in specs:
            if found[spec.name] != spec.partitions:
                raise ConfigError(
                    f"topic {spec.name!r} has {found[spec.name]} partitions, not "
                    f"{spec.partitions}; partition counts never change, since keys would move. "
                    f"Set K2_KAFKA_PARTITIONS to {found[spec.name]}, or copy the topic into a new "
                    "one",
                    topic=spec.name,
                    partitions=found[spec.name],
                    wanted=spec.partitions,
                )

    async def _create(self, specs: Sequence[TopicSpec]) -> None:
        admin = await self._admin()
        made = admin.create_topics(
            [
                NewTopic(
                    spec.name,
                    num_partitions=spec.partitions,
                    replication_factor=self._kafka.replication,
                    config=topic_config(spec, self._kafka),
                )
                for spec in specs
            ],
            **self._timeout,
        )
        for name, future in made.items():
            try:
                await self._result(future)
            except KafkaException as exc:
                # Another worker starting at the same time may have been first.
                if exc.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
            else:
                log.info("topic created", topic=name)

    async def _await_topics(self, names: Sequence[str]) -> dict[str, int | None]:
        deadline = time.monotonic() + self._kafka.request_timeout_s
        while True:
            found = await self._partition_counts(names)
            if None not in found.values() or time.monotonic() > deadline:
                return found
            await asyncio.sleep(_SETTLE_S)

    async def _partition_counts(self, topics: Collection[str]) -> dict[str, int | None]:
        described = await self._describe(topics)
        return {
            name: None if found is None else len(found.partitions)
            for name, found in described.items()
        }

    async def _describe(self, topics: Collection[str]) -> dict[str, Any]:
        if not topics:
            return {}
        admin = await self._admin()
        asked = admin.describe_topics(TopicCollection(list(topics)), **self._timeout)
        found: dict[str, Any] = {}
        for name, future in asked.items():
            try:
                found[name] = await self._result(future)
            except KafkaException as exc:
                if exc.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
                found[name] = None
        return found

    async def _states(self, topics: Collection[str]) -> dict[str, TopicState | None]:
        counts = await self._partition_counts(topics)
        there = [name for name, count in counts.items() if count is not None]
        configs = await self._configs(there) if there else {}
        return {
            name: None if count is None else TopicState(count, configs[name])
            for name, count in counts.items()
        }

    async def _configs(self, topics: Collection[str]) -> dict[str, dict[str, str]]:
        admin = await self._admin()
        resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in topics]
        found: dict[str, dict[str, str]] = {}
        for resource, future in admin.describe_configs(resources, **self._timeout).items():
            entries = await self._result(future)
            found[resource.name] = {name: str(entries[name].value) for name in COMPARED}
        return found

    async def _configure(self, changes: Mapping[str, Mapping[str, str]]) -> None:
        if not changes:
            return
        admin = await self._admin()
        kind, put = ConfigResource.Type.TOPIC, AlterConfigOpType.SET
        resources = [
            ConfigResource(
                kind,
                topic,
                incremental_configs=[
                    ConfigEntry(name, value, incremental_operation=put)
                    for name, value in wanted.items()
                ],
            )
            for topic, wanted in changes.items()
        ]
        for future in admin.incremental_alter_configs(resources, **self._timeout).values():
            await self._result(future)

    async def _epochs(self, topics: Collection[str]) -> dict[str, str]:
        epochs: dict[str, str] = {}
        for name, found in (await self._describe(topics)).items():
            if found is None:
                raise self._not_there(name)
            topic_id = found.topic_id
            high = topic_id.get_most_significant_bits() & (2**64 - 1)
            low = topic_id.get_least_significant_bits() & (2**64 - 1)
            epochs[name] = str(uuid.UUID(int=high << 64 | low))
        return epochs

    def _not_there(self, topic: str) -> Exception:
        """A topic just seen is not missing: another broker has not heard of it yet."""
        if topic in self._seen:
            return _UnsettledError(f"topic {topic!r} is not known to every broker yet")
        return _missing(topic)

    async def _find(self, tps: Collection[TP]) -> None:
        """Raise `LogError` for the first partition there is not; a reader would wait for it."""
        for name, count in (await self._partition_counts({tp.topic for tp in tps})).items():
            if count is not None:
                self._seen[name] = count
        for tp in tps:
            if tp.partition >= self._seen.get(tp.topic, 0):
                raise _missing(f"{tp.topic}[{tp.partition}]")


def _tell(loop: asyncio.AbstractEventLoop, arrived: asyncio.Future[None]) -> None:
    """Wake who waits for an answer; called in librdkafka's thread."""
    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(_wake, arrived)


def _wake(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)


def _missing(name: str) -> LogError:
    return LogError(
        f"topic {name!r} does not exist; `k2 up` and the worker create K2's topics at start",
        topic=name,
    )


class _NoticeLogger:
    """librdkafka's own lines, in our log instead of on standard error."""

    def log(self, level: int, message: str, *args: Any) -> None:
        log.log(level, "librdkafka", line=message % args if args else message)
