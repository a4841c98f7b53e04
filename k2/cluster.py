"""What workers tell each other of themselves, and what they add up to.

A worker's summary goes with its report once a second: a few hundred bytes, and its sessions.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from k2 import __version__
from k2.ask import reachable

if TYPE_CHECKING:
    from k2.worker import Worker

#: Listed of one worker; what is beyond is only counted.
_MOST_SESSIONS: Final = 50
_MOST_TEXT: Final = 120
#: Addresses that are every address of the machine.
_ANY: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - not bound here
#: What adds up over workers.
_SUMS: Final = (
    *("lag", "frames", "queued", "refused"),
    *("records", "duplicates", "late", "dead_letters", "gaps_opened"),
    *("rows", "pending_rows", "shed_brought"),
)


def summary_of(worker: Worker) -> dict[str, Any]:
    """What others learn of a worker. Counters are since its start; `shed_pending` is by tier."""
    source, validate = worker.source.counts, worker.validate.counts
    facts = worker.control.facts()
    return {
        "host": socket.gethostname(),
        "api": _api(worker.settings.api.host, worker.settings.api.port),
        "version": __version__,
        "roles": list(worker.settings.core.roles),
        "ready": worker.ready,
        "level": worker.control.here.name,
        "memory": round(facts["memory_fraction"], 2),
        "memory_level": facts["memory_level"],
        "lag": worker.status.waiting,
        "frames": source.frames,
        "queued": worker.source.queued,
        "refused": source.refused,
        "records": validate.records,
        "duplicates": validate.duplicates,
        "late": validate.late,
        "dead_letters": validate.dead_letters,
        "gaps_opened": validate.gaps_opened,
        "rows": sum(counts.rows for counts in worker.sink.counts().values()),
        "pending_rows": worker.sink.pending_rows,
        # Its way is JSON, whose keys are text.
        "shed_pending": {str(tier): count for tier, count in worker.shed.pending().items()},
        "shed_brought": worker.shed.brought,
        "slots": worker.hot.engine.slots(),
        **at_most([_session(one) for one in worker.source.sessions()], _MOST_SESSIONS),
    }


def at_most(sessions: Sequence[Any], most: int, left_out: int = 0) -> dict[str, Any]:
    """The first `most` sessions, and how many are not listed."""
    return {
        "sessions": list(sessions[:most]),
        "more_sessions": left_out + max(0, len(sessions) - most),
    }


def totals(workers: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What summaries add up to."""
    return {
        "workers": len(workers),
        **{name: sum(one.get(name, 0) for one in workers) for name in _SUMS},
        "shed_pending": sum(shed_by_tier(workers).values()),
    }


def shed_by_tier(workers: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Records put off and not yet brought, by tier."""
    found: Counter[str] = Counter()
    for one in workers:
        found.update(one.get("shed_pending", {}))
    return dict(sorted(found.items()))


def _session(session: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("session", "exchange", "state", "frames", "frames_per_s", "reconnects", "last_frame_us")
    return {
        **{name: session[name] for name in kept},
        "symbol_count": len(session["symbols"]),
        "last_error": session["last_error"][:_MOST_TEXT],
    }


def _api(host: str, port: int) -> str:
    """Where the worker is asked, from another machine where it listens to others at all."""
    return f"http://{socket.gethostname() if host in _ANY else reachable(host)}:{port}"
