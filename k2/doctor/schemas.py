"""The schema registry: can what this version writes follow what is registered?"""

from __future__ import annotations

from k2.codec.schemas import kind_of, schema_text, subject_of
from k2.codecs import open_registry
from k2.doctor.finding import Finding
from k2.errors import SchemaNotFoundError
from k2.settings import Settings

_CHECK = "schemas"


def look_at_schemas(settings: Settings) -> list[Finding]:
    """One finding per subject that is not well, else one for all. Raises `SchemaError`."""
    registry = open_registry(settings)
    subjects = {
        subject_of(name): schema_text(kind_of(name))
        for topic in settings.topics
        for name in topic.all_names
    }
    findings: list[Finding] = []
    new = 0
    for subject, text in sorted(subjects.items()):
        try:
            registry.latest(subject)
        except SchemaNotFoundError:
            new += 1
            continue
        for reason in registry.check_compatible(subject, text):
            remedy = "run a version of K2 that fits, or give the new field a default"
            findings.append(Finding(_CHECK, "failed", f"{subject}: {reason}", remedy))
    if findings:
        return findings
    where = settings.kafka.schema_registry_url or "the data directory"
    more = f", {new} still to be registered by the first worker" if new else ""
    return [Finding(_CHECK, "ok", f"{len(subjects)} subjects in {where}{more}")]
