"""The first thing a worker does: its settings, or one clear message and status 2."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from typing import Any

import structlog
from faust.cli.worker import worker as faust_worker

from k2.data_kind import check_feed
from k2.errors import ConfigError
from k2.log import json_lines
from k2.setting_names import unknown_variables
from k2.settings import Settings, settings

log = structlog.get_logger(__name__)

#: What shells and command-line tools use for "called the wrong way".
WRONG_USE = 2


def settings_or_exit() -> Settings:
    """The settings. Ends the process when they are not usable: nothing can be started."""
    try:
        found = settings()
        check_feed(found)
    except ConfigError as exc:
        sys.stderr.write(f"{_told(exc.message)}\n")
        raise SystemExit(WRONG_USE) from exc
    return found


def _told(message: str) -> str:
    """As the worker's log would have it; how it is set up cannot be asked any more."""
    if not json_lines(os.environ.get("K2_LOG_FORMAT", "auto")):
        return f"k2: {message}"
    return json.dumps(
        {
            "event": "worker_cannot_start",
            "error": message,
            "level": "error",
            "timestamp": datetime.now(UTC).isoformat(),
        }
    )


def warn_of_unknown_variables() -> None:
    """A misspelt setting is a warning, not an error: other programs may own a `K2_` of theirs."""
    for unknown in unknown_variables():
        log.warning("setting_unknown", variable=unknown.name, message=unknown.message)


class worker(faust_worker):  # type: ignore[misc] # noqa: N801 - its name is the command's
    """Start a K2 worker."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Faust's banner and its words at Ctrl-C are for people; a program that reads the log
        # expects JSON on every line.
        if json_lines(settings().core.log_format):
            self.quiet = True

    def on_worker_created(self, worker: Any) -> None:
        """No spinner either: it moves the cursor even where there is none."""
        super().on_worker_created(worker)
        if self.quiet:
            worker.spinner = None
