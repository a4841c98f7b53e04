"""The global table of the level, as one worker of several sees it."""

from __future__ import annotations

from typing import Any


class SharedEntries(dict[str, Any]):
    """Entries all workers know at once; counts how often it was told to resend and to forget."""

    resent = 0
    forgotten = 0

    def resend(self) -> None:
        self.resent += 1

    def forget(self) -> None:
        self.forgotten += 1
