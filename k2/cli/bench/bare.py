"""A worker without metrics and log lines: what `k2 bench overhead` compares the whole one with.

Run as `python -m k2.cli.bench.bare worker …`, in place of `faust -A k2.app worker …`.
"""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from typing import Any

from prometheus_client import Counter, Gauge, Histogram


def silence() -> None:
    """Make every metric a no-op, and let no line be logged; for this process, for good."""

    def nothing(*_args: Any, **_labels: Any) -> None:
        return None

    def same(metric: Any, *_args: Any, **_labels: Any) -> Any:
        return metric

    for kind, methods in (
        (Counter, ("inc",)),
        (Gauge, ("inc", "dec", "set")),
        (Histogram, ("observe",)),
    ):
        replaced: Any = kind
        replaced.labels = same
        for name in methods:
            setattr(replaced, name, nothing)
    gauge: Any = Gauge
    gauge.remove = nothing
    gauge.track_inprogress = lambda *_: nullcontext()
    logging.disable(logging.CRITICAL)


if __name__ == "__main__":
    silence()
    from faust.cli.faust import cli

    sys.argv[1:1] = ["-A", "k2.app"]
    cli()
