"""Which topics of an app carry record batches, where they start, and who flushes first.

One `TransportRegistry` per Faust app, found with `registry(app)`. Fill it before the worker
starts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from faust.serializers.schemas import Schema
from faust.types import TP

from k2.settings import Kafka, settings
from k2.stopping import HANDOVER_S
from k2.transport.positions import StartPositions

#: Called with the partitions about to leave.
BeforeRevoke = Callable[[frozenset[TP]], Awaitable[None]]


@dataclass(slots=True)
class TransportRegistry:
    """What the drivers need to know about an app.

    - `batch_topics`: topics whose messages are `LogBatch`es; all others stay per message.
    - `positions`: start positions of consumers of state.
    - `before_revoke`: run in order when partitions leave (rebalance or shutdown): the flow is
      stopped and queues are cleared, but Faust has not yet waited for the streams, so what a hook
      flushes and acks is still committed by this worker. A hook that raises crashes the worker,
      and bounds itself.
    - `handover_s`: seconds the streams of leaving partitions are waited for after the hooks; what
      is not acknowledged then is delivered again to the next owner.
    - `kafka`: settings of the drivers.
    """

    batch_topics: set[str] = field(default_factory=set)
    positions: StartPositions = field(default_factory=StartPositions)
    before_revoke: list[BeforeRevoke] = field(default_factory=list)
    handover_s: Callable[[], float] = lambda: HANDOVER_S
    kafka: Kafka = field(default_factory=lambda: settings().kafka)


_registries: WeakKeyDictionary[Any, TransportRegistry] = WeakKeyDictionary()


def registry(app: Any) -> TransportRegistry:
    """The registry of a Faust app, made at first use."""
    found = _registries.get(app)
    if found is None:
        found = _registries[app] = TransportRegistry()
    return found


class BatchSchema(Schema):
    """Hands the `LogBatch` of a message to the agent as it is: no codec, no copy."""

    def loads_key(self, app: Any, message: Any, **_options: Any) -> Any:
        return message.key

    def loads_value(self, app: Any, message: Any, **_options: Any) -> Any:
        return message.value


def batch_topic(app: Any, name: str, *, partitions: int, **options: Any) -> Any:
    """A Faust topic whose events carry a `LogBatch`, opted in.

    Create it with `LogAdmin.ensure_topics` before the worker starts. It is declared `internal`
    because Faust silently drops other topics that are missing from the subscription. `options` go
    to `app.topic`.
    """
    registry(app).batch_topics.add(name)
    return app.topic(name, partitions=partitions, internal=True, schema=BatchSchema(), **options)
