"""Child processes of the demo: started quietly, watched, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from k2.errors import K2Error

#: Events of a process's log that say why it ends, and how far back to look for them.
_REASONS = ("worker_cannot_start", "worker_crashed", "exchange_feed_failed")
_REASON_LINES = 1_000


class ChildFailed(K2Error):
    """A process the demo needs has ended on its own."""

    code = "child_failed"


def _die_with_parent() -> None:
    """Ask Linux to end the child when its parent dies; elsewhere the demo's own stop must do."""
    with contextlib.suppress(OSError, AttributeError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


class Child:
    """One child process in a process group of its own, its output in a file.

    Its own group keeps Ctrl-C in the parent's hands, which stops the children in order.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self._command = list(command)
        self._log = log
        self._log_start = 0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """True from `start` until it has ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start the process; both its outputs go to the log file."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as out:
            self._log_start = out.tell()
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )

    def check(self) -> None:
        """Raise `ChildFailed` with the reason, or the end of its log, when it has ended."""
        if self._process is None or self._process.returncode is None:
            return
        status, reason = self._process.returncode, self.reason()
        words = f": {reason}; its log" if reason else f"; the end of its log {self._log}"
        shown = str(self._log) if reason else f"\n{self.log_tail()}"
        raise ChildFailed(
            f"the {self.name} ended with status {status}{words}: {shown}",
            child=self.name,
            status=status,
        )

    async def ended(self, timeout_s: float) -> bool:
        """True when the process has ended or does so within `timeout_s`."""
        assert self._process is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), timeout_s)
        return self._process.returncode is not None

    def reason(self) -> str:
        """Why it ended, in its own words: the last error among its JSON log lines that says so."""
        for line in reversed(self.log_tail(_REASON_LINES).splitlines()):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                if entry["event"] in _REASONS:
                    return str(entry["error"])
        return ""

    def log_tail(self, lines: int = 15) -> str:
        """The last lines the process wrote."""
        try:
            with self._log.open(encoding="utf-8", errors="replace") as file:
                file.seek(self._log_start)  # before it are the words of an earlier run
                return "".join(deque(file, lines)).rstrip()
        except FileNotFoundError:
            return "(no log)"

    async def stop(self, timeout_s: float) -> int:
        """End the process, by force after `timeout_s`; returns its exit status."""
        process = self._process
        if process is None:
            return 0
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), timeout_s)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        assert process.returncode is not None
        return process.returncode
