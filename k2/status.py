"""What a worker says of itself: `/v1/status`, `/health`, and the gauges that need looking."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow as pa
import structlog
from faust.types import TP

from k2 import __version__, metrics
from k2.breaker import State
from k2.degradation.levels import MEANING, Level
from k2.errors import K2Error
from k2.lake.tables import TABLES
from k2.web.context import Check, Health, RequestDone

if TYPE_CHECKING:
    from k2.worker import Worker

log = structlog.get_logger(__name__)

_EVERY_S = 0.5
#: Records not yet read, over validation, sink and tails: above it sessions may have to give way.
_BEHIND = 10_000
_QUIET_S = 60.0
#: Log or catalog have not answered for this long.
_SILENT_S = 15.0
_SLOW_MS = 1_000.0
_SLOW_LAKE_MS = 5_000.0
#: What JSON can hold: a few absurd ids already open gaps that are larger together.
_LARGEST = 2**63 - 1
#: Ends of a partition that are remembered; odd, so that thinning keeps the first and the last.
_MOST_ENDS = 601


class StatusBoard:
    """Facts of one worker, refreshed twice a second so that asking never blocks."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._logs = frozenset(topic.log for topic in worker.settings.topics)
        self._process = psutil.Process(os.getpid())
        self._began_s = worker.clock.monotonic_s()
        self._first_s: float | None = None
        self._last_s: float | None = None
        self._moved: tuple[int, ...] = ()
        self._ends: dict[TP, int] = {}
        self._shown: frozenset[TP] = frozenset()
        self._ages: dict[TP, LagAge] = {}
        self._sized: dict[str, object] = {}
        self._yielding = False
        self._open_gaps: int | None = None
        self._unknown = ""
        self.lag = 0
        self._backlog = 0
        self._brought = self._judged = 0
        self._log_ms: float | None = None
        self._log_at_s = self._began_s
        #: Every record of the log has been read by every agent here …
        self.read_through = False
        #: … and is stored.
        self.drained = False
        _begin_counting(topic.log for topic in worker.settings.topics)

    async def run(self) -> None:
        """Refresh for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + _EVERY_S
            await self.look()
            await asyncio.sleep(max(0.0, due_s - loop.time()))

    async def look(self) -> None:
        """Refresh; a log or lake that does not answer is said once, and nothing counts as done."""
        try:
            await self.refresh()
        except K2Error as exc:
            metrics.CONSUMER_ERRORS.labels(type(exc).__name__).inc()
            self.read_through = self.drained = False
            if exc.message != self._unknown:
                log.warning("status_unknown", error=exc.message, **exc.details)
            self._unknown = exc.message
        else:
            self._unknown = ""

    async def refresh(self) -> None:
        """Look at the ends of the log and at what has moved.

        Raises `K2Error` when the log or the lake cannot say.
        """
        worker = self._worker
        # What is behind is read before the ends: a record that arrives in between makes us look
        # late, never finished.
        brought, self._judged = self._counted()
        # What the log has not acknowledged yet is not between its ends.
        self._brought = brought - worker.source.records_in_flight
        busy = self._busy()
        positions = self._positions()
        asked_s = worker.clock.monotonic_s()
        bounds = await worker.app.transport.bounds(positions)
        self._log_ms = (worker.clock.monotonic_s() - asked_s) * 1_000
        self._log_at_s = worker.clock.monotonic_s()
        self._ends = {tp: end for tp, (_, end) in bounds.items()}
        behind = {tp: lag_of(at, *bounds[tp]) for tp, at in positions.items()}
        self.lag = sum(n for tp, n in behind.items() if tp.topic in self._logs)
        self._backlog = sum(behind.values()) + sum(worker.hot.read_to().values())
        self.read_through = not busy and not any(n > 0 for n in behind.values())
        stored = self.read_through and not self._unstored()
        if stored:
            await self._see_commits()
        self.drained = stored
        self._show_lag(behind, positions)
        self._show_sizes()
        self._note_overrun()
        worker.hot.observe()
        worker.source.observe()
        self._note_activity()

    @property
    def waiting(self) -> int:
        """Messages received and not judged: in sessions, on their way to the log, and in it.

        A feed above what the sessions can take waits before the log, where its lag does not show.
        """
        source = self._worker.source
        return self.lag + source.queued + source.records_in_flight

    @property
    def overrun(self) -> bool:
        """True when shedding is not enough: this worker's sessions must not take all the time."""
        settings = self._worker.settings.degradation
        more = self._since_looked()
        if settings.exempt or not settings.source_yields or self._backlog + more <= _BEHIND:
            return False
        # The level comes through the log, which such a worker reads late: its own lag is enough.
        lag = self.lag + more
        return lag >= settings.lag_aggressive or self._worker.level() >= Level.AGGRESSIVE

    def _since_looked(self) -> int:
        """What its sessions have brought since the last look, less what was judged since."""
        brought, judged = self._counted()
        return (brought - self._brought) - (judged - self._judged)

    def _counted(self) -> tuple[int, int]:
        brought = self._worker.source.counts
        records = brought.trades + brought.quotes + brought.agg_trades
        return records, self._worker.validate.counts.records

    def _note_overrun(self) -> None:
        before, self._yielding = self._yielding, self.overrun
        if self._yielding and not before:
            metrics.BACKPRESSURE.inc()

    def _show_lag(self, behind: Mapping[TP, int], positions: Mapping[TP, int]) -> None:
        for tp in self._shown.difference(behind):
            # It left; a last value would look like lag that nobody works off.
            for gauge in (metrics.LAG, metrics.LAG_SECONDS, metrics.READ_POSITION):
                gauge.remove(tp.topic, str(tp.partition))
            del self._ages[tp]
        self._shown = frozenset(behind)
        now_s = self._worker.clock.monotonic_s()
        for tp, count in behind.items():
            labels = (tp.topic, str(tp.partition))
            age = self._ages.setdefault(tp, LagAge())
            metrics.LAG.labels(*labels).set(count)
            metrics.LAG_SECONDS.labels(*labels).set(age.note(positions[tp], self._ends[tp], now_s))
            metrics.READ_POSITION.labels(*labels).set(positions[tp])

    def _show_sizes(self) -> None:
        """Bytes of each table, added up when its newest snapshot is another one."""
        for name, table in self._worker.lake.pinned.items():
            newest = table.snapshots()[0]
            if newest is not self._sized.get(name):
                self._sized[name] = newest
                metrics.LAKE_BYTES.labels(name).set(sum(file.bytes for file in newest.files))

    async def _see_commits(self) -> None:
        """What is stored is also what queries and counts show."""
        worker = self._worker
        for name, vector in worker.sink.vectors().items():
            pinned = worker.lake.pinned[name]
            if any(pinned.vector().get(place) != at for place, at in vector.entries.items()):
                await asyncio.to_thread(pinned.refresh)

    def _positions(self) -> dict[TP, int]:
        worker = self._worker
        found = {**worker.validate.next_offsets(), **worker.sink.read_to()}
        # What was read before a rebalance and is another worker's now is not ours to catch up.
        assigned = worker.app.consumer.assignment()
        return {tp: at for tp, at in found.items() if tp in assigned}

    def _busy(self) -> bool:
        worker = self._worker
        return bool(worker.source.queued or worker.source.in_flight or worker.validate.in_flight)

    def _unstored(self) -> bool:
        return bool(self._worker.sink.pending_rows or self._worker.shed.pending())

    def _note_activity(self) -> None:
        """From the first frame to the last commit: what `rows_per_s` is taken over."""
        worker, now_s = self._worker, self._worker.clock.monotonic_s()
        rows = sum(counts.rows for counts in worker.sink.counts().values())
        moved = (worker.source.counts.frames, worker.validate.counts.records, rows)
        if moved != self._moved and any(moved):
            self._moved = moved
            self._first_s = self._first_s if self._first_s is not None else now_s
            self._last_s = now_s

    @property
    def active_seconds(self) -> float:
        if self._first_s is None or self._last_s is None:
            return 0.0
        return self._last_s - self._first_s + _EVERY_S

    def snapshot(self) -> dict[str, Any]:
        """`data` of `/v1/status`."""
        worker = self._worker
        source, validate = worker.source.counts, worker.validate.counts
        level = Level(worker.level())
        tables = worker.sink.counts()
        return {
            "version": __version__,
            "environment": worker.settings.core.environment,
            "roles": list(worker.settings.core.roles),
            "uptime_s": round(worker.clock.monotonic_s() - self._began_s, 1),
            "active_seconds": self.active_seconds,
            "ready": worker.ready,
            "drained": worker.ready and self.drained,
            "lag": self.lag,
            "waiting": self.waiting,
            "degradation": {
                "level": int(level),
                "name": level.name,
                "meaning": MEANING[level],
                **worker.control.facts(),
            },
            "source": {
                "frames": source.frames,
                "trades": source.trades,
                "quotes": source.quotes,
                "agg_trades": source.agg_trades,
                "refused": source.refused,
                "ignored": source.ignored,
                "control": source.control,
                "queued": worker.source.queued,
                "in_flight": worker.source.in_flight,
                "sessions": worker.source.sessions(),
            },
            "validate": {
                "records": validate.records,
                "duplicates": validate.duplicates,
                "late": validate.late,
                "dead_letters": validate.dead_letters,
                "gaps_opened": validate.gaps_opened,
                "missing_ids": min(validate.missing_ids, _LARGEST),
                "shed": validate.shed,
                "shed_pending": sum(worker.shed.pending().values()),
                "shed_brought": worker.shed.brought,
                "checkpoints": validate.checkpoints,
                "in_flight": worker.validate.in_flight,
            },
            "sink": {
                "rows": sum(counts.rows for counts in tables.values()),
                "pending_rows": worker.sink.pending_rows,
                "tables": {
                    name: {
                        "rows": counts.rows,
                        "commits": counts.commits,
                        "files": counts.files,
                        "last_commit_ms": counts.last_commit_ms,
                    }
                    for name, counts in tables.items()
                },
            },
            "candles": self._candles(),
            "lake": worker.lake.rows(),
            "lake_files": worker.lake.files(),
            "freshness_ms": worker.hot.freshness.percentiles_ms(),
            "symbols": worker.hot.freshness.symbols(),
            "quality": worker.hot.quality.report(),
            "breakers": [breaker.facts() for breaker in worker.breakers.all()],
            "memory": self._memory(),
        }

    def _memory(self) -> dict[str, float]:
        """Megabytes: the process, what of it Arrow holds, and of that the hot rows."""
        tails = sum(tail.stats().nbytes for tail in self._worker.hot.tails.values())
        return {
            "rss_mb": round(self._process.memory_info().rss / 2**20, 1),
            "arrow_mb": round(pa.total_allocated_bytes() / 2**20, 1),
            "tail_mb": round(tails / 2**20, 1),
        }

    def _candles(self) -> dict[str, Any]:
        """Versions stored by this worker, and trades that wait to be folded into the next ones."""
        (counts,) = self._worker.candles.counts().values()
        return {
            "versions": counts.rows,
            "pending_trades": self._worker.candles.pending_rows,
            "commits": counts.commits,
            "last_commit_ms": counts.last_commit_ms,
        }

    def checks(self) -> Sequence[Check]:
        """Dependencies for `/health`."""
        worker = self._worker
        started = Check(
            "worker",
            "healthy" if worker.ready else "unhealthy",
            "" if worker.ready else "starting, recovering or stopping",
        )
        now_us = worker.clock.now_us()
        feeds = [self._feed(session, now_us) for session in worker.source.sessions()]
        return [started, self._log(), self._lake(), self._queries(), self._breakers(), *feeds]

    def _breakers(self) -> Check:
        resting = [b for b in self._worker.breakers.all() if b.state is not State.CLOSED]
        told = "; ".join(f"{b.name} is {b.state.name}: {b.last_error}" for b in resting)
        return Check("breakers", "degraded" if resting else "healthy", told)

    def _log(self) -> Check:
        """The ends of the log are asked twice a second."""
        silent_s = self._worker.clock.monotonic_s() - self._log_at_s
        if silent_s > _SILENT_S:
            message = f"the log has not answered for {silent_s:.0f} s"
            return Check("log", "unhealthy", message, self._log_ms)
        slow = self._log_ms is not None and self._log_ms > _SLOW_MS
        return Check("log", "degraded" if slow else "healthy", "slow" if slow else "", self._log_ms)

    def _lake(self) -> Check:
        """What is pinned and hot still answers while the catalog is away: degraded, not down."""
        looks = [table.look for table in self._worker.lake.pinned.values() if table.look]
        if not looks:
            return Check("lake", "degraded", "the catalog has not been asked yet")
        worst = max(looks, key=lambda look: (bool(look.error), look.latency_ms))
        silent_s = self._worker.clock.monotonic_s() - min(look.at_s for look in looks)
        if worst.error or silent_s > _SILENT_S:
            message = worst.error or f"the catalog has not answered for {silent_s:.0f} s"
            return Check("lake", "degraded", message, worst.latency_ms)
        slow = worst.latency_ms > _SLOW_LAKE_MS
        status: Health = "degraded" if slow else "healthy"
        return Check("lake", status, "slow" if slow else "", worst.latency_ms)

    def _queries(self) -> Check:
        stats = self._worker.hot.engine.stats()
        if stats.running >= stats.size and stats.waiting >= stats.queue_size:
            return Check("queries", "degraded", f"{stats.waiting} queries wait, more get 429")
        return Check("queries", "healthy")

    def _feed(self, session: dict[str, Any], now_us: int) -> Check:
        name = f"feed {session['session']}"
        if session["state"] != "connected":
            return Check(name, "degraded", f"{session['state']}: {session['last_error']}")
        quiet_s = (now_us - session["last_frame_us"]) / 1e6
        if session["last_frame_us"] and quiet_s > _QUIET_S:
            return Check(name, "degraded", f"no frame for {quiet_s:.0f} s")
        return Check(name, "healthy")

    def observe_request(self, done: RequestDone) -> None:
        """Count one HTTP request."""
        metrics.HTTP_REQUESTS.labels(done.method, done.route, str(done.status)).inc()
        metrics.HTTP_SECONDS.labels(done.method, done.route).observe(done.duration_s)
        if done.status == 200 and done.route.startswith("/v1/"):
            metrics.QUERY_ROWS.labels(done.route).observe(done.rows)


