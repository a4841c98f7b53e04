"""`k2 schema`: Avro subject, Arrow columns and Iceberg table of a kind of record, kept together."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from pyiceberg.catalog import Catalog

from k2.codec.evolution import TYPES, Step, evolved
from k2.codec.registry import Registered, SchemaRegistry
from k2.codec.schemas import compact, schema_text
from k2.codecs import open_registry
from k2.errors import SchemaError, SchemaIncompatibleError, SchemaNotFoundError
from k2.lake import added
from k2.lake.agreement import disagreements
from k2.lake.catalog import open_catalog
from k2.lake.tables import TABLES, TableDef, ensure_table
from k2.log import configure_structlog
from k2.settings import Settings, load_settings

_KINDS = ("trades", "quotes")
_KIND = click.argument("kind", type=click.Choice(_KINDS))
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object.")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class _Place:
    """Where the schemas of a kind of record are."""

    settings: Settings
    registry: SchemaRegistry
    catalog: Catalog
    kind: str

    @property
    def table(self) -> TableDef:
        return TABLES[self.kind]

    @property
    def own(self) -> str:
        return schema_text(self.kind)

    @property
    def subjects(self) -> list[str]:
        """One per asset class."""
        topics = [topic for topic in self.settings.topics if topic.data_type == self.kind]
        return sorted({topic.subject for topic in topics})

    def latest(self) -> list[Registered]:
        """The newest of each subject; K2's own where none was registered yet."""
        return [self._latest(subject) for subject in self.subjects]

    def _latest(self, subject: str) -> Registered:
        try:
            return self.registry.latest(subject)
        except SchemaNotFoundError:
            return Registered(subject, 0, 0, self.own)


def _places(kinds: Sequence[str]) -> list[_Place]:
    configure_structlog()  # standard output is the answer's
    settings = load_settings()
    registry, catalog = open_registry(settings), open_catalog(settings)
    return [_Place(settings, registry, catalog, kind) for kind in kinds]


@click.group()
def schema() -> None:
    """Look at the schemas of records, and let them grow while workers run."""


@schema.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, exists=True))
@click.option("--kind", type=click.Choice(_KINDS), help="Of the records; needed with FILE.")
@_JSON
def check(file: Path | None, kind: str | None, as_json: bool) -> None:
    """Compare subject, Arrow and table; with FILE (.avsc), say whether it could follow.

    Status 1 when something does not fit together, or the schema is not BACKWARD compatible.
    """
    if file is not None and kind is None:
        raise click.UsageError("--kind says what FILE is a schema of")
    found: dict[str, Any] = {}
    for place in _places([kind] if kind else _KINDS):
        reasons = _candidate(place, file) if file else _present(place)
        found[place.kind] = {
            "versions": {one.subject: one.version for one in place.latest()},
            "problems": reasons,
        }
    _show(found, as_json)
    if any(one["problems"] for one in found.values()):
        raise SystemExit(1)


def _present(place: _Place) -> list[str]:
    metadata = ensure_table(place.catalog, place.table, place.settings.iceberg.compression).metadata
    latest = [(one.subject, one.schema) for one in place.latest()]
    return disagreements(place.kind, place.table, metadata, place.own, latest)


def _candidate(place: _Place, file: Path) -> list[str]:
    try:
        text = compact(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as exc:
        raise SchemaError(f"{file} is not JSON: {exc}") from exc
    return [
        f"{subject}: {reason}"
        for subject in place.subjects
        for reason in place.registry.check_compatible(subject, text)
    ]


@schema.command()
@_KIND
@click.option("--add", metavar="NAME:TYPE", help=f"A new column; TYPE: {', '.join(TYPES)}.")
@click.option("--doc", default="", help="What the new column means.")
@click.option("--widen", metavar="NAME:TYPE", help="A wider type: int to long.")
@click.option("--rename", metavar="OLD:NEW", help="Another name for an added column.")
@click.option("--drop", metavar="NAME", help="Fill it no more; what it holds stays.")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@_JSON
def evolve(
    kind: str,
    add: str | None,
    doc: str,
    widen: str | None,
    rename: str | None,
    drop: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take one step: in the table first, then in the subject of each asset class.

    Workers that run go on and read old and new records; those started later store the new column.
    K2's own columns are neither changed nor dropped. Repeating a step does no harm.
    """
    step = _step({"add": add, "widen": widen, "rename": rename, "drop": drop}, doc)
    (place,) = _places([kind])
    before = place.latest()
    texts = {one.subject: evolved(one.schema, place.own, step) for one in before}
    for subject, text in texts.items():
        if reasons := place.registry.check_compatible(subject, text):
            raise SchemaIncompatibleError(
                f"subject {subject!r} is BACKWARD and refuses the step: {'; '.join(reasons)}; "
                "nothing was changed",
                subject=subject,
                reasons=reasons,
            )
    facts: dict[str, Any] = {"subjects": sorted(texts), "table": str(place.table)}
    if not dry_run:
        ensure_table(place.catalog, place.table, place.settings.iceberg.compression)
        facts["table_changed"] = added.apply(place.catalog, place.table, step)
        for subject, text in texts.items():
            # K2's own first: it is what running workers write.
            place.registry.register(subject, place.own)
            place.registry.register(subject, text)
        facts["versions"] = {one.subject: one.version for one in place.latest()}
    _show({kind: facts}, as_json)


def _step(given: dict[str, str | None], doc: str) -> Step:
    chosen = [(action, text) for action, text in given.items() if text is not None]
    if len(chosen) != 1:
        raise click.UsageError("give one of --add, --widen, --rename and --drop")
    ((action, text),) = chosen
    name, _, rest = text.partition(":")
    if action != "drop" and not rest:
        raise click.UsageError(
            f"--{action} {text!r} must be {'OLD:NEW' if action == 'rename' else 'NAME:TYPE'}"
        )
    if action in ("add", "widen") and rest not in TYPES:
        raise click.UsageError(f"type {rest!r} is unknown; allowed: {', '.join(TYPES)}")
    for one in (name, rest if action == "rename" else name):
        if not _NAME.fullmatch(one):
            raise click.UsageError(f"{one!r} is not a column's name: a-z, 0-9 and _, at most 64")
    if action == "rename":
        return Step(action, name, to=rest)
    return Step(action, name, kind=rest, doc=doc)


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found))
        return
    for kind, facts in found.items():
        click.echo(kind)
        for key, value in facts.items():
            if isinstance(value, list):
                click.echo(f"  {key}: {'none' if not value else ''}")
                for one in value:
                    click.echo(f"    {one}")
            else:
                click.echo(f"  {key.replace('_', ' ')}: {value}")
