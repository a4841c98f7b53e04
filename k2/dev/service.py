"""What each service says about itself."""

from __future__ import annotations

import secrets
import signal
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from k2.dev.process import Launch
from k2.dev.tools import missing
from k2.errors import ConfigError


class Service(ABC):
    """One server on loopback ports, its data and log below `directory`.

    The order of use: `fetch` (needs the network once), `prepare` (repeatable), `launch`, then
    `healthy` until it is true.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    #: Port names and their defaults; the one clients use is called `port`.
    default_ports: ClassVar[Mapping[str, int]]
    #: Services that must answer before it starts, where they are started together.
    needs: ClassVar[frozenset[str]] = frozenset()
    #: Programs of the system that it is made with or runs by.
    tools: ClassVar[tuple[str, ...]] = ()
    start_timeout_s: ClassVar[float] = 90.0
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, directory: Path, ports: Mapping[str, int] | None = None) -> None:
        unknown = sorted(set(ports or ()) - set(self.default_ports))
        if unknown:
            raise ConfigError(
                f"{self.name} has no port called {unknown[0]!r}; it has "
                f"{', '.join(self.default_ports)}"
            )
        self.directory = directory
        self.ports: dict[str, int] = {**self.default_ports, **(ports or {})}

    @property
    def port(self) -> int:
        """Where clients connect."""
        return self.ports["port"]

    @property
    def log_file(self) -> Path:
        """What the server printed."""
        return self.directory / f"{self.name}.log"

    @classmethod
    def missing(cls) -> str:
        """What this machine lacks and how to get it; empty when the service can be started."""
        return missing(*cls.tools)

    @classmethod
    def fetch(cls) -> None:
        """Download or build the program, once per machine. Raises `ConfigError`."""
        if reason := cls.missing():
            raise ConfigError(f"{cls.title} cannot be started here: {reason}")
        cls.program()

    @classmethod
    def program(cls) -> Path | None:
        """Where the downloaded or built program is; None when the system brings it."""
        return None

    @abstractmethod
    def prepare(self) -> None:
        """Write configuration and make an empty store where there is none."""

    @abstractmethod
    def launch(self) -> Launch:
        """How its process is started."""

    @abstractmethod
    def healthy(self) -> bool:
        """True when it answers right now."""

    @abstractmethod
    def variables(self) -> dict[str, str]:
        """K2's settings that point at it."""


def answers(url: str) -> bool:
    """True when a GET is answered with success."""
    try:
        with urllib.request.urlopen(url, timeout=2.0) as answer:  # noqa: S310 - our own loopback URLs
            return bool(answer.status < 400)
    except (urllib.error.URLError, OSError):
        return False


def kept_secret(file: Path) -> str:
    """The secret in `file`, made up and written for its owner only when there is none yet."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(24), encoding="utf-8")
    return file.read_text(encoding="utf-8")
