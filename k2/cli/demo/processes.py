"""Child processes of the demo: started quietly, watched, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from k2.errors import K2Error


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
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start the process; both its outputs go to the log file."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as out:
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
        """Raise `ChildFailed` with the end of its log when the process has ended."""
        if self._process is not None and self._process.returncode is not None:
            raise ChildFailed(
                f"the {self.name} ended with status {self._process.returncode}; the end of its "
                f"log {self._log}:\n{self.log_tail()}",
                child=self.name,
                status=self._process.returncode,
            )

    def log_tail(self, lines: int = 15) -> str:
        """The last lines the process wrote."""
        try:
            with self._log.open(encoding="utf-8", errors="replace") as file:
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
