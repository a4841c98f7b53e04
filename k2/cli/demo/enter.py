"""Enter on a terminal, while what is shown goes on."""

from __future__ import annotations

import asyncio
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self, TextIO

#: Place of the local flags among a terminal's attributes.
_FLAGS: Final = 3


class Enter:
    """Tells when Enter was pressed; use it as a context. `waits`: False where nobody sits."""

    def __init__(self, keyboard: TextIO, *, waits: bool) -> None:
        self.waits = waits
        self._keyboard = keyboard
        self._presses = 0

    def __enter__(self) -> Self:
        if self.waits:
            # An echoed Enter would move what is drawn.
            self._before = termios.tcgetattr(self._keyboard)
            quiet = termios.tcgetattr(self._keyboard)
            quiet[_FLAGS] &= ~termios.ECHO
            termios.tcsetattr(self._keyboard, termios.TCSADRAIN, quiet)
            asyncio.get_running_loop().add_reader(self._keyboard, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        if self.waits:
            asyncio.get_running_loop().remove_reader(self._keyboard)
            # A terminal that was closed takes no settings, and needs none.
            with suppress(termios.error):
                termios.tcsetattr(self._keyboard, termios.TCSADRAIN, self._before)

    def wait_for(self, seconds: float) -> Callable[[], bool]:
        """True until Enter is pressed, or where nobody sits until so many seconds are over."""
        before, until_s = self._presses, time.monotonic() + seconds
        if self.waits:
            return lambda: self._presses == before
        return lambda: time.monotonic() < until_s

    def _read(self) -> None:
        try:
            line = self._keyboard.readline()
        except OSError:
            line = ""
        self._presses += 1
        if not line:
            # The keyboard is gone; so is whoever sat there.
            self.__exit__()
            self.waits = False