class LagAge:
    """How long the oldest record of one partition that is not read yet has been there.

    Known from the ends as they were seen, so as exactly as they are looked at.
    """

    def __init__(self) -> None:
        self._ends: list[tuple[float, int]] = []

    def note(self, position: int, end: int, now_s: float) -> float:
        """Seconds; 0.0 when everything is read."""
        if not self._ends or end > self._ends[-1][1]:
            self._ends.append((now_s, end))
        self._ends = [(at_s, seen) for at_s, seen in self._ends if seen > position]
        if len(self._ends) >= _MOST_ENDS:
            self._ends = self._ends[::2]
        return now_s - self._ends[0][0] if self._ends else 0.0


def _begin_counting(logs: Iterable[str]) -> None:
    """Failures count from 0: the growth of a series that begins with one is unknown to Prometheus.

    Those of steps that end with the failure begin with the steps.
    """
    for log_of_record in logs:
        metrics.SHED_LOST.labels(log_of_record)
    for table in TABLES:
        metrics.MAINTENANCE_FAILURES.labels(table)
    for error in ("LogError", "LakeError"):
        metrics.CONSUMER_ERRORS.labels(error)


def lag_of(position: int, earliest: int, end: int) -> int:
    """Records still to be read: what retention has deleted is not, nor is less than nothing."""
    return max(0, end - max(position, earliest))
