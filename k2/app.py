"""The Faust app: `faust -A k2.app worker`. The pipeline in reading order, nothing else."""

from __future__ import annotations

from agents import candles, degradation, maintenance, shed, sink, source, validate
from k2.faust_app import K2App
from k2.log import configure_structlog
from k2.startup import settings_or_exit
from k2.steps.tables import Tables
from k2.topics import DEGRADATION_CONTROL, MAINTENANCE, SESSIONS
from k2.transport.registry import batch_topic
from k2.worker import Worker
from tables.continuity import continuity_table
from tables.degradation import degradation_table
from tables.reference import reference_table
from tables.shed import shed_table

configure_structlog()

conf = settings_or_exit()
roles = conf.core.roles
app = K2App.of(conf)
# Faust assigns a changelog's partitions together with a topic's only where both have the same
# subscribers: a table is declared by the workers that read its topic, and by no others.
tables = Tables(
    continuity_table(app, conf.kafka.partitions) if "validate" in roles else None,
    shed_table(app, conf.kafka.partitions) if "sink" in roles else None,
    degradation_table(app),
    reference_table(app) if conf.core.reference else None,
)
app.worker = worker = Worker(app, conf, tables)


def _batches(*names: str) -> list[object]:
    return [batch_topic(app, name, partitions=conf.kafka.partitions) for name in names]


if "source" in roles:
    source.attach(app, app.topic(SESSIONS, partitions=conf.kafka.partitions, internal=True), worker)
if "validate" in roles:
    validate.attach(app, _batches(*(topic.log for topic in conf.topics)), worker)
if "sink" in roles:
    sink.attach(app, _batches(*worker.sink_topics), worker)
    candles.attach(app, _batches(*worker.candle_topics), worker)
    shed.attach(app, _batches(*(topic.validated for topic in conf.topics)), worker)
if "control" in roles:
    degradation.attach(app, app.topic(DEGRADATION_CONTROL, partitions=1, internal=True), worker)
if "maintain" in roles:
    maintenance.attach(app, app.topic(MAINTENANCE, partitions=1, internal=True))
