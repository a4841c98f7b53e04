"""The services that belong together in one directory: which, on which ports, pointing at whom."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from k2.dev.catalog import Catalog
from k2.dev.kafka import Kafka
from k2.dev.postgres import Postgres
from k2.dev.registry import Registry
from k2.dev.s3 import S3
from k2.dev.service import Service
from k2.errors import ConfigError

#: In the order of starting: the catalog needs its database and its store.
SERVICES: Final[tuple[type[Service], ...]] = (Kafka, Registry, S3, Postgres, Catalog)
NAMES: Final = tuple(service.name for service in SERVICES)


def default_directory() -> Path:
    """Where the services keep their data unless told otherwise.

    Root's home is closed to others, and PostgreSQL does not run as root.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/k2/dev")
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "k2" / "dev"


@dataclass(frozen=True, slots=True)
class Stack:
    """The services of `directory`; written to `stack.json` there, so that every command agrees.

    `ports`: by service and port name, where they are not the defaults. `secure`: Kafka by SASL_SSL.
    """

    directory: Path
    services: tuple[str, ...]
    ports: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    secure: bool = False

    @classmethod
    def load(cls, directory: Path) -> Self:
        """The stack of a directory; one without services when there is none."""
        file = directory / "stack.json"
        if not file.exists():
            return cls(directory, ())
        try:
            kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return cls(directory, tuple(kept["services"]), kept["ports"], kept["secure"])
        except (ValueError, KeyError, TypeError) as exc:
            raise ConfigError(f"{file} is not readable ({exc}); delete it") from exc

    def save(self) -> None:
        """Write `stack.json` in one step."""
        self.directory.mkdir(parents=True, exist_ok=True)
        partial = self.directory / "stack.json.partial"
        kept = {"services": self.services, "ports": self.ports, "secure": self.secure}
        partial.write_text(json.dumps(kept), encoding="utf-8")
        partial.rename(self.directory / "stack.json")

    def with_services(
        self, names: Collection[str], ports: Mapping[str, Mapping[str, int]], *, secure: bool
    ) -> Stack:
        """The same with more services; new ports win over kept ones."""
        wanted = set(names) | set(self.services)
        kept = {**{k: dict(v) for k, v in self.ports.items()}}
        for name, chosen in ports.items():
            kept[name] = {**kept.get(name, {}), **chosen}
        return Stack(
            self.directory,
            tuple(name for name in NAMES if name in wanted),
            kept,
            secure if Kafka.name in names else self.secure,
        )

    def build(self) -> dict[str, Service]:
        """The services by name, in the order of starting."""
        made: dict[str, Service] = {}
        for name in self.services:
            made[name] = self._build(name, made)
        return made

    def _build(self, name: str, made: Mapping[str, Service]) -> Service:
        place, ports = self.directory / name, self.ports.get(name)
        if name == Kafka.name:
            # Passwords are made with the data, so the two kinds share none.
            place = self.directory / "kafka-secure" if self.secure else place
            return Kafka(place, ports, secure=self.secure)
        if name == Catalog.name:
            postgres, s3 = made.get(Postgres.name), made.get(S3.name)
            assert postgres is None or isinstance(postgres, Postgres)
            assert s3 is None or isinstance(s3, S3)
            return Catalog(place, ports, postgres=postgres, s3=s3)
        return next(kind for kind in SERVICES if kind.name == name)(place, ports)


def variables(services: Mapping[str, Service]) -> dict[str, str]:
    """K2's settings that use all of `services`; a REST catalog wins over its database."""
    found: dict[str, str] = {}
    for name, service in services.items():
        if name == Postgres.name and Catalog.name in services:
            continue
        found |= service.variables()
    return found
