"""Faust's own figures with readable names, shown at /faust/."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from faust.sensors.monitor import Monitor

_LEFT_OUT = ("messages_active", "events_active", "events_by_task", "events_by_stream")


class K2Monitor(Monitor):
    """Counts events per topic instead of per task and stream, whose names are Python reprs.

    What counts messages and events in work is left out: it falls only where Faust itself ends an
    event, which agents that acknowledge later (validate, sink) do not do, so it would grow for
    ever.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._events_by_topic: Counter[str] = Counter()

    def on_stream_event_in(self, tp: Any, offset: int, stream: Any, event: Any) -> dict[str, Any]:
        self.events_total += 1
        self._events_by_topic[tp.topic] += 1
        self.stream_inbound_time[tp] = self.time()
        return {"time_in": self.time(), "time_out": None, "time_total": None}

    def asdict(self) -> Mapping[str, Any]:
        shown = dict(super().asdict())
        for name in _LEFT_OUT:
            del shown[name]
        return {**shown, "events_by_topic": dict(self._events_by_topic)}
