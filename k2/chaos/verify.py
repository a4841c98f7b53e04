"""What became of every record: the log of record against the lake, row by row."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from faust.types import TP
from pyiceberg.table import Table

from k2.chaos.progress import Progress
from k2.codecs import Codecs
from k2.dlq.letters import REDRIVEN
from k2.dlq.log import Log, read_all
from k2.lake.vector import SUMMARY_KEY, Vector
from k2.pipeline.cover import CoverReader
from k2.pipeline.open_gaps import open_ranges
from k2.records import ID_COLUMN
from k2.topics import MARKET_TOPICS, MarketTopic

_SHOWN: Final = 5
Place = tuple[int, int]
Identity = tuple[str, int]


@dataclass
class Findings:
    """Counts over all records; `problems` is empty when every promise held."""

    acknowledged: int = 0
    landed: int = 0
    dead_letters: int = 0
    duplicates_dropped: int = 0
    lost: int = 0
    duplicated: int = 0
    missing_ids: int = 0
    gap_ids: int = 0
    problems: list[str] = field(default_factory=list)
    errors_logged: dict[str, int] = field(default_factory=dict)

    def complain(self, what: str, of: Iterable[object]) -> None:
        """Note a broken promise with some examples."""
        shown = list(of)
        if shown:
            self.problems.append(f"{what}: {len(shown)}, as {shown[:_SHOWN]}")


async def verify(log: Log, codecs: Codecs, progress: Progress, partitions: int) -> Findings:
    """Compare everything in the log with everything in the lake. Nothing may write meanwhile."""
    findings = Findings()
    gaps = progress.table("gaps").scan().to_arrow().to_pylist()
    for topic in MARKET_TOPICS:
        if topic.data_type not in ID_COLUMN:
            continue
        tps = [TP(topic.log, number) for number in range(partitions)]
        logged = await _logged(log, codecs, topic, tps)
        refused = await _refused(log, codecs, topic, partitions)
        landed = _landed(progress.table(topic.data_type), topic)
        _compare(findings, topic, logged, refused, landed)
        await _in_order(findings, log, topic, partitions)
        _vectors(findings, progress.table(topic.data_type), landed)
        if topic.data_type == "trades":
            _gaps(findings, topic, landed, gaps)
    return findings


async def _logged(
    log: Log, codecs: Codecs, topic: MarketTopic, tps: list[TP]
) -> dict[Place, Identity | None]:
    """(partition, offset) -> (symbol, id) of every record of the log; None where unreadable."""
    found: dict[Place, Identity | None] = {}
    codec, column = codecs.of(topic.log), ID_COLUMN[topic.data_type]
    async for batch in read_all(log, tps):
        decoded = codec.decode(batch.values)
        found.update(((batch.partition, offset), None) for offset in batch.offsets.tolist())
        places = batch.offsets[decoded.rows].tolist()
        symbols = decoded.batch.column("symbol").to_pylist()
        for offset, symbol, ident in zip(
            places, symbols, decoded.batch.column(column).to_pylist(), strict=True
        ):
            found[batch.partition, offset] = (symbol, int(ident))
    return found


async def _refused(
    log: Log, codecs: Codecs, topic: MarketTopic, partitions: int
) -> dict[Place, str]:
    """Reasons by place of what is in the dead letters; frames have no place."""
    found: dict[Place, str] = {}
    async for batch in read_all(log, [TP(topic.dlq, number) for number in range(partitions)]):
        for row in codecs.of(topic.dlq).decode(batch.values).batch.to_pylist():
            if row["offset"] >= 0 and row["reason"] != REDRIVEN:
                found[row["partition"], row["offset"]] = row["reason"]
    return found


def _landed(table: Table, topic: MarketTopic) -> list[tuple[Place, Identity]]:
    """Every stored row's place and identity."""
    column = ID_COLUMN[topic.data_type]
    fields = ("log_partition", "platform_sequence", "symbol", column)
    rows = table.scan(selected_fields=fields).to_arrow()
    values = (rows[name].to_pylist() for name in fields)
    return [
        ((partition, sequence), (symbol, int(ident)))
        for partition, sequence, symbol, ident in zip(*values, strict=True)
    ]


