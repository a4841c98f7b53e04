"""A real Kafka broker for tests and benchmarks; see `k2.dev.kafka` for how it is made.

Its ports are free ones, its log is in a directory of its own, and it ends with our process, also
when that is killed.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from k2.dev.kafka import VERSION, Kafka
from k2.dev.process import ServiceProcess, die_with_parent, free_ports

__all__ = [
    "VERSION",
    "KafkaServer",
    "die_with_parent",
    "free_ports",
    "missing_tools",
    "running_kafka",
]


def missing_tools() -> str:
    """Why no broker can be started here and what to do; empty when one can."""
    return Kafka.missing()


class KafkaServer(ServiceProcess):
    """A broker process on free ports. On Linux it ends with the thread that called `start`."""

    service: Kafka

    def __init__(self, directory: Path, *, heap: str = "512m", secure: bool = False) -> None:
        names = tuple(Kafka.default_ports)
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        super().__init__(Kafka(directory, ports, heap=heap, secure=secure))

    @property
    def directory(self) -> Path:
        """Configuration, log and data."""
        return self.service.directory

    @property
    def port(self) -> int:
        """Where clients connect."""
        return self.service.port

    @property
    def bootstrap(self) -> str:
        """host:port for clients."""
        return self.service.bootstrap

    @property
    def log_file(self) -> Path:
        """What the broker printed."""
        return self.service.log_file


@contextlib.contextmanager
def running_kafka(*, heap: str = "512m", secure: bool = False) -> Iterator[KafkaServer]:
    """A broker with an empty log, stopped and removed at the end."""
    with tempfile.TemporaryDirectory(prefix="k2-kafka-", ignore_cleanup_errors=True) as directory:
        server = KafkaServer(Path(directory), heap=heap, secure=secure)
        try:
            server.start()
            yield server
        finally:
            server.kill()
