"""Roster: what every worker last said of itself, known to all of them.

The owner of the control partition takes the summaries out of the reports and writes the newest of
each into the global table, beside the level. A worker of an older version sends none and is not
listed; one that does not know the key reads past it. What is listed is for people: it is seconds
old, and nothing is decided by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from k2.clock import Clock
from k2.cluster import at_most

KEY: Final = "workers"
#: A worker that has not reported for this long has left.
FORGET_S: Final = 10.0
#: Between two writes; and at the latest, so that ages tell who is written about no more.
_WRITE_S: Final = 2.0
_REFRESH_S: Final = 10.0
#: Not shown any more. Only while nobody owns the control partition, or an older version does, is
#: anything older than a few seconds; until then its age tells.
_STALE_S: Final = 300.0
#: Sessions in one record of the changelog: Kafka refuses those above a megabyte.
_MOST_SESSIONS: Final = 1_000

Summary = Mapping[str, Any]


class Roster:
    """The workers of this app; on the owner of the control partition also who writes them."""

    def __init__(
        self, table: Any, clock: Clock, worker_id: str, summary: Callable[[], Summary]
    ) -> None:
        """`summary()`: of this worker, JSON-ready; must not block."""
        self._table = table
        self._clock = clock
        self._worker_id = worker_id
        self._summary = summary
        self._known: dict[str, tuple[float, Summary]] = {}
        #: What this worker wrote last, as the owner; None: nothing yet.
        self._written: dict[str, dict[str, Any]] | None = None
        self._due_s = self._late_s = 0.0

    def own(self) -> dict[str, Any]:
        """The summary of this worker."""
        return {**self._summary(), "at_us": self._clock.now_us()}

    def all(self) -> list[dict[str, Any]]:
        """Summaries by worker: this one's own as it is now, then the others' with their age."""
        own = self.own()
        others = [
            {"worker": worker, "here": False, "age_s": round(self._age_s(summary), 1), **summary}
            for worker, summary in sorted(self._stored().items())
            if worker != self._worker_id and not _same_place(summary, own)
        ]
        return [{"worker": self._worker_id, "here": True, "age_s": 0.0, **own}, *others]

    def note(self, report: Mapping[str, Any]) -> None:
        """Take a report (on the owner of the control partition, inside its stream)."""
        self._take_over()
        now_s = self._clock.monotonic_s()
        summary = report.get("summary")
        if summary:
            self._take(str(report["worker"]), summary)
        self._known = {
            worker: entry for worker, entry in self._known.items() if now_s - entry[0] <= FORGET_S
        }
        lasting = {worker: _lasting(entry) for worker, (_, entry) in self._known.items()}
        if now_s >= self._late_s or (now_s >= self._due_s and lasting != self._written):
            self._write(lasting, now_s)

    def _take(self, worker: str, summary: Summary) -> None:
        # One that started again where another was: that one is gone, though not forgotten yet.
        self._known = {
            other: entry
            for other, entry in self._known.items()
            if other != worker and not _same_place(entry[1], summary)
        }
        self._known[worker] = (self._clock.monotonic_s(), summary)

    def _take_over(self) -> None:
        """Go on from what the owner before wrote: not everybody has reported here yet."""
        by = (self._table.get(KEY) or {}).get("by", self._worker_id)
        if by == self._worker_id and self._written is not None:
            return
        for worker, summary in self._stored().items():
            known = self._known.get(worker)
            if known is None or known[1]["at_us"] < summary["at_us"]:
                self._known[worker] = (self._clock.monotonic_s(), summary)
        self._late_s = 0.0

    def _write(self, lasting: dict[str, dict[str, Any]], now_s: float) -> None:
        share = max(1, _MOST_SESSIONS // max(1, len(self._known)))
        workers = {worker: _cut(summary, share) for worker, (_, summary) in self._known.items()}
        self._table[KEY] = {"by": self._worker_id, "workers": workers}
        self._written = lasting
        self._due_s, self._late_s = now_s + _WRITE_S, now_s + _REFRESH_S

    def _stored(self) -> dict[str, Summary]:
        found: dict[str, Summary] = (self._table.get(KEY) or {}).get("workers", {})
        return {
            worker: summary for worker, summary in found.items() if self._age_s(summary) <= _STALE_S
        }

    def _age_s(self, summary: Summary) -> float:
        return max(0.0, (self._clock.now_us() - int(summary["at_us"])) / 1e6)


def _same_place(one: Summary, other: Summary) -> bool:
    """Two workers cannot listen at one address: the older of the two has ended."""
    return (one.get("host"), one.get("api")) == (other.get("host"), other.get("api"))


def _lasting(summary: Summary) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name != "at_us"}


def _cut(summary: Summary, most: int) -> dict[str, Any]:
    left_out = summary.get("more_sessions", 0)
    return {**summary, **at_most(summary.get("sessions", ()), most, left_out)}
