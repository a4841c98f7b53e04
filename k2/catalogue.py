"""The topics K2 needs, as specs for `LogAdmin.ensure_topics`."""

from __future__ import annotations

from k2.settings import Settings
from k2.topics import (
    DEGRADATION_CONTROL,
    DEGRADATION_EVENTS,
    FEED_TOPICS,
    MAINTENANCE,
    SESSIONS,
)
from k2.transport.admin import TopicSpec
from tables.continuity import CONTINUITY
from tables.degradation import DEGRADATION
from tables.reference import REFERENCE
from tables.shed import SHED

_DAY_S = 86_400.0
#: A sink or tail that is away longer than this starts again from a loud error, not from a hole.
_DERIVED_DAYS = 7
#: An older word about an instrument goes once a newer one is there and every sink had its time.
_WEEK_MS = str(int(_DERIVED_DAYS * _DAY_S * 1_000))
_REFERENCE = {
    "min.compaction.lag.ms": _WEEK_MS,
    "segment.ms": _WEEK_MS,
    "segment.bytes": str(32 * 1024 * 1024),
}


def topic_specs(settings: Settings) -> list[TopicSpec]:
    """Logs of record, what is derived from them (same partitions), and the control topics."""
    kafka = settings.kafka
    specs = []
    for topic in settings.topics:
        for name in topic.all_names:
            days = kafka.retention_days if name in (topic.log, topic.dlq) else _DERIVED_DAYS
            # Of an instrument only the newest word is wanted from the log; the lake has all.
            newest = topic.data_type == "reference_data" and name == topic.log
            specs.append(
                TopicSpec(name, kafka.partitions, compacted=True, config=_REFERENCE)
                if newest
                else TopicSpec(name, kafka.partitions, retention_s=days * _DAY_S)
            )
    specs += [
        TopicSpec(name, kafka.partitions, retention_s=kafka.retention_days * _DAY_S)
        for name in raw_topics(settings)
    ]
    specs.append(TopicSpec(SESSIONS, kafka.partitions, retention_s=_DAY_S))
    specs.append(TopicSpec(DEGRADATION_CONTROL, 1, retention_s=_DAY_S))
    specs.append(TopicSpec(MAINTENANCE, 1, retention_s=_DAY_S))
    specs.append(TopicSpec(DEGRADATION_EVENTS, 1, retention_s=kafka.retention_days * _DAY_S))
    return [*specs, *faust_specs(settings)]


def raw_topics(settings: Settings) -> list[str]:
    """Topics of raw frames, of the feeds that are to keep them."""
    feeds = [name for name in settings.core.exchanges if name in FEED_TOPICS]
    return [FEED_TOPICS[name][0].raw for name in feeds if getattr(settings, name).raw]


def faust_specs(settings: Settings) -> list[TopicSpec]:
    """Topics that Faust would make for itself while it subscribes.

    One that is not there yet at that moment is left out of the subscription with a single log line,
    and the table behind it is waited for for ever.
    """
    app, partitions = settings.core.app_id, settings.kafka.partitions
    reference = [TopicSpec(f"{app}-{REFERENCE}-changelog", 1, compacted=True)]
    return [
        *(reference if settings.core.reference else ()),
        TopicSpec(f"{app}-{CONTINUITY}-changelog", partitions, compacted=True),
        TopicSpec(f"{app}-{SHED}-changelog", partitions, compacted=True),
        TopicSpec(f"{app}-{DEGRADATION}-changelog", 1, compacted=True),
        TopicSpec(f"{app}-__assignor-__leader", 1, retention_s=_DAY_S),
    ]
