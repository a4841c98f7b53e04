"""Several Kafka brokers on this machine, each of which can be stopped, killed and started."""

from __future__ import annotations

import asyncio
import atexit
from pathlib import Path

from k2.dev.kafka import Kafka, new_cluster_id
from k2.dev.process import ServiceProcess, free_ports, wait_healthy


class _Node(Kafka):
    """One of several brokers; all are controllers too."""

    # One that was killed mends its log first, while everything else shares the machine.
    start_timeout_s = 240.0

    def __init__(
        self, directory: Path, ports: dict[str, int], number: int, voters: str, cluster: str
    ) -> None:
        super().__init__(directory, ports, heap="320m")
        self._number = number
        self._voters = voters
        self._cluster = cluster

    def _settings(self) -> list[str]:
        count = self._voters.count("@")
        replicas = min(3, count)
        return [  # the last word on a property counts
            *super()._settings(),
            f"node.id={self._number}",
            f"controller.quorum.voters={self._voters}",
            f"offsets.topic.replication.factor={replicas}",
            f"transaction.state.log.replication.factor={replicas}",
            f"min.insync.replicas={max(1, replicas - 1)}",
            "unclean.leader.election.enable=false",
            "broker.session.timeout.ms=3000",
            "broker.heartbeat.interval.ms=500",
            "controller.quorum.election.timeout.ms=500",
            "controller.quorum.fetch.timeout.ms=1000",
        ]

    def _cluster_id(self) -> str:
        return self._cluster


class Broker(ServiceProcess):
    """A broker whose start does not hold the event loop."""

    service: _Node

    def spawn(self) -> None:
        """Start the process: by the thread that stays, for it ends with that."""
        service = self.service
        self._process = service.launch().spawn(service.directory, service.log_file)
        atexit.register(self.kill)

    async def until_healthy(self) -> None:
        """Return when it answers. Raises `ServiceError`."""
        await asyncio.to_thread(wait_healthy, self.service, self._alive)


class Brokers:
    """`count` brokers below `directory`."""

    def __init__(self, directory: Path, count: int) -> None:
        names = tuple(Kafka.default_ports)
        ports = [dict(zip(names, free_ports(len(names)), strict=True)) for _ in range(count)]
        voters = ",".join(f"{n}@127.0.0.1:{p['controller']}" for n, p in enumerate(ports, 1))
        cluster = new_cluster_id()
        self.nodes = [
            Broker(_Node(directory / f"broker-{n}", p, n, voters, cluster))
            for n, p in enumerate(ports, 1)
        ]

    @property
    def bootstrap(self) -> str:
        """host:port of all, comma separated."""
        return ",".join(node.service.bootstrap for node in self.nodes)

    @property
    def replication(self) -> int:
        return min(3, len(self.nodes))

    async def start(self) -> None:
        """Start all and wait until each answers."""
        await asyncio.to_thread(Kafka.fetch)
        await asyncio.gather(*(asyncio.to_thread(node.service.prepare) for node in self.nodes))
        for node in self.nodes:
            node.spawn()
        await asyncio.gather(*(node.until_healthy() for node in self.nodes))

    async def restart(self, node: Broker, *, kill: bool, away_s: float = 0.0) -> None:
        """Take one away, in good order or not, and bring it back."""
        await asyncio.to_thread(node.kill if kill else node.stop)
        await asyncio.sleep(away_s)
        node.spawn()
        await node.until_healthy()

    def kill(self) -> None:
        """End all at once."""
        for node in self.nodes:
            node.kill()