def _compare(
    findings: Findings,
    topic: MarketTopic,
    logged: Mapping[Place, Identity | None],
    refused: Mapping[Place, str],
    landed: list[tuple[Place, Identity]],
) -> None:
    stored = Counter(identity for _, identity in landed)
    twice = [identity for identity, count in stored.items() if count > 1]
    places = Counter(place for place, _ in landed)
    sent = {identity for place, identity in logged.items() if identity and place not in refused}
    lost = sent - stored.keys()
    name = topic.data_type
    findings.acknowledged += len(logged)
    findings.landed += len(landed)
    findings.dead_letters += len(refused)
    findings.lost += len(lost)
    findings.duplicated += sum(count - 1 for count in stored.values())
    findings.duplicates_dropped += len(logged) - len(refused) - len(landed)
    findings.complain(f"{name} acknowledged and not stored", sorted(lost))
    findings.complain(f"{name} stored twice", twice)
    findings.complain(f"{name} places stored twice", [p for p, n in places.items() if n > 1])
    wrong = [(place, identity) for place, identity in landed if logged.get(place) != identity]
    findings.complain(f"{name} rows that are not what the log has at their place", wrong)
    unreadable = [p for p, identity in logged.items() if identity is None and p not in refused]
    findings.complain(f"{name} records neither readable nor refused", unreadable)


async def _in_order(findings: Findings, log: Log, topic: MarketTopic, partitions: int) -> None:
    """A reader of the validated topic meets every range once, in the order of the log."""
    readers: dict[int, CoverReader] = {}
    last: defaultdict[int, int] = defaultdict(lambda: -1)
    tps = [TP(topic.validated, number) for number in range(partitions)]
    async for batch in read_all(log, tps):
        number = batch.partition
        reader = readers.setdefault(number, CoverReader(topic.validated, number))
        for group in reader.read(batch):
            sequences = group.sequences.tolist()
            if sequences != sorted(sequences) or (sequences and sequences[0] <= last[number]):
                findings.problems.append(f"{topic.validated}[{number}] is out of order")
            last[number] = sequences[-1] if sequences else last[number]


def _vectors(findings: Findings, table: Table, landed: list[tuple[Place, Identity]]) -> None:
    """Along the snapshots no position falls, and no row is above the last one."""
    before = Vector.empty()
    for snapshot in sorted(table.metadata.snapshots, key=lambda one: one.sequence_number or 0):
        text = None if snapshot.summary is None else snapshot.summary.get(SUMMARY_KEY)
        if text is None:
            continue
        vector = Vector.from_summary(text)
        fell = [
            place
            for place, position in before.entries.items()
            if (now := vector.get(place)) is None
            or now.next_offset < position.next_offset
            or now.sequence < position.sequence
        ]
        findings.complain(f"positions that fell in snapshot {snapshot.snapshot_id}", fell)
        before = vector
    highest: dict[int, int] = {}
    for place, position in before.entries.items():
        if place.topic.endswith(".validated"):
            highest[place.partition] = max(highest.get(place.partition, -1), position.sequence)
    above = [place for place, _ in landed if place[1] > highest.get(place[0], -1)]
    findings.complain(f"rows of {table.name()[-1]} above the vector", above)


def _gaps(
    findings: Findings,
    topic: MarketTopic,
    landed: list[tuple[Place, Identity]],
    events: list[dict[str, Any]],
) -> None:
    """Ids that are not stored are exactly those in the gap rows."""
    ids: defaultdict[str, set[int]] = defaultdict(set)
    for _, (symbol, ident) in landed:
        ids[symbol].add(ident)
    order = ("log_partition", "platform_sequence", "message_id")
    rows = [row for row in events if row["data_type"] == topic.data_type]
    rows.sort(key=lambda row: tuple(row[name] for name in order))
    told: defaultdict[str, set[int]] = defaultdict(set)
    for (*_, symbol), ranges in open_ranges(rows).items():
        for first, end in ranges:
            told[symbol].update(range(first, end + 1))
    for symbol, found in ids.items():
        missing = set(range(min(found), max(found) + 1)) - found
        findings.missing_ids += len(missing)
        findings.gap_ids += len(told[symbol])
        findings.complain(
            f"{symbol}: missing ids without a gap row", sorted(missing - told[symbol])
        )
        findings.complain(f"{symbol}: gap rows of stored ids", sorted(told[symbol] - missing))


#: Words of errors nobody took: they must not be in a worker's log.
_SWALLOWED: Final = ("never retrieved", "Unhandled", "Exception in callback", "was destroyed but")
#: aiokafka's own: commits that a member which was thrown out had on their way.
_THEIRS: Final = ("GroupCoordinator._do_commit_offsets",)


def read_logs(findings: Findings, files: Iterable[Path]) -> None:
    """Errors by event; those that were swallowed are problems."""
    counts: Counter[str] = Counter()
    swallowed: list[str] = []
    for file in files:
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"event": line, "level": "error" if "Error" in line else "info"}
            if not isinstance(entry, dict):
                continue
            event = str(entry.get("event", ""))
            if any(words in line for words in _SWALLOWED) and not any(
                words in line for words in _THEIRS
            ):
                swallowed.append(f"{file.name}: {event[:200]}")
            elif entry.get("level") in ("error", "critical"):
                counts[" ".join(event.split())[:80]] += 1
    findings.errors_logged = dict(counts.most_common(20))
    findings.complain("errors swallowed", swallowed)
