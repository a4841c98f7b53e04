"""The topics K2 needs, as specs for `LogAdmin.ensure_topics`."""

from __future__ import annotations

from k2.settings import Settings
from k2.topics import DEGRADATION_CONTROL, DEGRADATION_EVENTS, MAINTENANCE, SESSIONS
from k2.transport.admin import TopicSpec
from tables.continuity import CONTINUITY
from tables.degradation import DEGRADATION
from tables.shed import SHED

_DAY_S = 86_400.0
#: A sink or tail that is away longer than this starts again from a loud error, not from a hole.
_DERIVED_DAYS = 7


def topic_specs(settings: Settings) -> list[TopicSpec]:
    """Logs of record, what is derived from them (same partitions), and the control topics."""
    kafka = settings.kafka
    specs = []
    for topic in settings.topics:
        for name in topic.all_names:
            days = kafka.retention_days if name in (topic.log, topic.dlq) else _DERIVED_DAYS
            specs.append(TopicSpec(name, kafka.partitions, retention_s=days * _DAY_S))
    specs.append(TopicSpec(SESSIONS, kafka.partitions, retention_s=_DAY_S))
    specs.append(TopicSpec(DEGRADATION_CONTROL, 1, retention_s=_DAY_S))
    specs.append(TopicSpec(MAINTENANCE, 1, retention_s=_DAY_S))
    specs.append(TopicSpec(DEGRADATION_EVENTS, 1, retention_s=kafka.retention_days * _DAY_S))
    return [*specs, *faust_specs(settings)]


def faust_specs(settings: Settings) -> list[TopicSpec]:
    """Topics that Faust would make for itself while it subscribes.

    One that is not there yet at that moment is left out of the subscription with a single log line,
    and the table behind it is waited for for ever.
    """
    app, partitions = settings.core.app_id, settings.kafka.partitions
    return [
        TopicSpec(f"{app}-{CONTINUITY}-changelog", partitions, compacted=True),
        TopicSpec(f"{app}-{SHED}-changelog", partitions, compacted=True),
        TopicSpec(f"{app}-{DEGRADATION}-changelog", 1, compacted=True),
        TopicSpec(f"{app}-__assignor-__leader", 1, retention_s=_DAY_S),
    ]
